//! The messages of chat completions.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::tools::CallBody;
use crate::{
    error::ApiError,
    generation::conversation::{Message, Role},
    json,
    text_or_list::TextOrList,
};

/// A message of a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ChatMessage)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageBody {
    #[schema(inline)]
    role: RoleBody,
    /// Only an assistant's message, which may be all calls, can do without.
    content: Option<Content>,
    /// Who says it, or the tool of a result; for chat templates that show it.
    name: Option<String>,
    /// The call that a tool's message is the result of.
    tool_call_id: Option<String>,
    /// The calls of an assistant's message.
    tool_calls: Option<Vec<CallBody>>,
    /// What an assistant said instead of an answer.
    refusal: Option<String>,
    // What answers hold beside their text: clients send them back as they came, which is empty.
    #[schema(ignore)]
    annotations: Option<Value>,
    #[schema(ignore)]
    audio: Option<Value>,
    #[schema(ignore)]
    function_call: Option<Value>,
    /// For templates that show what a model has thought; `reasoning` is vLLM's newer name.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

type Content = TextOrList<PartBody>;

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum RoleBody {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// A part of a message's content.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ChatPart)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartBody {
    #[serde(rename = "type")]
    #[schema(value_type = PartKind, inline)]
    kind: String,
    /// Of the type `text`.
    text: Option<String>,
    /// Of the type `refusal`.
    refusal: Option<String>,
}

/// The types of parts that are taken; others are refused by name.
#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "types are read by hand")]
enum PartKind {
    Text,
    Refusal,
}

/// The messages of a request.
pub(crate) fn read(messages: Vec<MessageBody>) -> Result<Vec<Message>, ApiError> {
    let read = |(index, message): (usize, MessageBody)| {
        message.into_message(&format!("messages[{index}]"))
    };
    messages.into_iter().enumerate().map(read).collect()
}

impl MessageBody {
    fn into_message(self, field: &str) -> Result<Message, ApiError> {
        let refused = [
            ("annotations", &self.annotations),
            ("audio", &self.audio),
            ("function_call", &self.function_call),
        ];
        for (name, value) in refused {
            if value.as_ref().is_some_and(|value| !json::asks_nothing(value)) {
                return Err(ApiError::unsupported(&format!("{field}.{name}")));
            }
        }
        let role = match self.role {
            RoleBody::System => Role::System,
            RoleBody::Developer => Role::Developer,
            RoleBody::User => Role::User,
            RoleBody::Assistant => Role::Assistant,
            RoleBody::Tool => Role::Tool,
        };
        let only_for = |name: &str, wanted: Role, is_given: bool| {
            if role == wanted || !is_given {
                return Ok(());
            }
            let name = format!("{field}.{name}");
            let wanted = format!("{wanted:?}").to_lowercase();
            let message = format!("{name} has a meaning only in a message of the role {wanted}");
            Err(ApiError::invalid(Some(&name), message))
        };
        let has_calls = self.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty());
        only_for("tool_calls", Role::Assistant, has_calls)?;
        only_for("refusal", Role::Assistant, self.refusal.is_some())?;
        only_for("tool_call_id", Role::Tool, self.tool_call_id.is_some())?;
        if role == Role::Tool && self.tool_call_id.is_none() {
            return Err(ApiError::missing(field, "tool_call_id"));
        }
        if self.content.is_none() && role != Role::Assistant {
            return Err(ApiError::missing(field, "content"));
        }
        let text = match self.content {
            Some(content) => content.text(&format!("{field}.content"), PartBody::into_text)?,
            None => String::new(),
        };
        let mut message = Message::new(role, text);
        if message.text.is_empty() {
            message.text = self.refusal.unwrap_or_default();
        }
        message.name = self.name;
        message.reasoning = self.reasoning_content.or(self.reasoning);
        message.call_id = self.tool_call_id;
        let call = |(index, call): (usize, CallBody)| {
            call.into_call(&format!("{field}.tool_calls[{index}]"))
        };
        let calls = self.tool_calls.unwrap_or_default().into_iter().enumerate();
        message.calls = calls.map(call).collect::<Result<_, _>>()?;
        Ok(message)
    }
}

impl PartBody {
    fn into_text(self, field: &str) -> Result<String, ApiError> {
        let (name, text) = match &*self.kind {
            "text" => ("text", self.text),
            "refusal" => ("refusal", self.refusal),
            kind => {
                let name = format!("{field}.type");
                let message =
                    format!("{name} is {kind:?}, but must be text: this model reads text");
                return Err(ApiError::invalid(Some(&name), message));
            }
        };
        text.ok_or_else(|| ApiError::missing(field, name))
    }
}
