//! `[f(a=1), g()]` and blocks of `tool_code`.

use sconce_text::ToolFormat;

use super::{call, calls, check, cut, text};

#[test]
fn pythonic_calls() {
    check(
        calls(ToolFormat::Pythonic),
        &[
            (
                "A [list](https://example.org) [1, 2] [] [x] f(1)",
                &[text("A [list](https://example.org) [1, 2] [] [x] f(1)")],
            ),
            (
                "[get_weather(city='Paris', days=3)]",
                &[call("get_weather", "{\"city\":\"Paris\",\"days\":3}")],
            ),
            (
                "<|python_start|>[f(a=1), g()]<|python_end|>",
                &[call("f", "{\"a\":1}"), call("g", "{}")],
            ),
            ("<|tool_call_start|>[f( )]<|tool_call_end|>Done", &[call("f", "{}"), text("Done")]),
            (
                "Sure.\n[ f(a=None),\n  g.h(b = True, c=False,) ]\nDone.",
                &[
                    text("Sure.\n"),
                    call("f", "{\"a\":null}"),
                    call("g.h", "{\"b\":true,\"c\":false}"),
                    text("\nDone."),
                ],
            ),
            (
                "[f(a=[1, -2.5, [], (3, 'x')], b={'c': {\"d\": []}, 'e': {}})]",
                &[call("f", "{\"a\":[1,-2.5,[],[3,\"x\"]],\"b\":{\"c\":{\"d\":[]},\"e\":{}}}")],
            ),
            (
                "[f(a='it\\'s ) ] ; \"q\" \\\\', b=\"it's\", c='', d=\"\"\"long \"one\"\n\"\"\")]",
                &[call(
                    "f",
                    "{\"a\":\"it's ) ] ; \\\"q\\\" \\\\\",\"b\":\"it's\",\"c\":\"\",\"d\":\"long \\\"one\\\"\\n\"}",
                )],
            ),
            (
                "[f(a='\\ud83d\\ude00 \\x41\\u00e9\\U0001F996 \\d\\n é🦖')]",
                &[call("f", "{\"a\":\"\\ud83d\\ude00 Aé🦖 \\\\d\\n é🦖\"}")],
            ),
            (
                "[f(a=1_000, b=.5, c=2., d=+3, e=1e5, f=-0.0)]",
                &[call("f", "{\"a\":1000,\"b\":0.5,\"c\":2.0,\"d\":3,\"e\":1e5,\"f\":-0.0}")],
            ),
            ("[f(x='<|python_end|>')]", &[call("f", "{\"x\":\"<|python_end|>\"}")]),
            // Cut.
            ("[get_wea", &[text("[get_wea")]),
            ("[f(", &[text("[f(")]),
            ("[f(cit", &[text("[f(cit")]),
            ("[f(a='Par", &[cut("f", "{\"a\":\"Par")]),
            ("[f(a=12", &[cut("f", "{\"a\":12")]),
            ("[f(a=1), g", &[call("f", "{\"a\":1}"), text(", g")]),
            // Broken.
            ("[f('Paris')]", &[text("[f('Paris')]")]),
            ("[f(a=x)]", &[cut("f", "{\"a\":"), text("x)]")]),
            ("[f(a=1 b=2)]", &[cut("f", "{\"a\":1"), text("b=2)]")]),
            ("[f(a={1, 2})]", &[cut("f", "{\"a\":{"), text("1, 2})]")]),
            ("[[f(a=1)]", &[text("["), call("f", "{\"a\":1}")]),
        ],
    );
}

#[test]
fn tool_code_calls() {
    check(
        calls(ToolFormat::Gemma3),
        &[
            (
                "Some `code` and ```rust\nfn f() {}\n```",
                &[text("Some `code` and ```rust\nfn f() {}\n```")],
            ),
            (
                "```tool_code\nget_weather(city=\"Paris\")\n```",
                &[call("get_weather", "{\"city\":\"Paris\"}")],
            ),
            (
                "I do.\n```tool_code\nf(a=1)\ng()\n```\nDone.",
                &[text("I do.\n"), call("f", "{\"a\":1}"), call("g", "{}"), text("\nDone.")],
            ),
            ("```tool_code\n[f(a=1), g()]\n```", &[call("f", "{\"a\":1}"), call("g", "{}")]),
            ("```tool_code\nf(a=1); g()```", &[call("f", "{\"a\":1}"), call("g", "{}")]),
            (
                "```tool_code\nf()\n```\n```tool_code\ng()\n```\n",
                &[call("f", "{}"), call("g", "{}")],
            ),
            (
                "```tool_code\nf(s='```\\n) }', t={'a': [1]})\n```",
                &[call("f", "{\"s\":\"```\\n) }\",\"t\":{\"a\":[1]}}")],
            ),
            (
                "```tool_code\nf(s='é 🦖 \\ud83d\\ude00')\n```",
                &[call("f", "{\"s\":\"é 🦖 \\ud83d\\ude00\"}")],
            ),
            // Cut.
            ("```tool_co", &[text("```tool_co")]),
            ("```tool_code\nf(", &[text("```tool_code\nf(")]),
            ("```tool_code\nf(a=[1, 2", &[cut("f", "{\"a\":[1,2")]),
            ("```tool_code\nf()\n``", &[call("f", "{}"), text("\n``")]),
            // Broken.
            ("```tool_code\nprint('x')\n```", &[text("```tool_code\nprint('x')\n```")]),
            ("```tool_code\nx = 1\n```", &[text("```tool_code\nx = 1\n```")]),
            ("```tool_code\nf(a=1)\n+ 2\n```", &[call("f", "{\"a\":1}"), text("\n+ 2\n```")]),
        ],
    );
}
