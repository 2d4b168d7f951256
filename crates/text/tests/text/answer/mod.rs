//! Answers of the models' formats, split into events: each whole, by character and cut
//! in two at every place.

mod deepseek;
mod form;
mod formats;
mod gemma;
mod glm;
mod grammar;
mod harmony;
mod hermes;
mod kimi;
mod limits;
mod llama;
mod mistral;
mod phi;
mod properties;
mod python;
mod qwen;
mod reasoning;

use std::sync::Arc;

use sconce_text::{AnswerEvent, AnswerParser, AnswerTool, ReasoningFormat, ToolFormat};
use serde_json::json;

/// What an answer came to, with the pieces put together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Reasoning(String),
    Call { name: String, id: Option<String>, arguments: String, is_complete: bool },
}

pub(crate) fn text(text: &str) -> Part {
    Part::Text(text.to_owned())
}

pub(crate) fn thought(text: &str) -> Part {
    Part::Reasoning(text.to_owned())
}

pub(crate) fn call(name: &str, arguments: &str) -> Part {
    let (name, arguments) = (name.to_owned(), arguments.to_owned());
    Part::Call { name, id: None, arguments, is_complete: true }
}

/// A call that ends incomplete.
pub(crate) fn cut(name: &str, arguments: &str) -> Part {
    let (name, arguments) = (name.to_owned(), arguments.to_owned());
    Part::Call { name, id: None, arguments, is_complete: false }
}

/// The tools of the cases. Calls of others are calls too.
pub(crate) fn tools() -> Arc<[AnswerTool]> {
    let tool = |name: &str, parameters| AnswerTool { name: name.to_owned(), parameters };
    Arc::new([
        tool(
            "get_weather",
            Some(json!({
                "type": "object",
                "properties": {
                    "city": { "type": "string" },
                    "days": { "type": "integer" },
                    "unit": { "enum": ["C", "F"] },
                    "note": { "type": ["string", "null"] },
                },
            })),
        ),
        tool("get_time", None),
        tool(
            "run",
            Some(json!({
                "type": "object",
                "properties": {
                    "code": { "type": "string" },
                    "options": { "$ref": "#/$defs/Options" },
                    "tags": { "type": "array" },
                    "flag": { "type": "boolean" },
                    "ratio": { "anyOf": [{ "type": "number" }, { "type": "null" }] },
                    "any": {},
                },
                "$defs": { "Options": { "type": "object" } },
            })),
        ),
    ])
}

/// A format, and a call of `run` in it whose `code` is what is given.
pub(crate) type Format = (ToolFormat, fn(&str) -> String);

/// Calls as the formats write them.
pub(crate) const WRITTEN: [Format; 13] = [
    (ToolFormat::Hermes, |a| {
        format!("<tool_call>{{\"name\":\"run\",\"arguments\":{{\"code\":\"{a}\"}}}}</tool_call>")
    }),
    (ToolFormat::Qwen3Xml, |a| {
        format!("<tool_call><function=run><parameter=code>{a}</parameter></function></tool_call>")
    }),
    (ToolFormat::Llama3Json, |a| {
        format!("{{\"name\":\"run\",\"parameters\":{{\"code\":\"{a}\"}}}}")
    }),
    (ToolFormat::Pythonic, |a| format!("[run(code='{a}')]")),
    (ToolFormat::Mistral, |a| format!("[TOOL_CALLS]run[ARGS]{{\"code\":\"{a}\"}}")),
    (ToolFormat::Mistral, |a| {
        format!("[TOOL_CALLS] [{{\"name\":\"run\",\"arguments\":{{\"code\":\"{a}\"}}}}]")
    }),
    (ToolFormat::DeepSeekV3, |a| {
        format!(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>run\n```json\n{{\"code\":\"{a}\"}}\n```<｜tool▁call▁end｜>"
        )
    }),
    (ToolFormat::Gemma3, |a| format!("```tool_code\nrun(code='{a}')\n```")),
    (ToolFormat::Gemma4, |a| format!("<|tool_call>call:run{{code:<|\"|>{a}<|\"|>}}<tool_call|>")),
    (ToolFormat::OpenAi, |a| {
        format!(
            "<|start|>assistant<|channel|>commentary to=functions.run<|message|>{{\"code\":\"{a}\"}}<|call|>"
        )
    }),
    (ToolFormat::Glm45, |a| {
        format!("<tool_call>run<arg_key>code</arg_key><arg_value>{a}</arg_value></tool_call>")
    }),
    (ToolFormat::KimiK2, |a| {
        format!(
            "<|tool_call_begin|>run<|tool_call_argument_begin|>{{\"code\":\"{a}\"}}<|tool_call_end|>"
        )
    }),
    (ToolFormat::Phi4MiniJson, |a| {
        format!("functools[{{\"name\":\"run\",\"arguments\":{{\"code\":\"{a}\"}}}}]")
    }),
];

