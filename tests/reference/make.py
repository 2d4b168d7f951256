"""Makes the reference data that tests hold Sconce against, with transformers.

    python tests/reference/make.py --model DIR

DIR is the model as `sconce pull smollm2-135m-instruct` leaves it. README.md
beside this file says what each output is.
"""

import argparse
import json
import math
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
NEW_TOKENS = 64
COLUMNS = 512
WINDOW = 512

STORY = (
    "The ferry left the harbour before sunrise, when the gulls were still asleep on the "
    "roofs of the fish market. Marta stood at the rail and counted the lamps along the "
    "quay: eleven, as always, and the twelfth one broken since the storm in March. She had "
    "promised her brother to write down everything she saw, so she wrote: grey water, no "
    "wind, one sailor with a red cap. The engine coughed, found its rhythm, and the island "
    "behind them grew small and flat like a stone that somebody had skipped across the sea. "
    "By noon the sky had cleared. The captain, who had not spoken all morning, came out of "
    "the wheelhouse with two cups of coffee and gave her one without a word. They passed a "
    "lighthouse painted in bands of white and black, and a raft of eider ducks that rose and "
    "settled again. \"Are you going for work or for love?\" he asked at last. \"For a "
    "letter,\" she said, and showed him the envelope with the wrong stamp. He laughed and "
    "said that letters were the only cargo that never paid its freight. "
)
ESSAY = (
    "A scheduler that shares a machine between many people must answer three questions at "
    "every step: who goes next, how much may they do, and what happens to those who wait. "
    "The first question is about order, the second about amount, and the third about "
    "honesty. Order without amount lets one long job hold up a hundred short ones. Amount "
    "without order lets the newest arrival starve the oldest. And without honesty about "
    "waiting, people send the same job twice, which makes the queue longer for everybody. "
    "Early time-sharing systems measured fairness in processor seconds; networks measured it "
    "in bytes; databases in transactions. In each of these fields the same idea came back "
    "under another name: keep a counter for every customer, add to it what they consume, and "
    "serve the one whose counter is lowest. What differs is the cost of changing your mind. "
    "A processor can switch in microseconds, a disk in milliseconds, and a large model must "
    "first find room for everything it has already read. "
)
CODE = '''def merge(intervals):
    """Merges overlapping half-open intervals."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def test_merge():
    assert merge([(1, 3), (2, 5), (7, 8)]) == [[1, 5], [7, 8]]


class Matrix:
    def __init__(self, rows, cols, fill=0.0):
        self.rows, self.cols = rows, cols
        self.data = [[fill] * cols for _ in range(rows)]

    def transpose(self):
        out = Matrix(self.cols, self.rows)
'''
FACTS = (
    "Water boils at 100 degrees Celsius at sea level and at about 71 degrees on the summit of "
    "Mount Everest. Light needs 499 seconds from the Sun to the Earth. The number 1729 is the "
    "smallest that is a sum of two cubes in two ways: 1^3 + 12^3 and 9^3 + 10^3. In 1969 two "
    "people walked on the Moon for 2 hours and 31 minutes. A year has 365.2422 days. "
)


def chat(tokenizer, *turns):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def prompts(tokenizer):
    """Twenty prompts of many kinds, of 1 to 900 tokens."""
    raw = lambda text, limit=None: tokenizer(text)["input_ids"][:limit]
    yield "capital", chat(tokenizer, "What is the capital of France?")
    yield "sum", chat(tokenizer, "What is 17 plus 25?")
    yield "poem", chat(tokenizer, "Write four lines about the sea.")
    yield "list", chat(tokenizer, "List five kinds of trees.")
    yield "turns", chat(tokenizer, "My name is Ada.", "Hello Ada!", "What is my name?")
    yield "translate", chat(tokenizer, "Say good morning in Spanish and in German.")
    yield "explain", chat(tokenizer, "Explain to a child why the sky is blue.")
    yield "json", chat(tokenizer, 'Give a JSON object with the keys "name" and "age".')
    yield "one-token", raw("The", 1)
    yield "two-tokens", raw("Once upon", 2)
    yield "code", raw(CODE)
    yield "unicode", raw("Zürich – naïve café, 北京 und Москва, 🙂🚀: ")
    yield "digits", raw("3.14159265358979323846 2.71828182845904523536 1.414")
    yield "whitespace", raw("a  b\t\tc\n\n\n    d\n  e   \n")
    yield "facts", raw(FACTS)
    yield "story-17", raw(STORY, 17)
    yield "story", raw(STORY)
    yield "essay", raw(ESSAY + "In short, ")
    yield "long-700", raw((ESSAY + STORY + FACTS + CODE) * 2, 700)
    yield "long-900", raw((STORY + FACTS + ESSAY + CODE) * 2, 900)


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float()


