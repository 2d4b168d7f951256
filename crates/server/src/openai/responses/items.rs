//! The items of a request's `input`.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    error::ApiError,
    generation::{
        conversation::{Message, Role},
        tools::{ToolCall, parse_arguments},
    },
    json,
    text_or_list::TextOrList,
};

/// `input`: a user's text, or items.
pub(crate) type Input = TextOrList<ItemBody>;

/// An item of any type: which fields it may have is said by its type.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = ResponseInputItem)]
#[serde(deny_unknown_fields)]
pub(crate) struct ItemBody {
    /// `message` if not given.
    #[serde(rename = "type")]
    #[schema(value_type = Option<ItemKind>, inline)]
    kind: Option<String>,
    /// Of a message.
    #[schema(value_type = Option<ItemRole>, inline)]
    role: Option<String>,
    /// Of a message; of reasoning, the thought itself.
    content: Option<Texts>,
    /// Of a call and its output.
    call_id: Option<String>,
    /// Of a call.
    name: Option<String>,
    /// Of a call: a JSON object as text.
    arguments: Option<String>,
    /// Of a call's output.
    output: Option<Texts>,
    /// Of reasoning: what is told of a thought.
    summary: Option<Vec<TextBody>>,
    /// Of reasoning: what another server hid, and so is hidden here.
    encrypted_content: Option<Value>,
    // What items of answers have: clients send them back as they came.
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(rename = "status")]
    _status: Option<String>,
    #[serde(rename = "phase")]
    _phase: Option<String>,
}

/// A text, or the parts that it is in.
type Texts = TextOrList<TextBody>;

/// The types of items that are taken; others are refused by name.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "types are read by hand")]
enum ItemKind {
    Message,
    FunctionCall,
    FunctionCallOutput,
    Reasoning,
}

#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "roles are read by hand")]
enum ItemRole {
    User,
    Assistant,
    System,
    Developer,
}

/// The types of texts that are taken; others are refused by name.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "types are read by hand")]
enum TextKind {
    InputText,
    OutputText,
    Text,
    ReasoningText,
    SummaryText,
    Refusal,
}

/// A part of an item's text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ResponseInputText)]
#[serde(deny_unknown_fields)]
pub(crate) struct TextBody {
    #[serde(rename = "type")]
    #[schema(value_type = TextKind, inline)]
    kind: String,
    /// Of all types but `refusal`.
    text: Option<String>,
    /// Of the type `refusal`.
    refusal: Option<String>,
    // What answers have: clients send them back as they came.
    #[serde(rename = "annotations")]
    _annotations: Option<Value>,
    #[serde(rename = "logprobs")]
    _logprobs: Option<Value>,
}

/// The messages that an input makes, after those that are there.
pub(super) fn read(input: Input, out: &mut Vec<Message>) -> Result<(), ApiError> {
    let items = match input {
        Input::Text(text) => {
            out.push(Message::new(Role::User, text));
            return Ok(());
        }
        Input::List(items) => items,
    };
    // Thoughts and calls of one turn are items of their own; a template wants one message.
    let mut turn: Option<Message> = None;
    for (index, item) in items.into_iter().enumerate() {
        let field = format!("input[{index}]");
        match item.read(&field)? {
            Item::Message(message) if message.role == Role::Assistant => match &mut turn {
                Some(turn) if turn.text.is_empty() && turn.calls.is_empty() => {
                    turn.text = message.text;
                }
                _ => out.extend(turn.replace(message)),
            },
            Item::Message(message) => {
                out.extend(turn.take());
                out.push(message);
            }
            Item::Call(call) => turn.get_or_insert_with(assistant).calls.push(call),
            Item::Reasoning(thought) => {
                if turn.as_ref().is_some_and(|turn| !turn.text.is_empty() || !turn.calls.is_empty())
                {
                    out.extend(turn.take());
                }
                let turn = turn.get_or_insert_with(assistant);
                turn.reasoning.get_or_insert_default().push_str(&thought);
            }
        }
    }
    out.extend(turn);
    Ok(())
}

fn assistant() -> Message {
    Message::new(Role::Assistant, "")
}

