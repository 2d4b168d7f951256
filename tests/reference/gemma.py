"""Makes gemma.json: what transformers computes in f32 with Gemma 3 270M.

    python tests/reference/fetch_gemma.py gemma-3-270m.gguf
    python tests/reference/gemma.py --model $(sconce pull ./gemma-3-270m.gguf)
"""

import argparse
import json

import torch
from make import CODE, ESSAY, FACTS, HERE, STORY, golden, perplexity
from transformers import AutoModelForCausalLM, AutoTokenizer

# Lewis Carroll, Alice's Adventures in Wonderland (1865), chapter 1: in the public domain.
ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading, but it "
    "had no pictures or conversations in it, \u201cand what is the use of a book,\u201d thought "
    "Alice \u201cwithout pictures or conversations?\u201d\n\nSo she was considering in her own "
    "mind (as well as she could, for the hot day made her feel very sleepy and stupid), whether "
    "the pleasure of making a daisy-chain would be worth the trouble of getting up and picking "
    "the daisies, when suddenly a White Rabbit with pink eyes ran close by her.\n\nThere was "
    "nothing so very remarkable in that; nor did Alice think it so very much out of the way to "
    "hear the Rabbit say to itself, \u201cOh dear! Oh dear! I shall be late!\u201d (when she "
    "thought it over afterwards, it occurred to her that she ought to have wondered at this, "
    "but at the time it all seemed quite natural); but when the Rabbit actually took a watch "
    "out of its waistcoat-pocket, and looked at it, and then hurried on, Alice started to her "
    "feet, for it flashed across her mind that she had never before seen a rabbit with either "
    "a waistcoat-pocket, or a watch to take out of it, and burning with curiosity, she ran "
    "across the field after it, and fortunately was just in time to see it pop down a large "
    "rabbit-hole under the hedge.\n\nIn another moment down went Alice after it, never once "
    "considering how in the world she was to get out again.\n\nThe rabbit-hole went straight on "
    "like a tunnel for some way, and then dipped suddenly down, so suddenly that Alice had not "
    "a moment to think about stopping herself before she found herself falling down a very deep "
    "well.\n"
)


def prompts(tokenizer):
    """Twenty prompts of 2 to 1,500 tokens, the first of which begins a text; the windows of
    the model's layers are of 512."""
    raw = lambda text, limit=None: tokenizer(text)["input_ids"][:limit]
    for label, text in [
        ("one-word", "The"),
        ("once", "Once upon a time, in a village by the sea,"),
        ("capital", "The capital of France is Paris. The capital of Italy is"),
        ("list", "Five kinds of trees:\n1. Oak\n2. Birch\n3."),
        ("german", "Guten Morgen! Heute ist ein schöner Tag, und"),
        ("chinese", "北京是中国的首都。上海是"),
        ("russian", "Москва - столица России, а Париж -"),
        ("dialogue", "Anna: What is 17 plus 25?\nBen:"),
        ("json", '{"name": "Ada", "age": 36, "languages": ["en",'),
        ("html", "<html>\n  <body>\n    <h1>Contents</h1>\n    <table>\n      <tr><td>"),
        ("spaces", "a  b\t\tc\n\n\n    d\n  e   \n"),
        ("emoji", "Zürich – naïve café, 🙂🚀🦖 and"),
        ("digits", "3.14159265358979323846 2.71828182845904523536 1.414"),
        ("code", CODE),
        ("facts", FACTS),
        ("story", STORY),
        ("essay", ESSAY + "In short,"),
        ("alice", ALICE),
    ]:
        yield label, raw(text)
    text = STORY + FACTS + ALICE + ESSAY + CODE
    yield "long-600", raw(text, 600)
    yield "long-1500", raw(text + text[::2] + text, 1500)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    cases = list(prompts(tokenizer))
    assert len(cases) == 20 and len(cases[-1][1]) == 1500
    tokens = tokenizer(ALICE)["input_ids"]
    value = {
        "golden": golden(model, cases),
        "perplexity_tokens": tokens,
        "perplexity_f32": perplexity(model, tokens),
    }
    text = json.dumps(value)
    (HERE / "gemma.json").write_text(text.replace("}, {", "},\n{") + "\n")


main()
