//! Splits a model's answer into text, reasoning and calls of tools, as it comes.
//!
//! Each character is taken once, and what is decided depends on the characters
//! before it alone, not on the pieces they came in. Only what may begin a marker or a
//! call is held back.

mod call;
mod format;
mod gemma;
mod grammar;
mod harmony;
mod json;
mod json_call;
mod literal;
mod markers;
mod mistral;
mod named;
mod python;
mod schema;
mod sink;
mod tagged;
mod xml;

use std::sync::Arc;

pub use format::{ReasoningFormat, ToolFormat};
pub use grammar::Beside;

use harmony::Harmony;
use sink::Sink;
use tagged::Tagged;

/// What an answer is made of, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEvent {
    /// Text for the user.
    Text(String),
    /// What the model thought.
    Reasoning(String),
    /// A tool call begins; the calls of an answer are counted from 0.
    CallStart {
        /// Which call.
        index: usize,
        /// The tool's name, whether or not there is such a tool.
        name: String,
        /// Its identifier, where the format writes one before the arguments
        /// (Kimi K2: `functions.NAME:0`).
        id: Option<String>,
    },
    /// More of its arguments, as JSON text. Put together they are the model's own bytes
    /// where the format writes JSON, but for control characters in strings, which are
    /// escaped. Where it does not (GLM, Qwen3-Coder, Python, Gemma) they are JSON made
    /// from what was written, with types from the tool's schema where only that has them.
    CallArguments {
        /// Which call.
        index: usize,
        /// A piece of JSON text.
        json: String,
    },
    /// A call ends.
    CallEnd {
        /// Which call.
        index: usize,
        /// Whether its arguments are a whole JSON value. If not, the answer was cut
        /// within it, it is not what the format writes, or it passed a limit.
        is_complete: bool,
    },
}

/// A tool that may be called.
#[derive(Clone, Debug)]
pub struct AnswerTool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Option<serde_json::Value>,
}

/// Splits an answer into events, in time linear in its length.
///
/// Nothing is lost: what is no call of the format is text. A call that turns out to
/// be broken after its name was sent ends incomplete, and what follows is text. Left
/// out are the markers, white space between calls and around reasoning. Limits: 1 MiB
/// of a call's arguments, 128 levels of nesting, 64 calls; what passes one is text, and
/// so are calls after it.
pub struct AnswerParser {
    parser: Parser,
    sink: Sink,
    /// Markers of the formats, and what begins with special tokens.
    markers: Vec<&'static str>,
}

enum Parser {
    /// There is nothing to split.
    Plain,
    Tagged(Box<Tagged>),
    Harmony(Harmony),
}

impl AnswerParser {
    /// A parser of one answer. Without `tools_format` there are no calls, without
    /// `reasoning` no reasoning, and such parts are text. `prompt_end` is the end of the
    /// rendered prompt, which says whether the answer begins within reasoning.
    #[must_use]
    pub fn new(
        tools_format: Option<ToolFormat>,
        reasoning: Option<ReasoningFormat>,
        tools: Arc<[AnswerTool]>,
        prompt_end: &str,
    ) -> Self {
        Self::build(tools_format, reasoning, tools, prompt_end, false)
    }

    /// The same for an answer whose text has a form, as a grammar sees to: after thoughts it is
    /// calls or text, and markers within the text are text.
    #[must_use]
    pub fn of_form(
        tools_format: Option<ToolFormat>,
        reasoning: Option<ReasoningFormat>,
        tools: Arc<[AnswerTool]>,
        prompt_end: &str,
    ) -> Self {
        Self::build(tools_format, reasoning, tools, prompt_end, true)
    }

    fn build(
        tools_format: Option<ToolFormat>,
        reasoning: Option<ReasoningFormat>,
        tools: Arc<[AnswerTool]>,
        prompt_end: &str,
        is_form: bool,
    ) -> Self {
        let mut markers = Vec::new();
        let (calls, thoughts) = (ToolFormat::OpenAi, ReasoningFormat::OpenAiGptOss);
        let (splits_calls, splits_thoughts) =
            (tools_format == Some(calls), reasoning == Some(thoughts));
        let parser = if splits_calls || splits_thoughts {
            markers.extend(harmony::MARKERS);
            markers.push(harmony::CONSTRAIN);
            Parser::Harmony(Harmony::new(splits_calls, splits_thoughts, prompt_end, is_form))
        } else if tools_format.is_none() && reasoning.is_none() {
            Parser::Plain
        } else {
            markers.extend(
                reasoning
                    .and_then(ReasoningFormat::tags)
                    .into_iter()
                    .flat_map(|tags| [tags.0, tags.1]),
            );
            if let Some(format) = tools_format {
                markers.extend(format.starts().iter().map(|(marker, _)| *marker));
                markers.extend(format.frames());
                markers.extend(format.ends());
                markers.extend(format.inner());
            }
            let tagged = Tagged::new(tools_format, reasoning, tools, prompt_end, is_form);
            Parser::Tagged(Box::new(tagged))
        };
        Self { parser, sink: Sink::default(), markers }
    }

    /// Whether a special token is a marker of the formats, or part of one: its text must
    /// be pushed, though special tokens are not shown.
    #[must_use]
    pub fn wants(&self, special_token: &str) -> bool {
        let is_part = |marker: &&str| marker.contains(special_token);
        !special_token.is_empty() && self.markers.iter().any(is_part)
    }

    /// Whether what comes next is reasoning, as far as is known.
    #[must_use]
    pub fn is_reasoning(&self) -> bool {
        match &self.parser {
            Parser::Plain => false,
            Parser::Tagged(parser) => parser.is_reasoning(),
            Parser::Harmony(parser) => parser.is_reasoning(),
        }
    }

    /// Takes a piece of the answer and appends what is decided to `out`.
    pub fn push(&mut self, text: &str, out: &mut Vec<AnswerEvent>) {
        match &mut self.parser {
            Parser::Plain => self.sink.text(text),
            Parser::Tagged(parser) => text.chars().for_each(|c| parser.push(c, &mut self.sink)),
            Parser::Harmony(parser) => text.chars().for_each(|c| parser.push(c, &mut self.sink)),
        }
        self.sink.take(out);
    }

    /// Appends what was held back: the answer has ended. Nothing may be pushed after that.
    pub fn finish(&mut self, out: &mut Vec<AnswerEvent>) {
        match &mut self.parser {
            Parser::Plain => {}
            Parser::Tagged(parser) => parser.finish(&mut self.sink),
            Parser::Harmony(parser) => parser.finish(&mut self.sink),
        }
        self.sink.take(out);
    }
}
