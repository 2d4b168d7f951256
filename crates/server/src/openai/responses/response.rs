//! `/v1/responses`: the response, of which a stream's events tell.

use sconce_engine::RequestError;
use serde_json::{Value, json};

use super::store::Keeper;
use crate::{
    error::ApiError,
    generation::{
        answers::Part,
        choice::{Choice, Delta, Finish, ended},
        conversation::{Message, Role},
        stream::Events,
        tools::{ToolCall, parse_arguments},
        usage::Counts,
    },
    openai::token_logprobs,
    state::AppState,
};

/// What a response says, and how.
pub(super) struct Shape {
    pub(super) model: String,
    /// What of the request the response repeats.
    pub(super) echo: Value,
    pub(super) is_stored: bool,
    pub(super) wants_logprobs: bool,
}

/// A response that is being made.
pub(super) struct Answer {
    state: AppState,
    id: String,
    shape: Shape,
    created_at: u64,
    counts: Counts,
    keep: Option<Keeper>,
    /// Whole items.
    output: Vec<Value>,
    open: Option<Open>,
    /// What the answer adds to the conversation.
    said: Message,
    /// Counts events.
    sequence_number: u64,
}

/// The item that is being made.
struct Open {
    kind: Kind,
    id: String,
    /// Text, thought, or arguments.
    text: String,
    logprobs: Vec<Value>,
    call: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
    Call,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Text => "msg_",
            Self::Reasoning => "rs_",
            Self::Call => "fc_",
        }
    }

    /// The name of the events of its text.
    fn event(self) -> &'static str {
        match self {
            Self::Text => "response.output_text",
            Self::Reasoning => "response.reasoning_text",
            Self::Call => "response.function_call_arguments",
        }
    }
}

impl Open {
    fn item(&self, status: &str) -> Value {
        let id = &self.id;
        match (self.kind, &self.call) {
            (Kind::Call, Some((call_id, name))) => json!({
                "type": "function_call", "id": id, "call_id": call_id, "name": name,
                "arguments": self.text, "status": status,
            }),
            (Kind::Reasoning, _) => {
                let content = self.content();
                json!({ "type": "reasoning", "id": id, "summary": [], "content": content,
                        "status": status })
            }
            _ => json!({
                "type": "message", "id": id, "status": status, "role": "assistant",
                "content": self.content(),
            }),
        }
    }

    /// Nothing yet, or the one part.
    fn content(&self) -> Vec<Value> {
        if self.text.is_empty() { Vec::new() } else { vec![self.part()] }
    }

    fn part(&self) -> Value {
        if self.kind == Kind::Reasoning {
            return json!({ "type": "reasoning_text", "text": self.text });
        }
        json!({
            "type": "output_text", "text": self.text, "annotations": [],
            "logprobs": self.logprobs,
        })
    }
}

impl Answer {
    pub(super) fn new(
        state: &AppState,
        shape: Shape,
        counts: Counts,
        created_at: u64,
        keep: Option<Keeper>,
    ) -> Self {
        Self {
            state: state.clone(),
            id: state.next_id("resp_"),
            shape,
            created_at,
            counts,
            keep,
            output: Vec::new(),
            open: None,
            said: Message::new(Role::Assistant, ""),
            sequence_number: 0,
        }
    }

    /// The whole response, of the same deltas as a stream.
    pub(super) async fn of(mut self, mut choice: Choice) -> Result<Value, RequestError> {
        while let Some(delta) = choice.next().await {
            if let Some(response) = self.take(delta?, &mut Events::default()) {
                return Ok(response);
            }
        }
        Err(RequestError::EngineLost)
    }

    /// Sends that the response has begun.
    pub(super) fn begin(&mut self, out: &mut Events) {
        for event in ["response.created", "response.in_progress"] {
            let response = self.response("in_progress", Value::Null, Value::Null);
            self.send(event, json!({ "response": response }), out);
        }
    }

    /// Takes a delta; gives back the response if that was its last.
    pub(super) fn take(&mut self, mut delta: Delta, out: &mut Events) -> Option<Value> {
        self.counts.note(0, &delta);
        let mut logprobs = if self.shape.wants_logprobs {
            token_logprobs(&self.state.text, delta.text_logprobs(), false)
        } else {
            Vec::new()
        };
        for part in delta.take_parts() {
            self.part(part, &mut logprobs, out);
        }
        let Finish { reason, .. } = ended(Some(delta.finish?));
        if let Some(open) = self.open.as_mut().filter(|open| open.kind == Kind::Text) {
            // The end token's.
            open.logprobs.append(&mut logprobs);
        }
        let status = if reason == "length" { "incomplete" } else { "completed" };
        self.end_item(status, out);
        let details = match status {
            "incomplete" => json!({ "reason": "max_output_tokens" }),
            _ => Value::Null,
        };
        let response = self.response(status, details, Value::Null);
        if let Some(keep) = self.keep.take() {
            let said = std::mem::replace(&mut self.said, Message::new(Role::Assistant, ""));
            keep.keep(&self.id, response.clone(), vec![said]);
        }
        let event =
            if status == "completed" { "response.completed" } else { "response.incomplete" };
        self.send(event, json!({ "response": response }), out);
        Some(response)
    }

