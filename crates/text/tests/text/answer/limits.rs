//! Limits, and what is held back.

use sconce_text::{AnswerEvent, ReasoningFormat, ToolFormat};

use super::{Format, Part, Setting, WRITTEN, both, calls};

const MIB: usize = 1 << 20;

/// Bytes that events carry.
fn bytes(events: &[AnswerEvent]) -> usize {
    let bytes = events.iter().map(|event| match event {
        AnswerEvent::Text(text) | AnswerEvent::Reasoning(text) => text.len(),
        AnswerEvent::CallArguments { json, .. } => json.len(),
        AnswerEvent::CallStart { .. } | AnswerEvent::CallEnd { .. } => 0,
    });
    bytes.sum()
}

#[test]
fn arguments_beyond_the_limit_are_text() {
    for (format, written) in WRITTEN {
        let (long, short) = ("x".repeat(MIB + 1), written("y"));
        let parts = calls(format).parts([written(&long).as_str(), short.as_str()]);
        let given: usize = parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.matches('x').count(),
                Part::Call { arguments, is_complete, .. } => {
                    assert!(!is_complete && arguments.len() <= MIB, "{format:?}");
                    arguments.matches('x').count()
                }
                Part::Reasoning(_) => panic!("{format:?} has no reasoning"),
            })
            .sum();
        assert_eq!(given, long.len(), "{format:?}");
        let end = parts.last().cloned().expect("there are parts");
        let Part::Text(text) = end else { panic!("{format:?} ends with {end:?}") };
        let kept = if format == ToolFormat::OpenAi { "{\"code\":\"y\"}" } else { short.as_str() };
        assert!(text.ends_with(kept), "{format:?}: {}", &text[text.len() - 80..]);
    }
}

#[test]
fn calls_beyond_the_limit_are_text() {
    for (format, written) in WRITTEN {
        let parts = calls(format).parts([written("x").repeat(66).as_str()]);
        let calls = parts.iter().filter(|part| matches!(part, Part::Call { .. })).count();
        assert_eq!(calls, 64, "{format:?}");
        let Some(Part::Text(text)) = parts.last() else { panic!("{format:?}: {parts:?}") };
        let kept = match format {
            ToolFormat::OpenAi => "{\"code\":\"x\"}".repeat(2),
            _ => written("x").repeat(2),
        };
        assert_eq!(*text, kept, "{format:?}");
    }
}

#[test]
fn nesting_beyond_the_limit_is_text() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let cases: [Format; 3] = [
        (ToolFormat::Hermes, |a| {
            format!("<tool_call>{{\"name\":\"f\",\"arguments\":{{\"a\":{a}}}}}")
        }),
        (ToolFormat::Pythonic, |a| format!("[f(a={a})]")),
        (ToolFormat::Gemma4, |a| format!("<|tool_call>call:f{{a:{a}}}")),
    ];
    for (format, written) in cases {
        for (depth, fits) in [(127, true), (128, false), (100_000, false)] {
            let parts = calls(format).parts([written(&nested(depth)).as_str()]);
            let Some(Part::Call { arguments, is_complete, .. }) = parts.first() else {
                panic!("{format:?}: {parts:?}")
            };
            assert_eq!(*is_complete, fits, "{format:?} at {depth}");
            assert_eq!(arguments.matches('[').count(), depth.min(127), "{format:?} at {depth}");
        }
    }
}

#[test]
fn arguments_before_the_name_are_limited() {
    let long = "x".repeat(2 * MIB);
    let answer =
        format!("<tool_call>{{\"arguments\":{{\"a\":\"{long}\"}},\"name\":\"f\"}}</tool_call>");
    let parts = calls(ToolFormat::Hermes).parts([answer.as_str()]);
    assert_eq!(parts, [Part::Text(answer)]);
}

#[test]
fn strings_are_sent_as_they_come() {
    for (format, written) in WRITTEN {
        let answer = written(&"x".repeat(100_000));
        let (mut parser, mut sent, mut pushed) = (calls(format).parser(), 0, 0);
        for piece in answer.as_bytes().chunks(4).map(String::from_utf8_lossy) {
            let mut events = Vec::new();
            parser.push(&piece, &mut events);
            sent += bytes(&events);
            pushed += piece.len();
            assert!(pushed < sent + 200, "{format:?}: {sent} of {pushed} bytes are sent");
        }
    }
}

#[test]
fn text_is_sent_as_it_comes() {
    let texts =
        ["word ", "<", "<tool_", "[", "{", "{\"name\": \"", "[TOOL_CALLS", "<|", "``` ", "\n"];
    for (format, _) in WRITTEN {
        for reasoning in [None, Some(ReasoningFormat::Qwen3)] {
            for text in texts {
                let setting = Setting { reasoning, ..calls(format) };
                let (mut parser, mut sent, mut pushed) = (setting.parser(), 0, 0);
                for _ in 0..5_000 {
                    let mut events = Vec::new();
                    parser.push(text, &mut events);
                    sent += bytes(&events);
                    pushed += text.len();
                    let held = pushed - sent;
                    assert!(held < 1_200, "{format:?} holds {held} bytes of {text:?}");
                }
            }
        }
    }
}

#[test]
fn names_are_sent_at_once() {
    let begun = [
        (ToolFormat::Hermes, "<tool_call>\n{\"name\": \"f\""),
        (ToolFormat::Qwen3Xml, "<tool_call>\n<function=f>"),
        (ToolFormat::Llama3Json, "{\"name\": \"f\", \"parameters\": {"),
        (ToolFormat::Llama3Json, "<|python_tag|>{\"name\": \"f\""),
        (ToolFormat::Pythonic, "[f(a="),
        (ToolFormat::Mistral, "[TOOL_CALLS]f[ARGS]"),
        (ToolFormat::DeepSeekV3, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"),
        (ToolFormat::DeepSeekV31, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>"),
        (ToolFormat::Gemma3, "```tool_code\nf("),
        (ToolFormat::Gemma4, "<|tool_call>call:f{"),
        (ToolFormat::OpenAi, "<|channel|>commentary to=functions.f<|message|>"),
        (ToolFormat::Glm45, "<tool_call>f\n"),
        (ToolFormat::KimiK2, "<|tool_call_begin|>f<|tool_call_argument_begin|>"),
        (ToolFormat::Phi4MiniJson, "functools[{\"name\": \"f\""),
    ];
    for (format, text) in begun {
        let (mut parser, mut events) = (both(format, ReasoningFormat::Qwen3).parser(), Vec::new());
        parser.push(text, &mut events);
        let text = if format == ToolFormat::Gemma3 { "a=" } else { "" };
        parser.push(text, &mut events);
        let is_start = |event: &AnswerEvent| matches!(event, AnswerEvent::CallStart { index: 0, name, .. } if name == "f");
        assert!(events.iter().any(is_start), "{format:?}: {events:?}");
    }
}
