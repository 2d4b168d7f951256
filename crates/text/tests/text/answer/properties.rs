//! Answers that are broken at random.

use proptest::prelude::*;
use sconce_text::{ReasoningFormat, ToolFormat};

use super::{Part, Setting, WRITTEN, call, calls};

/// Formats with pieces of their answers.
const FORMATS: &[(ToolFormat, ReasoningFormat, &[&str])] = &[
    (ToolFormat::Hermes, ReasoningFormat::Qwen3, &["<tool_call>", "</tool_call>"]),
    (
        ToolFormat::Qwen3Xml,
        ReasoningFormat::Qwen3,
        &[
            "<tool_call>",
            "<function=run>",
            "<parameter=code>",
            "<parameter=tags>",
            "</parameter>",
            "</function>",
            "</tool_call>",
        ],
    ),
    (ToolFormat::Llama3Json, ReasoningFormat::Qwen3, &["<|python_tag|>", ";"]),
    (
        ToolFormat::Pythonic,
        ReasoningFormat::Qwen3,
        &["[f(", "a=", "'b'", ")", "]", "<|python_start|>"],
    ),
    (ToolFormat::Mistral, ReasoningFormat::Mistral, &["[TOOL_CALLS]", "f[ARGS]", "[CALL_ID]"]),
    (
        ToolFormat::DeepSeekV3,
        ReasoningFormat::DeepSeekR1,
        &[
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
            "\n```<｜tool▁call▁end｜>",
        ],
    ),
    (
        ToolFormat::DeepSeekV31,
        ReasoningFormat::Qwen3,
        &["<｜tool▁call▁begin｜>", "f<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
    ),
    (
        ToolFormat::Gemma3,
        ReasoningFormat::Qwen3,
        &["```tool_code\n", "f(", "a=", "'b'", ")", "```"],
    ),
    (
        ToolFormat::Gemma4,
        ReasoningFormat::Gemma4,
        &[
            "<|tool_call>",
            "call:f{",
            "a:",
            "<|\"|>",
            "<tool_call|>",
            "<|channel>thought\n",
            "<channel|>",
        ],
    ),
    (
        ToolFormat::OpenAi,
        ReasoningFormat::OpenAiGptOss,
        &[
            "<|channel|>",
            "<|start|>",
            "<|message|>",
            "<|call|>",
            "<|end|>",
            "analysis",
            "commentary to=functions.f ",
        ],
    ),
    (
        ToolFormat::Glm45,
        ReasoningFormat::Qwen3,
        &[
            "<tool_call>",
            "run",
            "<arg_key>",
            "tags",
            "code",
            "</arg_key>",
            "<arg_value>",
            "</arg_value>",
            "</tool_call>",
        ],
    ),
    (
        ToolFormat::KimiK2,
        ReasoningFormat::Qwen3,
        &[
            "<|tool_calls_section_begin|>",
            "<|tool_call_begin|>",
            "functions.f:0",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ],
    ),
    (ToolFormat::Phi4MiniJson, ReasoningFormat::Qwen3, &["functools[", "<|tool_call|>[", "]"]),
];

/// Pieces of all of them.
const PIECES: &[&str] = &[
    "{\"name\": \"f\", \"arguments\": ",
    "{\"a\": [1, \"x\"]}",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ",",
    ":",
    ";",
    "'",
    "0",
    "-1.5e3",
    "null",
    "True",
    " ",
    "\n",
    "é",
    "🦖",
    "\\ud83d",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "text",
];

/// What an answer's parts carry.
fn content(parts: &[Part]) -> String {
    let content = parts.iter().map(|part| match part {
        Part::Text(text) | Part::Reasoning(text) => text.clone(),
        Part::Call { name, id, arguments, .. } => {
            format!("{}{arguments}", id.as_ref().unwrap_or(name))
        }
    });
    content.collect()
}

/// Pieces in a row, of which one in four is cut short.
fn answers() -> impl Strategy<Value = (usize, String)> {
    (0..FORMATS.len()).prop_flat_map(|index| {
        let own = FORMATS[index].2;
        let piece = (any::<prop::sample::Index>(), 0..4_u8, any::<prop::sample::Index>());
        let answer = prop::collection::vec(piece, 0..14).prop_map(move |pieces| {
            let text = pieces.iter().map(|(which, kind, cut)| {
                let from = if *kind < 2 { own } else { PIECES };
                let text = *which.get(from);
                let ends: Vec<_> = text.char_indices().map(|(at, _)| at).collect();
                if *kind == 3 { &text[..*cut.get(&ends)] } else { text }
            });
            text.collect::<String>()
        });
        (Just(index), answer)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Nothing panics, the pieces an answer comes in do not matter, nothing is made up
    /// and nothing lost.
    #[test]
    fn broken_answers(
        (index, answer) in answers(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        splits in any::<bool>(),
    ) {
        let (format, reasoning, _) = FORMATS[index];
        let reasoning = splits.then_some(reasoning);
        let setting = Setting { reasoning, ..calls(format) };
        let whole = setting.parts([answer.as_str()]);
        let ends = answer.char_indices().map(|(at, c)| at..at + c.len_utf8());
        prop_assert_eq!(&setting.parts(ends.map(|c| &answer[c])), &whole);
        let mut places: Vec<_> = answer.char_indices().map(|(at, _)| at).collect();
        places.push(answer.len());
        let mut cuts: Vec<_> = cuts.iter().map(|cut| *cut.get(&places)).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        prop_assert_eq!(&setting.parts(cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]])), &whole);
        // Of these no marker is made. Where there is no call all of them come out; a call
        // that is cut may lose a key, and Harmony's headers are not shown.
        let is_call = |part: &Part| matches!(part, Part::Call { .. });
        let may_lose = whole.iter().any(is_call) || format == ToolFormat::OpenAi;
        let given = content(&whole);
        // Python's `1.` and `.5` have a zero more in JSON.
        let is_python = matches!(format, ToolFormat::Pythonic | ToolFormat::Gemma3);
        for c in ['🦖', 'é', '0', ';'].into_iter().filter(|&c| c != '0' || !is_python) {
            let (given, written) = (given.matches(c).count(), answer.matches(c).count());
            prop_assert!(given == written || may_lose && given < written, "{} of {}", given, c);
        }
    }

    /// Calls with text around them come out as they were written, in order.
    #[test]
    fn whole_answers(
        index in 0..WRITTEN.len(),
        parts in prop::collection::vec(("[a-zé🦖.,!]( ?[a-zé🦖.,!;]){0,8}", "[a-z0é🦖 {}(),;:<>|`\\[\\]]{1,12}"), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let (format, written) = WRITTEN[index];
        // Harmony's text has its channel.
        let (before, after) = match format {
            ToolFormat::OpenAi => ("<|start|>assistant<|channel|>final<|message|>", "<|end|>"),
            _ => ("", ""),
        };
        let (mut answer, mut expected) = (String::new(), Vec::new());
        for (text, code) in &parts {
            answer += &format!("{before}{text}{after}{}", written(code));
            expected.push(Part::Text(text.clone()));
            expected.push(call("run", &format!("{{\"code\":\"{code}\"}}")));
        }
        let places: Vec<_> = answer.char_indices().map(|(at, _)| at).collect();
        let (first, second) = answer.split_at(*cut.get(&places));
        let mut parts = calls(format).parts([first, second]);
        for part in &mut parts {
            if let Part::Call { id, .. } = part {
                *id = None;
            }
        }
        prop_assert_eq!(&parts, &expected);
    }
}
