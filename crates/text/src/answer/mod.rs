//! From an answer's text to what it is made of.

use std::sync::Arc;

use serde_json::Value;

/// What an answer is made of, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEvent {
    /// Text for the user.
    Text(String),
    /// What the model thinks.
    Reasoning(String),
    /// A tool call begins.
    CallStart {
        /// Counts the answer's calls.
        index: usize,
        /// The tool's name.
        name: String,
        /// Where the format has one.
        id: Option<String>,
    },
    /// More of a call's arguments.
    CallArguments {
        /// The call.
        index: usize,
        /// JSON text.
        json: String,
    },
    /// A call ends.
    CallEnd {
        /// The call.
        index: usize,
        /// Whether the answer was not cut within it.
        is_complete: bool,
    },
}

/// A tool that may be called.
#[derive(Clone, Debug)]
pub struct AnswerTool {
    /// Its name.
    pub name: String,
    /// The JSON schema of its arguments.
    pub parameters: Option<Value>,
}

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// Hermes.
    Hermes,
    /// Mistral.
    Mistral,
}

impl ToolFormat {
    /// By vLLM's name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        (name == "hermes").then_some(Self::Hermes)
    }

    /// By a chat template.
    #[must_use]
    pub fn detect(_: &str) -> Option<Self> {
        None
    }
}

/// How a model marks what it thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// `<think>`.
    Think,
}

impl ReasoningFormat {
    /// By vLLM's name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        (name == "qwen3").then_some(Self::Think)
    }

    /// By a chat template.
    #[must_use]
    pub fn detect(_: &str) -> Option<Self> {
        None
    }
}

/// Parses an answer.
#[derive(Debug)]
pub struct AnswerParser {}

impl AnswerParser {
    /// `prompt_end` is the end of the prompt's text.
    #[must_use]
    pub fn new(
        _: Option<ToolFormat>,
        _: Option<ReasoningFormat>,
        _: Arc<[AnswerTool]>,
        _: &str,
    ) -> Self {
        Self {}
    }

    /// Whether a special token is a marker.
    #[must_use]
    pub fn wants(&self, _: &str) -> bool {
        false
    }

    /// Whether what comes next is a thought.
    #[must_use]
    pub fn is_reasoning(&self) -> bool {
        false
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str, out: &mut Vec<AnswerEvent>) {
        if !text.is_empty() {
            out.push(AnswerEvent::Text(text.to_owned()));
        }
    }

    /// The answer ends.
    pub fn finish(&mut self, _: &mut Vec<AnswerEvent>) {}
}
