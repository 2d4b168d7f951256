//! `/v1/chat/completions`: the response, whole and as chunks.

use std::sync::Arc;

use sconce_text::TextModel;
use sconce_types::TokenLogprobs;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    FINGERPRINT, token_logprobs,
    tools::{CallAnswer, CallDelta},
};
use crate::generation::{
    answers::{Block, Part, blocks},
    choice::{Delta, Finish, StopReason, ended},
    stream::{Chunks, Events},
    usage::{Counts, Usage},
};

/// What every response and chunk of a request says, and how.
pub(super) struct Shape {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) text: Arc<TextModel>,
    pub(super) wants_logprobs: bool,
    pub(super) wants_reasoning: bool,
}

impl Shape {
    /// The whole response.
    pub(super) fn respond(&self, usage: Usage, choices: Vec<Delta>) -> Value {
        let choice = |(index, mut choice): (usize, Delta)| {
            let parts = choice.take_parts();
            let Finish { reason, stop_reason } = ended(choice.finish);
            json!({
                "index": index,
                "message": self.message(parts),
                "logprobs": logprobs(&self.text, &choice.logprobs),
                "finish_reason": reason,
                "stop_reason": stop_reason,
            })
        };
        let choices: Vec<Value> = choices.into_iter().enumerate().map(choice).collect();
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            "usage": usage,
        })
    }

    fn message(&self, parts: Vec<Part>) -> Value {
        let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
        for block in blocks(parts) {
            match block {
                Block::Text(more) => text += &more,
                Block::Reasoning(more) => reasoning += &more,
                Block::Call(call) => calls.push(call),
            }
        }
        let content = (!text.is_empty() || calls.is_empty()).then_some(text);
        let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
        if !reasoning.is_empty() && self.wants_reasoning {
            message["reasoning"] = reasoning.clone().into();
            message["reasoning_content"] = reasoning.into();
        }
        if !calls.is_empty() {
            let calls: Vec<_> = calls
                .iter()
                .map(|call| CallAnswer::new(&call.id, &call.name, &call.arguments))
                .collect();
            message["tool_calls"] = json!(calls);
        }
        message
    }
}

/// OpenAI's `logprobs` of chat choices; null where none were asked for.
fn logprobs(text: &TextModel, logprobs: &[TokenLogprobs]) -> Option<Value> {
    let content = token_logprobs(text, logprobs);
    (!content.is_empty()).then(|| json!({ "content": content, "refusal": null }))
}

/// The chunks of a streamed response.
pub(super) struct ChatChunks {
    pub(super) shape: Shape,
    pub(super) counts: Counts,
    pub(super) include_usage: bool,
    pub(super) continuous: bool,
}

#[derive(Serialize)]
struct Chunk<'a, D> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [ChunkChoice<D>],
    /// Absent unless usage was asked for; then null but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChunkChoice<D> {
    index: usize,
    delta: D,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
}

/// What most deltas are.
#[derive(Serialize)]
struct TextDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Default, Serialize)]
struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
}

impl<'a> ChunkDelta<'a> {
    /// `None` for a part that chunks do not show.
    fn of(part: &'a Part, wants_reasoning: bool) -> Option<Self> {
        let call = |call| Self { tool_calls: Some([call]), ..Self::default() };
        match part {
            Part::Text(text) => Some(Self { content: Some(text), ..Self::default() }),
            Part::Reasoning(text) => wants_reasoning.then(|| Self {
                reasoning: Some(text),
                reasoning_content: Some(text),
                ..Self::default()
            }),
            Part::CallStart { index, id, name } => Some(call(CallDelta::start(*index, id, name))),
            Part::CallArguments { index, json } => Some(call(CallDelta::arguments(*index, json))),
            Part::CallEnd { .. } => None,
        }
    }
}

impl ChatChunks {
    fn push<D: Serialize>(
        &self,
        choices: &[ChunkChoice<D>],
        usage: Option<Option<Usage>>,
        out: &mut Events,
    ) {
        let Shape { id, created, model, .. } = &self.shape;
        let object = "chat.completion.chunk";
        out.push(&Chunk { id, object, created: *created, model, choices, usage });
    }

    fn running_usage(&self) -> Option<Option<Usage>> {
        self.include_usage.then(|| self.continuous.then(|| self.counts.usage()))
    }
}

impl Chunks for ChatChunks {
    fn open(&mut self, out: &mut Events) {
        for index in 0..self.counts.num_choices() {
            let delta = TextDelta { role: Some("assistant"), content: Some("") };
            let choice = ChunkChoice {
                index,
                delta,
                logprobs: None,
                finish_reason: None,
                stop_reason: None,
            };
            self.push(&[choice], self.running_usage(), out);
        }
    }

    fn delta(&mut self, index: usize, delta: Delta, out: &mut Events) {
        self.counts.note(index, &delta);
        let Shape { text, wants_logprobs, wants_reasoning, .. } = &self.shape;
        let mut logprobs = if *wants_logprobs { logprobs(text, &delta.logprobs) } else { None };
        if delta.is_plain {
            if delta.text.is_empty() && logprobs.is_none() && delta.finish.is_none() {
                return;
            }
            let content =
                (!delta.text.is_empty() || delta.finish.is_none()).then_some(&*delta.text);
            let (finish_reason, stop_reason) = delta
                .finish
                .map_or((None, None), |finish| (Some(finish.reason), finish.stop_reason));
            let delta = TextDelta { role: None, content };
            let choice = ChunkChoice { index, delta, logprobs, finish_reason, stop_reason };
            return self.push(&[choice], self.running_usage(), out);
        }
        let mut deltas: Vec<_> =
            delta.parts.iter().filter_map(|part| ChunkDelta::of(part, *wants_reasoning)).collect();
        if deltas.is_empty() {
            if logprobs.is_none() && delta.finish.is_none() {
                return;
            }
            let content = delta.finish.is_none().then_some("");
            deltas.push(ChunkDelta { content, ..Default::default() });
        }
        let last = deltas.len() - 1;
        let mut finish = delta.finish;
        for (at, delta) in deltas.into_iter().enumerate() {
            let finish = if at == last { finish.take() } else { None };
            let (finish_reason, stop_reason) =
                finish.map_or((None, None), |finish| (Some(finish.reason), finish.stop_reason));
            let logprobs = logprobs.take();
            let choice = ChunkChoice { index, delta, logprobs, finish_reason, stop_reason };
            self.push(&[choice], self.running_usage(), out);
        }
    }

    fn close(&mut self, out: &mut Events) {
        if self.include_usage {
            self.push::<()>(&[], Some(Some(self.counts.usage())), out);
        }
        out.done();
    }
}
