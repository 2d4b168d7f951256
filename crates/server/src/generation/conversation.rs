//! A conversation, whatever the wire that it came over, and the prompt that it makes.

use std::collections::HashMap;

use sconce_text::{ChatTemplateOptions, TextError, TextModel};
use sconce_types::TokenId;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::tools::{ToolCall, Tools};
use crate::error::ApiError;

/// Characters of a prompt's end that say how an answer begins.
const PROMPT_END_CHARS: usize = 64;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    System,
    Developer,
    User,
    Assistant,
    /// The result of a call.
    Tool,
}

/// A message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) text: String,
    pub(crate) name: Option<String>,
    /// What an assistant thought.
    pub(crate) reasoning: Option<String>,
    /// What an assistant called.
    pub(crate) calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    pub(crate) call_id: Option<String>,
}

impl Message {
    /// Bytes of what it says, thinks and calls.
    fn bytes(&self) -> usize {
        let call = |call: &ToolCall| {
            let argument = |(key, value): (&String, &Value)| key.len() + text_bytes(value);
            call.name.len() + call.arguments.iter().map(argument).sum::<usize>()
        };
        let reasoning = self.reasoning.as_ref().map_or(0, String::len);
        self.text.len() + reasoning + self.calls.iter().map(call).sum::<usize>()
    }

    pub(crate) fn new(role: Role, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { role, text, name: None, reasoning: None, calls: Vec::new(), call_id: None }
    }
}

/// What a prompt is made of.
pub(crate) struct Conversation<'a> {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: &'a Tools,
    /// What the request calls its messages.
    pub(crate) field: &'static str,
    /// End with the opening of an answer; so it is if nothing is said.
    pub(crate) add_generation_prompt: Option<bool>,
    /// Whether the last message, an assistant's, goes on instead of a new one.
    pub(crate) continues: bool,
    pub(crate) template_kwargs: Map<String, Value>,
}

/// A conversation's prompt.
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<TokenId>,
    /// The end of its text: an answer may begin within what a template has opened.
    pub(crate) end: String,
}

impl Conversation<'_> {
    /// Templates and encodes it, to at most `max_tokens`.
    pub(crate) fn encode(
        self,
        text: &TextModel,
        add_special_tokens: bool,
        max_tokens: usize,
    ) -> Result<Prompt, ApiError> {
        let field = self.field;
        let prompt = self.render(text, max_tokens)?;
        let tokens = text.encode_within(&prompt, add_special_tokens, max_tokens);
        let tokens = tokens.map_err(|error| ApiError::from(error).within(field))?;
        let end = prompt.char_indices().rev().nth(PROMPT_END_CHARS - 1).map_or(0, |(at, _)| at);
        Ok(Prompt { tokens, end: prompt[end..].to_owned() })
    }

    fn render(self, text: &TextModel, max_tokens: usize) -> Result<String, ApiError> {
        let Self { mut messages, tools, field, continues, .. } = self;
        check(&messages, field, max_tokens)?;
        let bytes: usize = messages.iter().map(Message::bytes).sum();
        let most = text.max_bytes(max_tokens);
        if bytes > most {
            let what = format!("but {field} has {bytes} bytes of text, and at most {most} can fit");
            return Err(ApiError::too_long(Some(field), max_tokens, what));
        }
        name_results(&mut messages);
        let mut kwargs = self.template_kwargs;
        let has_kwargs = !kwargs.is_empty();
        let has_calls = |message: &Message| message.role == Role::Tool || !message.calls.is_empty();
        if !text.takes_tools() && (tools.are_offered() || messages.iter().any(has_calls)) {
            messages = without_template(messages, tools);
        } else if tools.are_offered() {
            kwargs.entry("tools").or_insert_with(|| tools.to_json());
        }
        if continues && let Some(last) = messages.last_mut() {
            last.text += CONTINUES;
        }
        let messages: Vec<Value> = messages.into_iter().map(Message::into_json).collect();
        let add_generation_prompt = self.add_generation_prompt.unwrap_or(!continues);
        if continues && add_generation_prompt {
            let message = "continue_final_message and add_generation_prompt exclude each other";
            return Err(ApiError::invalid(Some("continue_final_message"), message));
        }
        let options = ChatTemplateOptions { add_generation_prompt, kwargs };
        let prompt =
            text.apply_chat_template(&messages, &options).map_err(|error| match error {
                // What is not the client's own variable is one of ours.
                TextError::InvalidTemplateArguments(reason) if !has_kwargs => {
                    let field = if tools.are_offered() { "tools" } else { field };
                    let message = format!("the chat template fails with these {field}: {reason}");
                    ApiError::invalid(Some(field), message)
                }
                error => error.into(),
            })?;
        if continues { cut(prompt, field) } else { Ok(prompt) }
    }
}