    /// The response fails.
    pub(super) fn fail(&mut self, error: &ApiError, out: &mut Events) {
        self.end_item("incomplete", out);
        let error = json!({ "code": "server_error", "message": error.message() });
        let response = self.response("failed", Value::Null, error);
        self.send("response.failed", json!({ "response": response }), out);
    }

    fn response(&self, status: &str, incomplete_details: Value, error: Value) -> Value {
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": error,
            "incomplete_details": incomplete_details,
            "model": self.shape.model,
            "output": self.output,
        });
        if status != "in_progress" {
            let tokens = self.counts.tokens();
            response["usage"] = json!({
                "input_tokens": tokens.input,
                "input_tokens_details":
                    { "cached_tokens": tokens.cached, "cache_write_tokens": 0 },
                "output_tokens": tokens.output,
                "output_tokens_details": { "reasoning_tokens": tokens.reasoning },
                "total_tokens": tokens.input + tokens.output,
            });
        }
        let echo = self.shape.echo.as_object().into_iter().flatten();
        for (name, value) in echo {
            response[name] = value.clone();
        }
        response
    }

    fn send(&mut self, kind: &str, mut event: Value, out: &mut Events) {
        event["type"] = kind.into();
        event["sequence_number"] = self.sequence_number.into();
        self.sequence_number += 1;
        out.push_named(kind, &event);
    }

    fn part(&mut self, part: Part, logprobs: &mut Vec<Value>, out: &mut Events) {
        match part {
            Part::Text(text) => self.text(Kind::Text, &text, logprobs, out),
            Part::Reasoning(text) => self.text(Kind::Reasoning, &text, logprobs, out),
            Part::CallStart { id, name, .. } => self.begin_item(Kind::Call, Some((id, name)), out),
            Part::CallArguments { json, .. } => self.text(Kind::Call, &json, logprobs, out),
            Part::CallEnd { .. } => self.end_item("completed", out),
        }
    }

    fn begin_item(&mut self, kind: Kind, call: Option<(String, String)>, out: &mut Events) {
        self.end_item("completed", out);
        let id = self.state.next_id(kind.prefix());
        let open = Open { kind, id, text: String::new(), logprobs: Vec::new(), call };
        let (item, index) = (open.item("in_progress"), self.output.len());
        self.send(
            "response.output_item.added",
            json!({ "output_index": index, "item": item }),
            out,
        );
        if kind != Kind::Call {
            let event = json!({
                "item_id": open.id, "output_index": index, "content_index": 0,
                "part": open.part(),
            });
            self.send("response.content_part.added", event, out);
        }
        self.open = Some(open);
    }

    fn text(&mut self, kind: Kind, text: &str, logprobs: &mut Vec<Value>, out: &mut Events) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.begin_item(kind, None, out);
        }
        let index = self.output.len();
        let open = self.open.as_mut().expect("it was begun");
        open.text += text;
        let mut event = json!({ "item_id": open.id, "output_index": index, "delta": text });
        if kind != Kind::Call {
            event["content_index"] = 0.into();
        }
        if kind == Kind::Text {
            let logprobs = std::mem::take(logprobs);
            event["logprobs"] = logprobs.clone().into();
            open.logprobs.extend(logprobs);
        }
        self.send(&format!("{}.delta", kind.event()), event, out);
    }

    fn end_item(&mut self, status: &str, out: &mut Events) {
        let Some(open) = self.open.take() else { return };
        let index = self.output.len();
        let mut event = json!({ "item_id": open.id, "output_index": index });
        match (open.kind, &open.call) {
            (Kind::Call, Some((_, name))) => {
                event["name"] = name.clone().into();
                event["arguments"] = open.text.clone().into();
            }
            (kind, _) => {
                event["content_index"] = 0.into();
                event["text"] = open.text.clone().into();
                if kind == Kind::Text {
                    event["logprobs"] = open.logprobs.clone().into();
                }
            }
        }
        self.send(&format!("{}.done", open.kind.event()), event, out);
        if open.kind != Kind::Call {
            let event = json!({
                "item_id": open.id, "output_index": index, "content_index": 0,
                "part": open.part(),
            });
            self.send("response.content_part.done", event, out);
        }
        let item = open.item(status);
        let event = json!({ "output_index": index, "item": item });
        self.send("response.output_item.done", event, out);
        self.output.push(item);
        self.note(open, status);
    }

    /// Adds an item to what the conversation will have of it.
    fn note(&mut self, open: Open, status: &str) {
        match (open.kind, open.call) {
            (Kind::Reasoning, _) => {
                self.said.reasoning.get_or_insert_default().push_str(&open.text);
            }
            (Kind::Call, Some((id, name))) if status == "completed" => {
                match parse_arguments(&open.text, "arguments") {
                    Ok(arguments) => self.said.calls.push(ToolCall { id, name, arguments }),
                    // They were cut.
                    Err(_) => self.said.text += &open.text,
                }
            }
            _ => self.said.text += &open.text,
        }
    }
}
