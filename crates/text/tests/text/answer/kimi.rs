//! `<|tool_calls_section_begin|>`.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{Part, both, check, text, thought};

fn call(name: &str, id: &str, arguments: &str) -> Part {
    let (name, id, arguments) = (name.to_owned(), Some(id.to_owned()), arguments.to_owned());
    Part::Call { name, id, arguments, is_complete: true }
}

fn cut(name: &str, id: &str, arguments: &str) -> Part {
    let (name, id, arguments) = (name.to_owned(), Some(id.to_owned()), arguments.to_owned());
    Part::Call { name, id, arguments, is_complete: false }
}

#[test]
fn kimi_calls() {
    const BEGIN: &str = "<|tool_calls_section_begin|>";
    const END: &str = "<|tool_calls_section_end|>";
    let written = |id: &str, arguments: &str| {
        format!("<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>")
    };
    let nested = r#"{"a": {"b": [1, {}]}, "s": "}; <|tool_call_end|> \" \ud83d\ude00 é🦖"}"#;
    check(
        both(ToolFormat::KimiK2, ReasoningFormat::Qwen3),
        &[
            ("Hello <|tool", &[text("Hello <|tool")]),
            (
                &format!("{BEGIN}{}{END}", written("functions.f:0", "{\"a\": 1}")),
                &[call("f", "functions.f:0", "{\"a\": 1}")],
            ),
            (
                &format!(
                    "I do.{BEGIN}\n{}\n{}\n{END}\nDone.",
                    written(" functions.f:0 ", " {} "),
                    written("functions.g.h:1", nested)
                ),
                &[
                    text("I do."),
                    call("f", "functions.f:0", "{}"),
                    call("g.h", "functions.g.h:1", nested),
                    text("\nDone."),
                ],
            ),
            (&written("functions.f:0", ""), &[call("f", "functions.f:0", "{}")]),
            (
                "<|tool_call_begin|>functions.f:0<|tool_call_end|>",
                &[call("f", "functions.f:0", "{}")],
            ),
            (&written("a:b", "{}"), &[call("a:b", "a:b", "{}")]),
            (
                &format!("<think>Well{BEGIN}{}{END}", written("f:0", "{}")),
                &[thought("Well"), call("f", "f:0", "{}")],
            ),
            (
                &format!("<think>Well</think>{BEGIN}{}{END}", written("f:0", "{}")),
                &[thought("Well"), call("f", "f:0", "{}")],
            ),
            ("<|tool_call_begin|>functions.f", &[text("<|tool_call_begin|>functions.f")]),
            (
                "<|tool_call_begin|>f:0<|tool_call_argument_begin|>{\"a\": [",
                &[cut("f", "f:0", "{\"a\": [")],
            ),
            (&written("f:0", "{a}"), &[cut("f", "f:0", "{"), text("a}<|tool_call_end|>")]),
            (&written("", "{}"), &[text(&written("", "{}"))]),
        ],
    );
}
