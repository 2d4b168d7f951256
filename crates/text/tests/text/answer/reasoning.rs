//! Where reasoning begins and ends.

use sconce_text::{ReasoningFormat, ToolFormat};

use super::{Setting, check, text, thought};

fn reasoning(format: ReasoningFormat, prompt_end: &'static str) -> Setting {
    Setting { tools: None, reasoning: Some(format), prompt_end, is_form: false }
}

#[test]
fn reasoning_is_split_from_text() {
    check(
        reasoning(ReasoningFormat::Qwen3, "<|im_start|>assistant\n"),
        &[
            ("Yes.", &[text("Yes.")]),
            ("  Yes.\n\n", &[text("  Yes.\n\n")]),
            ("", &[]),
            ("\n ", &[text("\n ")]),
            ("<think>\nHm.\n\nSo.\n</think>\n\nYes.\n", &[thought("Hm.\n\nSo."), text("Yes.\n")]),
            ("\n<think>Hm.</think>Yes.", &[thought("Hm."), text("Yes.")]),
            ("<think>\n\n</think>\n\nYes.", &[text("Yes.")]),
            ("<think>a <think> b</think>c", &[thought("a <think> b"), text("c")]),
            (
                "<think>a</think>b<think>c</think>d",
                &[thought("a"), text("b"), thought("c"), text("d")],
            ),
            ("a </think> b", &[text("a </think> b")]),
            ("<think>é🦖</thin", &[thought("é🦖</thin")]),
            ("<think>a\n", &[thought("a\n")]),
            (
                "<think>{\"name\": \"f\"}</think>{\"a\": 1}",
                &[thought("{\"name\": \"f\"}"), text("{\"a\": 1}")],
            ),
        ],
    );
}

#[test]
fn an_answer_may_begin_within_reasoning() {
    for (format, prompt_end) in [
        (ReasoningFormat::Qwen3, "<|im_start|>assistant\n<think>\n"),
        (ReasoningFormat::Qwen3, "<think>"),
        (ReasoningFormat::DeepSeekR1, "<think>\n"),
        (ReasoningFormat::DeepSeekR1, "<｜Assistant｜>"),
    ] {
        check(
            reasoning(format, prompt_end),
            &[
                ("Hm.\n</think>\n\nYes.", &[thought("Hm."), text("Yes.")]),
                ("\n<think>\nHm.</think>Yes.", &[thought("Hm."), text("Yes.")]),
                ("Hm.", &[thought("Hm.")]),
                ("</think>Yes.", &[text("Yes.")]),
            ],
        );
    }
    for format in [ReasoningFormat::Qwen3, ReasoningFormat::DeepSeekR1] {
        for prompt_end in ["<think>\n\n</think>\n\n", "<｜Assistant｜></think>"] {
            reasoning(format, prompt_end).check("Yes.", &[text("Yes.")]);
        }
    }
    reasoning(ReasoningFormat::Mistral, "").check("[THINK]a[/THINK]b", &[thought("a"), text("b")]);
}

#[test]
fn what_is_not_asked_for_is_text() {
    let answer = "<think>a</think><tool_call>{\"name\": \"f\"}</tool_call>";
    let plain = Setting { reasoning: None, ..reasoning(ReasoningFormat::Qwen3, "<think>\n") };
    plain.check(answer, &[text(answer)]);
    let calls = Setting { tools: Some(ToolFormat::Hermes), ..plain };
    calls.check("<think>a</think>", &[text("<think>a</think>")]);
}
