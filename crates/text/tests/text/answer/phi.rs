//! An array after `functools` or `<|tool_call|>`.

use sconce_text::ToolFormat;

use super::{call, calls, check, cut, text};

#[test]
fn phi_calls() {
    check(
        calls(ToolFormat::Phi4MiniJson),
        &[
            ("import functools; [1]", &[text("import functools; [1]")]),
            ("functools[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]", &[call("f", "{\"a\": 1}")]),
            (
                "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]<|/tool_call|>",
                &[call("f", "{\"a\": 1}")],
            ),
            (
                "I do. functools[\n  {\"name\": \"f\", \"arguments\": {}},\n  {\"name\": \"g\", \"arguments\": {\"x\": [{}]}}\n] Done.",
                &[text("I do. "), call("f", "{}"), call("g", "{\"x\": [{}]}"), text(" Done.")],
            ),
            ("functools[{\"name\": \"f\"}]", &[call("f", "{}")]),
            ("functools[{\"name\": \"f\"},]", &[call("f", "{}")]),
            (
                "functools[{\"parameters\": {\"a\": 1}, \"name\": \"f\"}]",
                &[call("f", "{\"a\": 1}")],
            ),
            (
                r#"functools[{"name": "f", "arguments": {"s": "]}; functools[ \" \ud83d\ude00 é🦖"}}]"#,
                &[call("f", r#"{"s": "]}; functools[ \" \ud83d\ude00 é🦖"}"#)],
            ),
            ("functo", &[text("functo")]),
            ("functools[{\"name\": \"f\"", &[cut("f", "")]),
            ("functools[{\"name\": \"f\", \"arguments\": {\"a\": tr", &[cut("f", "{\"a\": tr")]),
            ("functools[{\"name\": \"f\"} and", &[call("f", "{}"), text(" and")]),
            ("functools[1, 2]", &[text("functools[1, 2]")]),
            (
                "functools[{\"name\": \"f\", \"arguments\": {\"a\": .5}}]",
                &[cut("f", "{\"a\": "), text(".5}}]")],
            ),
        ],
    );
}
