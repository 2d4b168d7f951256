"""Writes tokenizers.json: what transformers makes of texts and conversations with the
tokenizers that fetch_tokenizers.py fetches.

    python tokenizers.py FOLDER > tokenizers.json
"""

import json
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError, UndefinedError
from transformers import AutoTokenizer

TEXTS = [
    "Hello, world!",
    " leading and trailing ",
    "two  spaces, three   and\ttabs\t\t\n\n\n lines \r\n of all kinds",
    "a" + " " * 40 + "b" + "\n" * 35 + "c" + "\t" * 3,
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2.50, 0x1F]}  # 100%\n",
    "3.14159 1,000,000 2026-11-26 12:30 ٣٤ ⅷ ²",
    "Grüße aus Zürich, naïve café, cafe\u0301, A\u030angstro\u0308m",
    "Съешь же ещё этих мягких французских булок",
    "敏捷的棕色狐狸跳过懒狗。日本語のテキスト、カタカナ。한국어 문장입니다.",
    "शांति से बैठो। אַלְפָּא مرحبا بالعالم ไทยไม่มีช่องว่าง",
    "\U0001f996\U0001f996 \U0001f469\u200d\U0001f680 \U0001f1e8\U0001f1ed \U0001d4d0 \ud7b0",
    "It's they'll I'D we've 'tis",
    "<table><tr><td>x</td></tr></table> </body> <b> <|im_start|>user<|im_end|> <end_of_turn>",
    "<think>\nhm\n</think> <tool_call>{}</tool_call> [multimodal] <unused5> <mask>",
    "supercalifragilisticexpialidocious " * 3,
    "\u2581 \u2581x \u2581\u2581 _",
    "\x00\x01\x7f\u00a0\u2003\ufeff\u200b",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "",
]

TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "The weather at a place.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                   "required": ["city"]}}}]
SYSTEM = {"role": "system", "content": "You are terse."}
USER = {"role": "user", "content": " What is 2 + 2? "}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}]}
CONVERSATIONS = {
    "user": ([USER], {}),
    "system": ([SYSTEM, USER], {}),
    "turns": ([SYSTEM, USER, {"role": "assistant", "content": "4"},
               {"role": "user", "content": "And 3 + 3?\n"}], {}),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "Hi"},
                                            {"type": "text", "text": "there"}]}], {}),
    "two users": ([USER, USER], {}),
    "thinking": ([USER, {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4"},
                  {"role": "user", "content": "Sure?"}], {}),
    "not thinking": ([USER], {"enable_thinking": False}),
    "tools": ([SYSTEM, USER], {"tools": TOOLS}),
    "tool result": ([USER, CALL, {"role": "tool", "content": "12 °C"}], {"tools": TOOLS}),
}


def main(folder):
    found = {}
    for name in ["qwen3", "gemma3"]:
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        conversations = {}
        for label, (messages, more) in CONVERSATIONS.items():
            kwargs = {"add_generation_prompt": True, **more}
            try:
                text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
            except UndefinedError:
                conversations[label] = None
                continue
            except TemplateError as error:  # What the template raises.
                conversations[label] = {"raises": str(error)}
                continue
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            conversations[label] = {"text": text, "ids": ids}
        found[name] = {
            "texts": [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in TEXTS],
            "conversations": conversations,
        }
    inputs = {label: {"messages": messages, "kwargs": kwargs}
              for label, (messages, kwargs) in CONVERSATIONS.items()}
    json.dump({"conversations": inputs, "models": found}, sys.stdout, ensure_ascii=False,
              separators=(",", ":"))
    print()


main(Path(sys.argv[1]))