/// How an answer is parsed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) tools: Option<ToolFormat>,
    pub(crate) reasoning: Option<ReasoningFormat>,
    pub(crate) prompt_end: &'static str,
    /// Whether the text has a form.
    pub(crate) is_form: bool,
}

/// Calls alone.
pub(crate) fn calls(format: ToolFormat) -> Setting {
    Setting { tools: Some(format), reasoning: None, prompt_end: "", is_form: false }
}

/// Calls and reasoning.
pub(crate) fn both(format: ToolFormat, reasoning: ReasoningFormat) -> Setting {
    Setting { reasoning: Some(reasoning), ..calls(format) }
}

impl Setting {
    pub(crate) fn parser(self) -> AnswerParser {
        let parser = if self.is_form { AnswerParser::of_form } else { AnswerParser::new };
        parser(self.tools, self.reasoning, tools(), self.prompt_end)
    }

    /// What the pieces of an answer come to. Calls must begin, go on and end in order.
    pub(crate) fn parts<'a>(self, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Part> {
        let (mut parser, mut events) = (self.parser(), Vec::new());
        pieces.into_iter().for_each(|piece| parser.push(piece, &mut events));
        parser.finish(&mut events);
        let (mut parts, mut open, mut calls) = (Vec::new(), false, 0);
        for event in events {
            match (event, parts.last_mut()) {
                (AnswerEvent::Text(text), Some(Part::Text(last))) => last.push_str(&text),
                (AnswerEvent::Reasoning(text), Some(Part::Reasoning(last))) => last.push_str(&text),
                (AnswerEvent::Text(text), _) if !open => parts.push(Part::Text(text)),
                (AnswerEvent::Reasoning(text), _) if !open => parts.push(Part::Reasoning(text)),
                (AnswerEvent::CallStart { index, name, id }, _) if !open && index == calls => {
                    open = true;
                    calls += 1;
                    let arguments = String::new();
                    parts.push(Part::Call { name, id, arguments, is_complete: false });
                }
                (
                    AnswerEvent::CallArguments { index, json },
                    Some(Part::Call { arguments, .. }),
                ) if open && index + 1 == calls => arguments.push_str(&json),
                (
                    AnswerEvent::CallEnd { index, is_complete: complete },
                    Some(Part::Call { is_complete, .. }),
                ) if open && index + 1 == calls => {
                    *is_complete = complete;
                    open = false;
                }
                (event, _) => panic!("{event:?} is out of order after {parts:?}"),
            }
        }
        assert!(!open, "a call has no end in {parts:?}");
        for part in &parts {
            if let Part::Call { arguments, is_complete: true, .. } = part {
                serde_json::from_str::<serde::de::IgnoredAny>(arguments).expect("JSON");
            }
        }
        parts
    }

    /// Checks an answer in all pieces that it may come in.
    pub(crate) fn check(self, answer: &str, expected: &[Part]) {
        let whole = self.parts([answer]);
        assert_eq!(whole, expected, "whole: {answer}");
        let ends = answer.char_indices().map(|(at, c)| at..at + c.len_utf8());
        assert_eq!(self.parts(ends.map(|c| &answer[c])), expected, "by character: {answer}");
        for (at, _) in answer.char_indices() {
            let (first, second) = answer.split_at(at);
            assert_eq!(self.parts([first, second]), expected, "cut: {first} | {second}");
        }
    }
}

/// Checks a format's cases.
pub(crate) fn check(setting: Setting, cases: &[(&str, &[Part])]) {
    for (answer, expected) in cases {
        setting.check(answer, expected);
    }
}
