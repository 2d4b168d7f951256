//! `/v1/messages`: the response, whole and as events.

use serde_json::{Map, Value, json};

use super::error;
use crate::{
    error::ApiError,
    generation::{
        answers::{Block, Call, Part, blocks},
        choice::{Delta, Finish, StopReason, TOOL_CALLS, ended},
        stream::{Chunks, Events},
        usage::{Counts, Tokens},
    },
};

/// What a response says, and how.
pub(super) struct Shape {
    pub(super) id: String,
    pub(super) model: String,
    /// Fewer tokens may be generated than were asked for.
    pub(super) is_clamped: bool,
}

impl Shape {
    /// The whole response.
    pub(super) fn respond(&self, tokens: Tokens, mut choice: Delta) -> Value {
        let content: Vec<Value> =
            blocks(choice.take_parts()).into_iter().filter_map(block).collect();
        let has_calls = content.iter().any(|block| block["type"] == "tool_use");
        let mut message = self.message(tokens, content);
        let Ended { reason, stop_sequence } = self.ended(ended(choice.finish));
        let reason = if reason == TOOL_USE && !has_calls { END_TURN } else { reason };
        message["stop_reason"] = reason.into();
        message["stop_sequence"] = stop_sequence.into();
        message
    }

    fn message(&self, tokens: Tokens, content: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage(tokens),
        })
    }

    fn ended(&self, finish: Finish) -> Ended {
        let stop_sequence = match finish.stop_reason {
            Some(StopReason::Text(text)) => Some(text),
            _ => None,
        };
        let reason = match finish.reason {
            _ if stop_sequence.is_some() => "stop_sequence",
            "length" if self.is_clamped => "model_context_window_exceeded",
            "length" => "max_tokens",
            TOOL_CALLS => TOOL_USE,
            _ => END_TURN,
        };
        Ended { reason, stop_sequence }
    }
}

/// How a message ended.
struct Ended {
    reason: &'static str,
    stop_sequence: Option<String>,
}

/// Input is what was computed, beside what the cache had.
fn usage(tokens: Tokens) -> Value {
    json!({
        "input_tokens": tokens.input - tokens.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.output,
    })
}

const END_TURN: &str = "end_turn";
const TOOL_USE: &str = "tool_use";

fn block(block: Block) -> Option<Value> {
    let text = |text: String| (!text.is_empty()).then(|| json!({ "type": "text", "text": text }));
    match block {
        Block::Text(said) => text(said),
        Block::Reasoning(text) => {
            Some(json!({ "type": "thinking", "thinking": text, "signature": "" }))
        }
        Block::Call(Call { id, name, arguments }) => {
            // Arguments that were cut are no JSON: what there is of them is said as text.
            match serde_json::from_str::<Map<String, Value>>(&arguments) {
                Ok(input) => {
                    Some(json!({ "type": "tool_use", "id": id, "name": name, "input": input }))
                }
                Err(_) => text(arguments),
            }
        }
    }
}

/// The events of a streamed response.
pub(super) struct MessageChunks {
    shape: Shape,
    counts: Counts,
    is_begun: bool,
    /// Blocks that were begun, and what the last of them is while it is open.
    num_blocks: usize,
    open: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call,
}

impl MessageChunks {
    pub(super) fn new(shape: Shape, counts: Counts) -> Self {
        Self { shape, counts, is_begun: false, num_blocks: 0, open: None }
    }

    fn send(out: &mut Events, kind: &'static str, mut event: Value) {
        event["type"] = kind.into();
        out.push_named(kind, &event);
    }

    fn begin(&mut self, kind: Kind, block: Value, out: &mut Events) {
        self.end(out);
        self.open = Some(kind);
        let event = json!({ "index": self.num_blocks, "content_block": block });
        self.num_blocks += 1;
        Self::send(out, "content_block_start", event);
    }

    fn delta_of(&self, delta: Value, out: &mut Events) {
        let event = json!({ "index": self.num_blocks - 1, "delta": delta });
        Self::send(out, "content_block_delta", event);
    }

    fn end(&mut self, out: &mut Events) {
        if let Some(kind) = self.open.take() {
            if kind == Kind::Thinking {
                self.delta_of(json!({ "type": "signature_delta", "signature": "" }), out);
            }
            Self::send(out, "content_block_stop", json!({ "index": self.num_blocks - 1 }));
        }
    }

    fn part(&mut self, part: Part, out: &mut Events) {
        match part {
            Part::Text(text) => {
                if self.open != Some(Kind::Text) {
                    self.begin(Kind::Text, json!({ "type": "text", "text": "" }), out);
                }
                self.delta_of(json!({ "type": "text_delta", "text": text }), out);
            }
            Part::Reasoning(text) => {
                if self.open != Some(Kind::Thinking) {
                    let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
                    self.begin(Kind::Thinking, block, out);
                }
                self.delta_of(json!({ "type": "thinking_delta", "thinking": text }), out);
            }
            Part::CallStart { id, name, .. } => {
                let block = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                self.begin(Kind::Call, block, out);
            }
            Part::CallArguments { json, .. } => {
                self.delta_of(json!({ "type": "input_json_delta", "partial_json": json }), out);
            }
            Part::CallEnd { .. } => self.end(out),
        }
    }
}

impl Chunks for MessageChunks {
    /// The message's beginning waits for the first delta, which knows what the cache had.
    fn open(&mut self, _: &mut Events) {}

    fn delta(&mut self, index: usize, mut delta: Delta, out: &mut Events) {
        self.counts.note(index, &delta);
        if !std::mem::replace(&mut self.is_begun, true) {
            let tokens = Tokens { output: 0, ..self.counts.tokens() };
            let message = self.shape.message(tokens, Vec::new());
            Self::send(out, "message_start", json!({ "message": message }));
        }
        for part in delta.take_parts() {
            self.part(part, out);
        }
        if let Some(finish) = delta.finish {
            self.end(out);
            let Ended { reason, stop_sequence } = self.shape.ended(finish);
            let delta = json!({ "stop_reason": reason, "stop_sequence": stop_sequence });
            let event = json!({ "delta": delta, "usage": usage(self.counts.tokens()) });
            Self::send(out, "message_delta", event);
        }
    }

    fn close(&mut self, out: &mut Events) {
        Self::send(out, "message_stop", json!({}));
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.push_named("error", &error::body(error));
    }

    fn keep_alive(&mut self, out: &mut Events) {
        Self::send(out, "ping", json!({}));
    }
}
