//! The messages of a request: blocks of text, thoughts, calls and results.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    error::ApiError,
    generation::{
        conversation::{Message, Role},
        tools::ToolCall,
    },
    text_or_list::TextOrList,
};

/// A message of a conversation.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = MessageParam)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageBody {
    #[schema(inline)]
    role: RoleBody,
    content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum RoleBody {
    User,
    Assistant,
}

/// Text, or blocks.
pub(crate) type Content = TextOrList<BlockBody>;

/// A block of any type: which fields it may have is said by its type.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[schema(as = ContentBlockParam)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockBody {
    /// A user's message has `text` and `tool_result`, an assistant's the others.
    #[serde(rename = "type")]
    #[schema(value_type = BlockKind, inline)]
    kind: String,
    /// A hint for what to cache; here everything is.
    #[serde(rename = "cache_control")]
    _cache_control: Option<CacheControl>,
    /// Of `text`.
    text: Option<String>,
    #[schema(ignore)]
    citations: Option<Value>,
    /// Of `thinking`.
    thinking: Option<String>,
    /// Of `thinking`, as it came.
    signature: Option<String>,
    /// Of `redacted_thinking`: hidden from this model too.
    data: Option<String>,
    /// Of `tool_use`.
    id: Option<String>,
    /// Of `tool_use`: the tool's.
    name: Option<String>,
    /// Of `tool_use`: the call's arguments.
    input: Option<Map<String, Value>>,
    /// Of `tool_result`: the call's id.
    tool_use_id: Option<String>,
    /// Of `tool_result`: texts.
    #[schema(no_recursion)]
    content: Option<Content>,
    /// Of `tool_result`.
    is_error: Option<bool>,
    /// Of `tool_use`, as it came.
    caller: Option<Value>,
    #[schema(ignore)]
    source: Option<Value>,
    #[schema(ignore)]
    title: Option<Value>,
    #[schema(ignore)]
    context: Option<Value>,
}

/// The types of blocks that are taken; others are refused by name.
#[derive(ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "types are read by hand")]
enum BlockKind {
    Text,
    Thinking,
    RedactedThinking,
    ToolUse,
    ToolResult,
}

