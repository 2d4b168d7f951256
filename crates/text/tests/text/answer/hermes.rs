//! JSON in `<tool_call>`.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{both, call, calls, check, cut, text, thought};

#[test]
fn hermes_calls() {
    check(
        calls(ToolFormat::Hermes),
        &[
            ("Hello { \"a\": 1 }", &[text("Hello { \"a\": 1 }")]),
            (
                "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
                &[call("get_weather", "{\"city\": \"Paris\"}")],
            ),
            (
                "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\nDone.",
                &[text("Let me see.\n"), call("f", "{}"), text("\nDone.")],
            ),
            (
                "\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, -2.5e3, null]}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {\"b\":{\"c\":{}}}}\n</tool_call>\n",
                &[call("f", "{\"a\": [1, -2.5e3, null]}"), call("g", "{\"b\":{\"c\":{}}}")],
            ),
            ("a<tool_call>{\"name\":\"f\"}</tool_call>b", &[text("a"), call("f", "{}"), text("b")]),
            (
                "<tool_call>{\"arguments\": {\"x\": true}, \"name\": \"f\", \"id\": 7}</tool_call>",
                &[call("f", "{\"x\": true}")],
            ),
            ("<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>", &[call("f", "{}")]),
            (
                r#"<tool_call>{"name": "f", "arguments": {"s": "</tool_call> } ; \" \\ [ <tool_call>"}}</tool_call>"#,
                &[call("f", r#"{"s": "</tool_call> } ; \" \\ [ <tool_call>"}"#)],
            ),
            (
                r#"<tool_call>{"name": "f\u00e9", "arguments": {"s": "\ud83d\ude00 é 🦖"}}</tool_call>"#,
                &[call("fé", r#"{"s": "\ud83d\ude00 é 🦖"}"#)],
            ),
            (
                r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>"#,
                &[call("f", r#""{\"a\": 1}""#)],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": \"a\n\tb\"}}</tool_call>",
                &[call("f", "{\"s\": \"a\\n\\tb\"}")],
            ),
            // Cut.
            ("Yes <tool_ca", &[text("Yes <tool_ca")]),
            ("<tool_call>\n{\"na", &[text("<tool_call>\n{\"na")]),
            ("<tool_call>\n{\"name\": \"f", &[text("<tool_call>\n{\"name\": \"f")]),
            ("<tool_call>\n{\"name\": \"f\"", &[cut("f", "")]),
            (
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"b",
                &[cut("f", "{\"a\": \"b")],
            ),
            ("<tool_call>\n{\"name\": \"f\", \"arguments\": {}", &[cut("f", "{}")]),
            (
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool",
                &[call("f", "{}"), text("\n</tool")],
            ),
            // Broken.
            (
                "<tool_call>no</tool_call> <tool_call>{\"name\": \"f\"}</tool_call>",
                &[text("<tool_call>no</tool_call> "), call("f", "{}")],
            ),
            (
                "<tool_call><tool_call>{\"name\": \"f\"}</tool_call>",
                &[text("<tool_call>"), call("f", "{}")],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": oops}}</tool_call>",
                &[cut("f", "{\"a\": "), text("oops}}</tool_call>")],
            ),
            (
                "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>",
                &[text("<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>")],
            ),
            (
                "<tool_call>{\"arguments\": {\"a\": 01}}</tool_call>",
                &[text("<tool_call>{\"arguments\": {\"a\": 01}}</tool_call>")],
            ),
            (
                "<tool_call>{\"arguments\": {}}</tool_call>",
                &[text("<tool_call>{\"arguments\": {}}</tool_call>")],
            ),
        ],
    );
}

#[test]
fn hermes_calls_after_reasoning() {
    check(
        both(ToolFormat::Hermes, ReasoningFormat::Qwen3),
        &[
            (
                "<think>\nI call <tool_call>.\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"<think>\"}}\n</tool_call>",
                &[thought("I call <tool_call>."), call("f", "{\"a\": \"<think>\"}")],
            ),
            (
                "<think>\n\n</think>\n\nOf course.<tool_call>{\"name\": \"f\"}</tool_call>\n<think>More</think> end",
                &[text("Of course."), call("f", "{}"), thought("More"), text("end")],
            ),
        ],
    );
}
