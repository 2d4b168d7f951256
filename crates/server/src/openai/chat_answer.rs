//! `/v1/chat/completions`: the response, whole and as chunks.

use std::sync::Arc;

use sconce_text::TextModel;
use sconce_types::{TokenId, TokenLogprobs};
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
    pub(super) names_tokens_by_id: bool,
    /// The prompt's tokens, where ids are asked for.
    pub(super) prompt_token_ids: Option<Vec<TokenId>>,
}

impl Shape {
    /// The whole response.
    pub(super) fn respond(&self, usage: Usage, choices: Vec<Delta>) -> Value {
        let choice = |(index, mut choice): (usize, Delta)| {
            let parts = choice.take_parts();
            let Finish { reason, stop_reason } = ended(choice.finish);
            let mut answer = json!({
                "index": index,
                "message": self.message(parts),
                "logprobs": self.logprobs(&choice.logprobs),
                "finish_reason": reason,
                "stop_reason": stop_reason,
            });
            if self.prompt_token_ids.is_some() {
                answer["token_ids"] = choice.token_ids.into();
            }
            answer
        };
        let choices: Vec<Value> = choices.into_iter().enumerate().map(choice).collect();
        let mut response = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            "usage": usage,
        });
        if let Some(tokens) = &self.prompt_token_ids {
            response["prompt_token_ids"] = json!(tokens);
        }
        response
    }

    /// OpenAI's `logprobs` of chat choices; null where none were asked for.
    fn logprobs(&self, logprobs: &[TokenLogprobs]) -> Option<Value> {
        let content = token_logprobs(&self.text, logprobs, self.names_tokens_by_id);
        (!content.is_empty()).then(|| json!({ "content": content, "refusal": null }))
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
    /// In the first chunk of a choice, where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
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
    /// Where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

impl<D> ChunkChoice<D> {
    fn new(index: usize, delta: D, finish: Option<Finish>) -> Self {
        let (finish_reason, stop_reason) =
            finish.map_or((None, None), |finish| (Some(finish.reason), finish.stop_reason));
        Self { index, delta, logprobs: None, finish_reason, stop_reason, token_ids: None }
    }
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
        self.push_first(choices, None, usage, out);
    }

    fn push_first<D: Serialize>(
        &self,
        choices: &[ChunkChoice<D>],
        prompt_token_ids: Option<&[TokenId]>,
        usage: Option<Option<Usage>>,
        out: &mut Events,
    ) {
        let Shape { id, created, model, .. } = &self.shape;
        let (object, created) = ("chat.completion.chunk", *created);
        out.push(&Chunk { id, object, created, model, choices, prompt_token_ids, usage });
    }

    fn running_usage(&self) -> Option<Option<Usage>> {
        self.include_usage.then(|| self.continuous.then(|| self.counts.usage()))
    }
}

impl Chunks for ChatChunks {
    fn open(&mut self, out: &mut Events) {
        for index in 0..self.counts.num_choices() {
            let delta = TextDelta { role: Some("assistant"), content: Some("") };
            let choice = ChunkChoice::new(index, delta, None);
            let prompt_token_ids = self.shape.prompt_token_ids.as_deref();
            self.push_first(&[choice], prompt_token_ids, self.running_usage(), out);
        }
    }

    fn delta(&mut self, index: usize, mut delta: Delta, out: &mut Events) {
        self.counts.note(index, &delta);
        let Shape { wants_logprobs, wants_reasoning, prompt_token_ids, .. } = &self.shape;
        let mut logprobs = wants_logprobs.then(|| self.shape.logprobs(&delta.logprobs)).flatten();
        let mut token_ids = prompt_token_ids.as_ref().map(|_| std::mem::take(&mut delta.token_ids));
        let has_ids = token_ids.as_ref().is_some_and(|tokens| !tokens.is_empty());
        let is_silent = logprobs.is_none() && delta.finish.is_none() && !has_ids;
        if delta.is_plain {
            if delta.text.is_empty() && is_silent {
                return;
            }
            let content =
                (!delta.text.is_empty() || delta.finish.is_none()).then_some(&*delta.text);
            let text = TextDelta { role: None, content };
            let choice = ChunkChoice::new(index, text, delta.finish);
            let choice = ChunkChoice { logprobs, token_ids, ..choice };
            return self.push(&[choice], self.running_usage(), out);
        }
        let mut deltas: Vec<_> =
            delta.parts.iter().filter_map(|part| ChunkDelta::of(part, *wants_reasoning)).collect();
        if deltas.is_empty() {
            if is_silent {
                return;
            }
            let content = delta.finish.is_none().then_some("");
            deltas.push(ChunkDelta { content, ..Default::default() });
        }
        let last = deltas.len() - 1;
        let mut finish = delta.finish;
        for (at, delta) in deltas.into_iter().enumerate() {
            let finish = if at == last { finish.take() } else { None };
            let (logprobs, token_ids) = (logprobs.take(), token_ids.take());
            let choice = ChunkChoice::new(index, delta, finish);
            let choice = ChunkChoice { logprobs, token_ids, ..choice };
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