fn check(messages: &[Message], field: &str, max_tokens: usize) -> Result<(), ApiError> {
    if messages.is_empty() {
        let message = format!("{field} is empty, but must have at least one message");
        return Err(ApiError::invalid(Some(field), message));
    }
    if messages.len() > max_tokens {
        let what = format!("but {field} has {} entries; shorten it", messages.len());
        return Err(ApiError::too_long(Some(field), max_tokens, what));
    }
    Ok(())
}

/// Marks the end of a last message that goes on; no model's text has it.
const CONTINUES: &str = "\u{e000}\u{f8ff}sconce\u{f8ff}\u{e000}";

/// The prompt up to where its last message goes on.
fn cut(mut prompt: String, field: &str) -> Result<String, ApiError> {
    match prompt.rfind(CONTINUES) {
        Some(at) => {
            prompt.truncate(at);
            Ok(prompt)
        }
        None => {
            let message = format!(
                "the chat template does not show the last entry of {field}, which the answer is to \
                 go on from"
            );
            Err(ApiError::invalid(Some(field), message))
        }
    }
}

fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| key.len() + text_bytes(value)).sum()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
    }
}

/// Some templates ask a tool's message for the tool's name, which clients leave to the call.
fn name_results(messages: &mut [Message]) {
    let mut names = HashMap::new();
    for message in messages {
        let calls = message.calls.iter().map(|call| (call.id.clone(), call.name.clone()));
        names.extend(calls);
        if message.role == Role::Tool && message.name.is_none() {
            let id = message.call_id.as_ref();
            message.name = id.and_then(|id| names.get(id)).cloned();
        }
    }
}

/// For a template that knows no tools: says in messages what it would have said, in the form
/// of Hermes, which [`sconce_text::ToolFormat::Hermes`] reads.
fn without_template(messages: Vec<Message>, tools: &Tools) -> Vec<Message> {
    let mut out = Vec::with_capacity(messages.len() + 1);
    if tools.are_offered() {
        let list: Vec<String> = tools
            .to_json()
            .as_array()
            .into_iter()
            .flatten()
            .map(|tool| tool["function"].to_string())
            .collect();
        let text = format!(
            "You can call functions. Each line between <tools> and </tools> describes one:\n\
             <tools>\n{}\n</tools>\n\
             To call a function, write its name and arguments as JSON like this:\n\
             <tool_call>\n{{\"name\": \"NAME\", \"arguments\": {{…}}}}\n</tool_call>",
            list.join("\n")
        );
        out.push(Message::new(Role::System, text));
    }
    for mut message in messages {
        for call in std::mem::take(&mut message.calls) {
            let call = json!({ "name": call.name, "arguments": call.arguments });
            let gap = if message.text.is_empty() { "" } else { "\n" };
            message.text += &format!("{gap}<tool_call>\n{call}\n</tool_call>");
        }
        if message.role == Role::Tool {
            let text = format!("<tool_response>\n{}\n</tool_response>", message.text);
            message = Message::new(Role::User, text);
        }
        match out.last_mut() {
            // Templates want roles in turns, and one system message.
            Some(last) if last.role == message.role && !matches!(last.role, Role::Assistant) => {
                last.text += "\n\n";
                last.text += &message.text;
            }
            _ => out.push(message),
        }
    }
    out
}

impl Message {
    /// The message as templates see it.
    fn into_json(self) -> Value {
        let mut message = json!({ "role": self.role, "content": self.text });
        if let Some(name) = self.name {
            message["name"] = name.into();
        }
        if let Some(reasoning) = self.reasoning {
            message["reasoning_content"] = reasoning.into();
        }
        if !self.calls.is_empty() {
            let call = |call: ToolCall| {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                json!({ "id": call.id, "type": "function", "function": function })
            };
            message["tool_calls"] = self.calls.into_iter().map(call).collect();
        }
        if let Some(id) = self.call_id {
            message["tool_call_id"] = id.into();
        }
        message
    }
}
