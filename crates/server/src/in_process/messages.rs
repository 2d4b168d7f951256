//! The messages of a conversation.

use serde::de::DeserializeOwned;

use crate::{
    error::ApiError,
    generation::{
        conversation::{self, Role},
        tools::{self, parse_arguments},
    },
};

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// What the model is told before the conversation.
    System(String),
    /// What the user says.
    User(String),
    /// What the model said, thought and called.
    Assistant {
        /// What it said.
        text: String,
        /// What it thought, where that is known.
        reasoning: Option<String>,
        /// What it called.
        calls: Vec<ToolCall>,
    },
    /// What a call came to.
    Tool {
        /// The call's id.
        call_id: String,
        /// The result, as the model is to read it.
        text: String,
    },
}

impl Message {
    /// What the model is told before the conversation.
    pub fn system(text: impl Into<String>) -> Self {
        Self::System(text.into())
    }

    /// What the user says.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User(text.into())
    }

    /// What the model said.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::Assistant { text: text.into(), reasoning: None, calls: Vec::new() }
    }

    /// What the call with this id came to.
    pub fn tool(call_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Tool { call_id: call_id.into(), text: text.into() }
    }
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// By which its result is known.
    pub id: String,
    /// The tool's name, whether or not there is such a tool.
    pub name: String,
    /// The arguments as JSON text: as the model wrote them, and as far as it came.
    pub arguments: String,
}

/// A call's arguments are not what its tool takes.
#[derive(Debug, thiserror::Error)]
#[error(
    "the call of {name} has the arguments {arguments:?}, which are not what it takes: {source}"
)]
pub struct InvalidArguments {
    /// The tool's name.
    pub name: String,
    /// The arguments.
    pub arguments: String,
    /// What is wrong with them.
    pub source: serde_json::Error,
}

impl ToolCall {
    /// The arguments as a type.
    ///
    /// # Errors
    /// They are not of this type, or no JSON; the model may be told so, as the call's result.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, InvalidArguments> {
        let text = if self.arguments.trim().is_empty() { "{}" } else { &self.arguments };
        serde_json::from_str(text).map_err(|source| InvalidArguments {
            name: self.name.clone(),
            arguments: self.arguments.clone(),
            source,
        })
    }
}

/// Messages as a prompt is made of them.
pub(super) fn read(messages: &[Message]) -> Result<Vec<conversation::Message>, ApiError> {
    let of = |(index, message): (usize, &Message)| {
        Ok(match message {
            Message::System(text) => conversation::Message::new(Role::System, text),
            Message::User(text) => conversation::Message::new(Role::User, text),
            Message::Assistant { text, reasoning, calls } => {
                let call = |(at, call): (usize, &ToolCall)| {
                    let field = format!("messages[{index}].calls[{at}].arguments");
                    let ToolCall { id, name, arguments } = call.clone();
                    let arguments = parse_arguments(&arguments, &field)?;
                    Ok::<_, ApiError>(tools::ToolCall { id, name, arguments })
                };
                conversation::Message {
                    reasoning: reasoning.clone(),
                    calls: calls.iter().enumerate().map(call).collect::<Result<_, _>>()?,
                    ..conversation::Message::new(Role::Assistant, text)
                }
            }
            Message::Tool { call_id, text } => conversation::Message {
                call_id: Some(call_id.clone()),
                ..conversation::Message::new(Role::Tool, text)
            },
        })
    };
    messages.iter().enumerate().map(of).collect()
}