/// A hint for what to cache; here everything is.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CacheControl {
    #[serde(rename = "type")]
    #[schema(inline)]
    _kind: CacheKind,
    #[serde(rename = "ttl")]
    #[schema(inline)]
    _ttl: Option<CacheTtl>,
    #[serde(rename = "scope")]
    _scope: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum CacheKind {
    Ephemeral,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
enum CacheTtl {
    #[serde(rename = "5m")]
    FiveMinutes,
    #[serde(rename = "1h")]
    Hour,
}

/// The conversation that a system prompt and messages make.
pub(super) fn read(
    system: Option<Content>,
    messages: Vec<MessageBody>,
) -> Result<Vec<Message>, ApiError> {
    let mut out = Vec::with_capacity(messages.len() + 1);
    if let Some(system) = system {
        out.push(Message::new(Role::System, text(system, "system")?));
    }
    for (index, message) in messages.into_iter().enumerate() {
        message.read(&format!("messages[{index}]"), &mut out)?;
    }
    Ok(out)
}

/// What is text alone.
fn text(content: Content, field: &str) -> Result<String, ApiError> {
    content.text(field, |block, field| {
        block.expect_kind(&["text"], field)?;
        block.require(block.text.clone(), "text", field)
    })
}

impl MessageBody {
    fn read(self, field: &str, out: &mut Vec<Message>) -> Result<(), ApiError> {
        let field = format!("{field}.content");
        let role = if self.role == RoleBody::User { Role::User } else { Role::Assistant };
        let blocks = match self.content {
            Content::Text(text) => {
                out.push(Message::new(role, text));
                return Ok(());
            }
            Content::List(blocks) => blocks,
        };
        let kinds: &[&str] = match role {
            Role::User => &["text", "tool_result"],
            _ => &["text", "thinking", "redacted_thinking", "tool_use"],
        };
        let mut message = Message::new(role, "");
        let mut has_said = blocks.is_empty();
        for (index, block) in blocks.into_iter().enumerate() {
            let field = format!("{field}[{index}]");
            block.expect_kind(kinds, &field)?;
            match &*block.kind {
                "tool_result" => out.push(block.result(&field)?),
                "text" => {
                    let text = block.require(block.text.clone(), "text", &field)?;
                    let gap = if message.text.is_empty() { "" } else { "\n" };
                    message.text += gap;
                    message.text += &text;
                    has_said = true;
                }
                "thinking" => {
                    let thought = block.require(block.thinking.clone(), "thinking", &field)?;
                    message.reasoning.get_or_insert_default().push_str(&thought);
                    has_said = true;
                }
                "tool_use" => {
                    message.calls.push(block.call(&field)?);
                    has_said = true;
                }
                // What another server hid is hidden from this model too.
                _ => has_said = true,
            }
        }
        // What comes with results is said after them.
        if has_said {
            out.push(message);
        }
        Ok(())
    }
}

impl BlockBody {
    /// Its type is one of these, and it has no fields of others.
    fn expect_kind(&self, kinds: &[&str], field: &str) -> Result<(), ApiError> {
        if !kinds.contains(&&*self.kind) {
            let name = format!("{field}.type");
            let message =
                format!("{name} is {:?}, but must be {} here", self.kind, kinds.join(", or "));
            return Err(ApiError::invalid(Some(&name), message));
        }
        let fields = [
            ("text", self.text.is_some(), "text"),
            (
                "citations",
                self.citations.as_ref().is_some_and(|v| !crate::json::asks_nothing(v)),
                "",
            ),
            ("thinking", self.thinking.is_some(), "thinking"),
            ("signature", self.signature.is_some(), "thinking"),
            ("data", self.data.is_some(), "redacted_thinking"),
            ("id", self.id.is_some(), "tool_use"),
            ("name", self.name.is_some(), "tool_use"),
            ("input", self.input.is_some(), "tool_use"),
            ("caller", self.caller.is_some(), "tool_use"),
            ("tool_use_id", self.tool_use_id.is_some(), "tool_result"),
            ("content", self.content.is_some(), "tool_result"),
            ("is_error", self.is_error.is_some(), "tool_result"),
            ("source", self.source.is_some(), ""),
            ("title", self.title.is_some(), ""),
            ("context", self.context.is_some(), ""),
        ];
        let foreign = fields.into_iter().find(|&(_, is_given, kind)| is_given && kind != self.kind);
        match foreign {
            None => Ok(()),
            Some((name, _, _)) => {
                let name = format!("{field}.{name}");
                let message = format!("{name} is not a field of a block of the type {}", self.kind);
                Err(ApiError::unknown_field(&name, message))
            }
        }
    }

    fn require<T>(&self, value: Option<T>, name: &str, field: &str) -> Result<T, ApiError> {
        value.ok_or_else(|| ApiError::missing(field, name))
    }

    fn result(self, field: &str) -> Result<Message, ApiError> {
        let id = self.require(self.tool_use_id.clone(), "tool_use_id", field)?;
        let content = self.content.unwrap_or(Content::Text(String::new()));
        let mut said = text(content, &format!("{field}.content"))?;
        if self.is_error == Some(true) {
            said.insert_str(0, "Error: ");
        }
        Ok(Message { call_id: Some(id), ..Message::new(Role::Tool, said) })
    }

    fn call(&self, field: &str) -> Result<ToolCall, ApiError> {
        Ok(ToolCall {
            id: self.require(self.id.clone(), "id", field)?,
            name: self.require(self.name.clone(), "name", field)?,
            arguments: self.require(self.input.clone(), "input", field)?,
        })
    }
}
