//! `<｜tool▁calls▁begin｜>`.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{both, call, calls, check, cut, text, thought};

const BEGIN: &str = "<｜tool▁calls▁begin｜>";
const END: &str = "<｜tool▁calls▁end｜>";

fn v3(name: &str, arguments: &str) -> String {
    format!(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"
    )
}

fn v31(name: &str, arguments: &str) -> String {
    format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>")
}

#[test]
fn deepseek_calls() {
    for (format, written) in
        [(ToolFormat::DeepSeekV3, v3 as fn(&str, &str) -> String), (ToolFormat::DeepSeekV31, v31)]
    {
        let nested =
            r#"{"a": {"b": [1, {}]}, "s": "}; ``` <｜tool▁call▁end｜> \" \ud83d\ude00 é🦖"}"#;
        let setting = calls(format);
        check(
            setting,
            &[
                ("a ｜ b <｜tool", &[text("a ｜ b <｜tool")]),
                (
                    &format!("{BEGIN}{}{END}", written("f", "{\"a\": 1}")),
                    &[call("f", "{\"a\": 1}")],
                ),
                (
                    &format!(
                        "I do.\n{BEGIN}{}\n{}{END} Done.",
                        written("f", "{}"),
                        written("g", nested)
                    ),
                    &[text("I do.\n"), call("f", "{}"), call("g", nested), text(" Done.")],
                ),
                // Without the frame, and without arguments.
                (&written("f", "{}"), &[call("f", "{}")]),
                (&format!("{BEGIN}{}{END}", written("f", "")), &[call("f", "{}")]),
                (&format!("{BEGIN}<｜tool▁call▁begin｜>"), &[text("<｜tool▁call▁begin｜>")]),
                (&format!("{BEGIN}no{END}"), &[text(&format!("no{END}"))]),
                (&format!("```\n{BEGIN}{}", written("f", "{}")), &[text("```\n"), call("f", "{}")]),
            ],
        );
        let broken = written("f", "{\"a\": b}");
        let rest = &broken[broken.find("b}").expect("it is there")..];
        setting.check(&broken, &[cut("f", "{\"a\": "), text(rest)]);
        let whole = written("f", "{\"a\": \"bc\"}");
        let end = whole.find("c\"}").expect("it is there");
        setting.check(&whole[..end], &[cut("f", "{\"a\": \"b")]);
        let end = whole.find("<｜tool▁sep").expect("it is there");
        setting.check(&whole[..end], &[text(&whole[..end])]);
    }
    check(
        calls(ToolFormat::DeepSeekV3),
        &[
            (
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```yaml",
                &[cut("f", ""), text("```yaml")],
            ),
            (
                "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{\"a\": 1}<｜tool▁call▁end｜>",
                &[call("f", "{\"a\": 1}")],
            ),
        ],
    );
}

#[test]
fn deepseek_calls_after_reasoning() {
    check(
        both(ToolFormat::DeepSeekV3, ReasoningFormat::DeepSeekR1),
        &[
            (
                &format!("I think\n</think>\n\n{BEGIN}{}{END}", v3("f", "{}")),
                &[thought("I think"), call("f", "{}")],
            ),
            (
                &format!("<think>\nI think\n{BEGIN}{}{END}", v3("f", "{}")),
                &[thought("I think"), call("f", "{}")],
            ),
        ],
    );
}
