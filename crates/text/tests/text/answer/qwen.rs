//! `<function=…><parameter=…>`.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{both, call, calls, check, cut, text, thought};

#[test]
fn qwen_coder_calls() {
    check(
        calls(ToolFormat::Qwen3Xml),
        &[
            ("a < b > c", &[text("a < b > c")]),
            (
                "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
                &[call("get_weather", "{\"city\":\"Paris\",\"days\":3}")],
            ),
            (
                "Now.\n<tool_call>\n<function=get_time>\n</function>\n</tool_call>\nThen.",
                &[text("Now.\n"), call("get_time", "{}"), text("\nThen.")],
            ),
            (
                "<tool_call><function=get_time></function></tool_call>\n<tool_call><function=f><parameter=x>1</parameter></function></tool_call>",
                &[call("get_time", "{}"), call("f", "{\"x\":1}")],
            ),
            // Without the outer tag, and two in one.
            (
                "Yes.\n<function=get_time>\n</function>\n</tool_call>",
                &[text("Yes.\n"), call("get_time", "{}")],
            ),
            (
                "<tool_call>\n<function=get_time>\n</function>\n<function=f>\n</function>\n</tool_call>",
                &[call("get_time", "{}"), call("f", "{}")],
            ),
            (
                "<tool_call>\n<function=run>\n<parameter=code>\nif a < b and \"}\" in s:\n\n    print('</function>; \\n </param')\n\n</parameter>\n</function>\n</tool_call>",
                &[call(
                    "run",
                    "{\"code\":\"if a < b and \\\"}\\\" in s:\\n\\n    print('</function>; \\\\n </param')\\n\"}",
                )],
            ),
            (
                "<tool_call>\n<function=run>\n<parameter=options>\n{\"a\": {\"b\": [1, \"</tool_call>\"]}}\n</parameter>\n<parameter=tags>\n['x', True]\n</parameter>\n<parameter=flag>\nTrue\n</parameter>\n<parameter=ratio>\nNone\n</parameter>\n</function>\n</tool_call>",
                &[call(
                    "run",
                    "{\"options\":{\"a\": {\"b\": [1, \"</tool_call>\"]}},\"tags\":[\"x\",true],\"flag\":true,\"ratio\":null}",
                )],
            ),
            // Types: what is a string stays one, what is nothing else becomes one.
            (
                "<tool_call>\n<function=get_weather>\n<parameter=city>\n75001\n</parameter>\n<parameter=days>\na few\n</parameter>\n<parameter=unit>\nC\n</parameter>\n<parameter=note>\nnull\n</parameter>\n</function>\n</tool_call>",
                &[call(
                    "get_weather",
                    "{\"city\":\"75001\",\"days\":\"a few\",\"unit\":\"C\",\"note\":null}",
                )],
            ),
            (
                "<tool_call>\n<function=run>\n<parameter=any>\nfree \"text\"\n</parameter>\n<parameter=other>\n[1]\n</parameter>\n</function>\n</tool_call>",
                &[call("run", "{\"any\":\"free \\\"text\\\"\",\"other\":[1]}")],
            ),
            (
                "<tool_call>\n<function=get_weather>\n<parameter=city>\n\\ud83d\\ude00 é 🦖\n</parameter>\n</function>\n</tool_call>",
                &[call("get_weather", "{\"city\":\"\\\\ud83d\\\\ude00 é 🦖\"}")],
            ),
            (
                "<tool_call>\n<function=get_weather>\n<parameter=city>\n</parameter>\n<parameter=note>\n\n</parameter>\n</function>\n</tool_call>",
                &[call("get_weather", "{\"city\":\"\",\"note\":\"\"}")],
            ),
            // Cut.
            ("<tool_call>\n<function=get", &[text("<tool_call>\n<function=get")]),
            ("<tool_call>\n<function=get_time>\n<param", &[cut("get_time", "")]),
            (
                "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar</param",
                &[cut("get_weather", "{\"city\":\"Par</param")],
            ),
            (
                "<tool_call>\n<function=get_weather>\n<parameter=days>\n12",
                &[cut("get_weather", "{\"days\":12")],
            ),
            (
                "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</func",
                &[cut("get_weather", "{\"city\":\"Paris\"")],
            ),
            // Broken.
            ("<tool_call>\n{\"name\": \"f\"}", &[text("<tool_call>\n{\"name\": \"f\"}")]),
            (
                "<tool_call>\n<parameter=a>\n1</parameter>",
                &[text("<tool_call>\n<parameter=a>\n1</parameter>")],
            ),
            (
                "<function=f>\n<parameter=a>\n1\n</parameter>\n<b>x</b></function>",
                &[cut("f", "{\"a\":1"), text("\n<b>x</b></function>")],
            ),
        ],
    );
}

#[test]
fn qwen_coder_calls_after_reasoning() {
    check(
        both(ToolFormat::Qwen3Xml, ReasoningFormat::Qwen3),
        &[(
            "<think>\nHm.\n</think>\n\n<tool_call>\n<function=run>\n<parameter=code>\n</think>\n</parameter>\n</function>\n</tool_call>",
            &[thought("Hm."), call("run", "{\"code\":\"</think>\"}")],
        )],
    );
}
