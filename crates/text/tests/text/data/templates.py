"""Writes templates.json: what transformers makes of chat templates.

Run with the versions of requirements.txt (torch is not needed) on the
collection that fetch_templates.py fetches:

    python templates.py FOLDER > templates.json
    python templates.py FOLDER TEMPLATE CONVERSATION

The second form prints one rendering. `corpus` holds the first half of each
rendering's SHA-256, or what was raised; `snippets` hold the text itself, or null
where rendering fails.
"""

import hashlib
import json
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError, TemplateRuntimeError, TemplateSyntaxError
from snippets import SNIPPETS
from transformers.utils.chat_template_utils import render_jinja_template

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

# Renderings must not depend on the day: templates with a date get this one.
DATES = """{%- macro strftime_now(format) -%}
{{- {'%d %b %Y': '09 Feb 2024', '%Y-%m-%d': '2024-02-09', '%B %d, %Y': 'February 09, 2024',
     '%Y': '2024', '%d/%m/%y': '09/02/24', '%A, %B %d, %Y': 'Friday, February 09, 2024'}[format] -}}
{%- endmacro %}
"""


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="call00001"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = message("system", "You are terse.  Answer in one word.\n")
USER = message("user", "What's the weather in Paris?")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather at a place; \"now\" & <soon>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "City, e.g. Zürich"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 7, "default": 3},
                    "units": {"type": "string", "enum": ["celsius", "kelvin"]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "exact": {"type": ["boolean", "null"], "default": None},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
            },
            "return": {"type": "number"},
        },
    },
]
ARGUMENTS = {"city": "Zürich", "days": 2, "exact": True, "tags": ["a\"b", None], "q": 0.5}
TURNS = [
    SYSTEM,
    message("user", "Hi \U0001f996"),
    message("assistant", " Hello. "),
    message("user", "<|im_end|> 'quotes' \"and\"\n\n\ttabs  "),
    message("assistant", "<think>\nHm.\n</think>\n\nYes."),
    message("user", "And now?"),
]


def used(arguments, content):
    return [
        USER,
        message("assistant", content, tool_calls=[call("get_weather", arguments)]),
        message("tool", '{"temperature": 21.5}', name="get_weather", tool_call_id="call00001"),
    ]


TWO_CALLS = [
    SYSTEM,
    USER,
    message(
        "assistant",
        "I look.",
        tool_calls=[
            call("get_weather", ARGUMENTS),
            call("add", {"a": 12345678901234567, "b": -1e-7}, "call00002"),
        ],
    ),
    message("tool", "sunny", name="get_weather", tool_call_id="call00001"),
    message("tool", "3", name="add", tool_call_id="call00002"),
    message("assistant", "Sunny."),
    message("user", "Thanks!"),
]


def conversation(messages, prompt=True, **kwargs):
    return {"messages": messages, "add_generation_prompt": prompt, "kwargs": kwargs}


CONVERSATIONS = {
    "user": conversation([USER]),
    "user, no prompt": conversation([USER], False),
    "system": conversation([SYSTEM, USER]),
    "turns": conversation(TURNS),
    "turns, no prompt": conversation(TURNS, False),
    "thinking": conversation(TURNS, enable_thinking=True, thinking=True),
    "no thinking": conversation(TURNS, enable_thinking=False, thinking=False),
    "effort": conversation([USER], reasoning_effort="high", thinking_budget=512),
    "reasoning": conversation(
        [USER, message("assistant", "Rain.", reasoning_content="Clouds\n"), USER]
    ),
    "assistant last": conversation([USER, message("assistant", "It is")], False),
    "parts": conversation([message("user", [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}])]),
    "tools": conversation([USER], tools=TOOLS),
    "tools, system": conversation([SYSTEM, USER], tools=TOOLS),
    "no tools": conversation([USER], tools=[]),
    "call": conversation(used(ARGUMENTS, ""), tools=TOOLS),
    "call, null": conversation(used(ARGUMENTS, None), tools=TOOLS),
    "call, text": conversation(used(json.dumps(ARGUMENTS), ""), tools=TOOLS),
    "two calls": conversation(TWO_CALLS, tools=TOOLS),
    "two calls, no prompt": conversation(TWO_CALLS, False, tools=TOOLS),
    "documents": conversation([USER], documents=[{"title": "A", "text": "Rain & <sun>"}]),
    "roles": conversation([message("developer", "Be kind."), USER]),
    "alternate": conversation([USER, USER]),
    "empty": conversation([]),
    "no content": conversation([{"role": "user"}]),
}


def render(template, messages, add_generation_prompt, kwargs):
    """The text, or what the template raised, or None where it fails."""
    if "strftime_now" in template:
        template = DATES + template
    try:
        ((text,), _) = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **(TOKENS | kwargs),
        )
        return {"text": text}
    except (TemplateRuntimeError, TemplateSyntaxError):
        return None
    except TemplateError as error:
        return {"raises": str(error)}
    except Exception:
        return None


def digest(rendered):
    if rendered and "text" in rendered:
        return hashlib.sha256(rendered["text"].encode()).hexdigest()[:32]
    return rendered


def main(folder, *one):
    templates = {path.stem: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    if one:
        template, name = one
        print(render(templates[template], **CONVERSATIONS[name]))
        return
    corpus = {
        name: {key: digest(render(template, **c)) for key, c in CONVERSATIONS.items()}
        for name, template in templates.items()
    }
    snippets = []
    for template in SNIPPETS:
        rendered = render(template, **CONVERSATIONS["two calls"])
        text = rendered["text"] if rendered and "text" in rendered else None
        snippets.append([template, text])
    whole = {"tokens": TOKENS, "dates": DATES, "conversations": CONVERSATIONS}
    json.dump(whole | {"corpus": corpus, "snippets": snippets}, sys.stdout, indent=1)
    print()


main(Path(sys.argv[1]), *sys.argv[2:])
