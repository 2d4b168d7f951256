"""Makes embeddings.json: what transformers computes in float32 with all-MiniLM-L6-v2, pooled and
normalised as the model's files say.

    python tests/reference/fetch_minilm.py minilm
    python tests/reference/embeddings.py --model minilm
"""

import argparse
import json

import torch
from make import ESSAY, FACTS, HERE, STORY
from transformers import AutoModel, AutoTokenizer

TEXTS = [
    "a",
    "Hello, world!",
    "What is the capital of France?",
    "Paris is the capital and largest city of France.",
    "def add(a, b):\n    return a + b  # the sum of both\n",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "北京是中国的首都。 Москва - столица России. 🙂",
    FACTS,
    STORY,
    ESSAY,
    # Longer than the model takes: cut.
    STORY + ESSAY,
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    folder = parser.parse_args().model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    cases = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=256)["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vector = torch.nn.functional.normalize(hidden.mean(dim=0), dim=0)
        embedding = [round(x, 6) for x in vector.tolist()]
        cases.append({"text": text, "tokens": ids, "embedding": embedding})
    print([len(case["tokens"]) for case in cases])
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (HERE / "embeddings.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


main()