enum Item {
    Message(Message),
    Call(ToolCall),
    Reasoning(String),
}

impl ItemBody {
    fn read(self, field: &str) -> Result<Item, ApiError> {
        let kind = self.kind.clone().unwrap_or_else(|| "message".to_owned());
        let known: &[&str] = match &*kind {
            "message" => &["role", "content"],
            "function_call" => &["call_id", "name", "arguments"],
            "function_call_output" => &["call_id", "output"],
            "reasoning" => &["summary", "content", "encrypted_content"],
            _ => {
                let name = format!("{field}.type");
                let message = format!(
                    "{name} is {kind:?}, but must be message, function_call, \
                     function_call_output or reasoning"
                );
                return Err(ApiError::invalid(Some(&name), message));
            }
        };
        self.check(&kind, known, field)?;
        let missing = |name: &str| ApiError::missing(field, name);
        match &*kind {
            "message" => {
                let role = role(self.role.ok_or_else(|| missing("role"))?, field)?;
                let content = self.content.ok_or_else(|| missing("content"))?;
                let text = content.text(&format!("{field}.content"), TextBody::text)?;
                Ok(Item::Message(Message::new(role, text)))
            }
            "function_call" => {
                let arguments = self.arguments.ok_or_else(|| missing("arguments"))?;
                Ok(Item::Call(ToolCall {
                    id: self.call_id.ok_or_else(|| missing("call_id"))?,
                    name: self.name.ok_or_else(|| missing("name"))?,
                    arguments: parse_arguments(&arguments, &format!("{field}.arguments"))?,
                }))
            }
            "function_call_output" => {
                let output = self.output.ok_or_else(|| missing("output"))?;
                let text = output.text(&format!("{field}.output"), TextBody::text)?;
                let id = self.call_id.ok_or_else(|| missing("call_id"))?;
                Ok(Item::Message(Message { call_id: Some(id), ..Message::new(Role::Tool, text) }))
            }
            _ => {
                // Content is the thought itself, the summary what is told of it.
                let content = self.content.or_else(|| self.summary.map(TextOrList::List));
                let content = content.unwrap_or(TextOrList::List(Vec::new()));
                Ok(Item::Reasoning(content.text(&format!("{field}.content"), TextBody::text)?))
            }
        }
    }

    /// It has no fields of other types.
    fn check(&self, kind: &str, known: &[&str], field: &str) -> Result<(), ApiError> {
        let hidden = self.encrypted_content.as_ref();
        let fields = [
            ("role", self.role.is_some()),
            ("content", self.content.is_some()),
            ("call_id", self.call_id.is_some()),
            ("name", self.name.is_some()),
            ("arguments", self.arguments.is_some()),
            ("output", self.output.is_some()),
            ("summary", self.summary.is_some()),
            ("encrypted_content", hidden.is_some_and(|value| !json::asks_nothing(value))),
        ];
        match fields.into_iter().find(|(name, is_given)| *is_given && !known.contains(name)) {
            None => Ok(()),
            Some((name, _)) => {
                let name = format!("{field}.{name}");
                let message = format!("{name} is not a field of an item of the type {kind}");
                Err(ApiError::unknown_field(&name, message))
            }
        }
    }
}

fn role(role: String, field: &str) -> Result<Role, ApiError> {
    match &*role {
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "system" => Ok(Role::System),
        "developer" => Ok(Role::Developer),
        _ => {
            let name = format!("{field}.role");
            let message =
                format!("{name} is {role:?}, but must be user, assistant, system or developer");
            Err(ApiError::invalid(Some(&name), message))
        }
    }
}

impl TextBody {
    fn text(self, field: &str) -> Result<String, ApiError> {
        let (name, text) = match &*self.kind {
            "input_text" | "output_text" | "text" | "reasoning_text" | "summary_text" => {
                ("text", self.text)
            }
            "refusal" => ("refusal", self.refusal),
            kind => {
                let name = format!("{field}.type");
                let message = format!(
                    "{name} is {kind:?}, but must be input_text or output_text: this model reads \
                     text"
                );
                return Err(ApiError::invalid(Some(&name), message));
            }
        };
        text.ok_or_else(|| ApiError::missing(field, name))
    }
}