def golden(model, prompts):
    cases = []
    for label, prompt in prompts:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0].tolist()
        tokens = out[len(prompt):]
        assert len(tokens) == NEW_TOKENS
        # One pass over the whole text says what each step's two best were.
        scores = logits_of(model, out)[len(prompt) - 1 : -1]
        top = scores.topk(2, dim=-1).values
        margins = (top[:, 0] - top[:, 1]).tolist()
        best = scores.argmax(dim=-1).tolist()
        for i, (a, b) in enumerate(zip(tokens, best)):
            assert a == b or margins[i] < 1e-3, (label, i)
        cases.append(
            {
                "label": label,
                "prompt": prompt,
                "tokens": tokens,
                "margins": [round(m, 4) for m in margins],
            }
        )
        print(label, len(prompt), min(margins), flush=True)
    return cases


def teacher_forced(exact, bf16, tokenizer):
    """Logits of fixed texts in a fixed choice of columns, in f32, and how far
    transformers' own bf16 is from them."""
    texts = {"story": STORY, "essay": ESSAY, "code": CODE, "facts": FACTS}
    generator = np.random.default_rng(7)
    columns = np.sort(generator.choice(exact.config.vocab_size, COLUMNS, replace=False))
    arrays = {"columns": columns.astype(np.int32)}
    errors, difference, norm = {}, 0.0, 0.0
    for name, text in texts.items():
        tokens = tokenizer(text)["input_ids"][:160]
        want = logits_of(exact, tokens)[:, columns]
        got = logits_of(bf16, tokens)[:, columns]
        arrays[f"{name}.tokens"] = np.array(tokens, dtype=np.int32)
        arrays[f"{name}.logits"] = want.numpy()
        errors[name] = ((got - want).norm() / want.norm()).item()
        difference += (got - want).square().sum().item()
        norm += want.square().sum().item()
    errors["all"] = math.sqrt(difference / norm)
    return arrays, errors


def perplexity(model, tokens):
    """exp of the mean negative log-likelihood of every token but each window's first."""
    total, count = 0.0, 0
    for start in range(0, len(tokens), WINDOW):
        window = tokens[start : start + WINDOW]
        scores = torch.log_softmax(logits_of(model, window).double(), dim=-1)
        picked = scores[:-1].gather(1, torch.tensor(window[1:])[:, None])
        total -= picked.sum().item()
        count += len(window) - 1
    return math.exp(total / count)


def tokenizer_cases(tokenizer):
    texts = [
        "", " ", "a", "Hello, world!", "  two  spaces", "tab\tand\nnewline\r\n", "12345 678",
        "it's we're I'll you'd", "naïve café Zürich", "北京欢迎你", "Привет, мир", "שלום עולם",
        "مرحبا بالعالم", "नमस्ते दुनिया", "🙂🚀👩‍👩‍👧", "e\u0301 combining", "ﬁ ligature",
        "<|im_start|>user\nHi<|im_end|>", "<|endoftext|>", "<|im_start", "a<|im_end|>b",
        "def f(x):\n    return x ** 2\n", "{\"key\": [1, 2.5, null]}", "https://example.org/?a=b&c=d",
        "\u0000control", "\ufffd replacement", "x" * 100, "ab" * 50, "\n\n\n", "    indented",
        "MixedCASE words AND numbers42", "C:\\path\\file.txt", "$100.00 + €5", "½ ¾ ²",
        "…—–‘’“”", "1,000,000", "3.14e-10", "~!@#$%^&*()_+", "\u200bzero width", "ＦＵＬＬ",
    ]
    chats = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": "Three\nlines"},
        ],
    ]
    render = lambda messages: tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    return {
        "encode": [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in texts],
        "chat": [{"messages": messages, "text": render(messages)} for messages in chats],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    exact = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    bf16 = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()

    def write(name, value):
        text = json.dumps(value, ensure_ascii=False)
        (args.out / name).write_text(text.replace("}, {", "},\n{") + "\n")

    write("tokens.json", tokenizer_cases(tokenizer))
    arrays, errors = teacher_forced(exact, bf16, tokenizer)
    save_file(arrays, args.out / "logits.safetensors")
    text = tokenizer((STORY + ESSAY + FACTS + CODE) * 3)["input_ids"][:2048]
    write(
        "quality.json",
        {
            "bf16_logits_relative_error": errors,
            "perplexity_tokens": text,
            "perplexity_window": WINDOW,
            "perplexity_f32": perplexity(exact, text),
            "perplexity_bf16": perplexity(bf16, text),
        },
    )
    write("golden.json", golden(exact, prompts(tokenizer)))


if __name__ == "__main__":
    main()
