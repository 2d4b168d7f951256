//! `/v1/chat/completions`: the response, whole and as chunks.

use std::sync::Arc;

use sconce_text::TextModel;
use sconce_types::{TokenId, TokenLogprobs};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    FINGERPRINT, TokenLogprob,
    prompt_logprobs::{PromptLogprob, PromptLogprobs, prompt_logprobs},
    token_logprobs,
    tools::{CallAnswer, CallDelta},
};
use crate::{
    generation::{
        answers::{Block, Call, Part, blocks},
        choice::{Delta, Finish, FinishReason, StopReason, ended},
        stream::{Chunks, Events},
        usage::{Counts, Usage},
    },
    word::word,
};

word!(ChatObject = "chat.completion");
word!(ChunkObject = "chat.completion.chunk");
word!(Assistant = "assistant");

/// An answer to a conversation.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    #[schema(inline)]
    object: ChatObject,
    /// In seconds since 1970.
    created: u64,
    /// As the request called it.
    model: String,
    /// The same settings and seed give the same answer under it.
    system_fingerprint: &'static str,
    choices: Vec<ChatChoice>,
    usage: Usage,
    /// Where they are asked for: null for the prompt's first token, then by token id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<std::collections::BTreeMap<String, PromptLogprob>>>>)]
    prompt_logprobs: Option<PromptLogprobs>,
    /// Where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    prompt_token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: usize,
    message: AnswerMessage,
    /// Null unless asked for.
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: FinishReason,
    /// The text or the token that ended it, if one did.
    #[schema(required)]
    stop_reason: Option<StopReason>,
    /// Where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    token_ids: Option<Vec<TokenId>>,
}

/// What the model said.
#[derive(Serialize, ToSchema)]
struct AnswerMessage {
    #[schema(inline)]
    role: Assistant,
    /// Null where all of the answer is calls.
    #[schema(required)]
    content: Option<String>,
    /// Always null.
    #[schema(required)]
    refusal: Option<String>,
    /// What it thought, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    /// The same by its older name.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallAnswer>,
}

/// The log-probabilities of a choice's tokens.
#[derive(Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    /// Always null.
    #[schema(required)]
    refusal: Option<Vec<TokenLogprob>>,
}

/// What every response and chunk of a request says, and how.
pub(super) struct Shape {
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) text: Arc<TextModel>,
    pub(super) wants_logprobs: bool,
    pub(super) wants_reasoning: bool,
    pub(super) names_tokens_by_id: bool,
    /// How many of the likeliest tokens are told in each place of the prompt, if any.
    pub(super) prompt_logprobs: Option<u32>,
    /// The prompt's tokens, where ids are asked for.
    pub(super) prompt_token_ids: Option<Vec<TokenId>>,
}

impl Shape {
    /// The whole response.
    pub(super) fn respond(self, usage: Usage, choices: Vec<Delta>) -> ChatCompletion {
        let of_prompt = choices.first().map_or(&[][..], |choice| &*choice.prompt_logprobs);
        let prompt_logprobs =
            self.prompt_logprobs.map(|num_top| prompt_logprobs(&self.text, of_prompt, num_top));
        let choice = |(index, mut choice): (usize, Delta)| {
            let parts = choice.take_parts();
            let Finish { reason, stop_reason } = ended(choice.finish);
            ChatChoice {
                index,
                message: self.message(parts),
                logprobs: self.logprobs(&choice.logprobs),
                finish_reason: reason,
                stop_reason,
                token_ids: self.prompt_token_ids.as_ref().map(|_| choice.token_ids),
            }
        };
        let choices = choices.into_iter().enumerate().map(choice).collect();
        ChatCompletion {
            id: self.id.clone(),
            object: ChatObject::Word,
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: FINGERPRINT,
            choices,
            usage,
            prompt_logprobs,
            prompt_token_ids: self.prompt_token_ids.clone(),
        }
    }

    /// OpenAI's `logprobs` of chat choices; null where none were asked for.
    fn logprobs(&self, logprobs: &[TokenLogprobs]) -> Option<ChatLogprobs> {
        let content = token_logprobs(&self.text, logprobs, self.names_tokens_by_id);
        (!content.is_empty()).then_some(ChatLogprobs { content, refusal: None })
    }

    fn message(&self, parts: Vec<Part>) -> AnswerMessage {
        let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
        for block in blocks(parts) {
            match block {
                Block::Text(more) => text += &more,
                Block::Reasoning(more) => reasoning += &more,
                Block::Call(Call { id, name, arguments }) => {
                    calls.push(CallAnswer::new(id, name, arguments));
                }
            }
        }
        let content = (!text.is_empty() || calls.is_empty()).then_some(text);
        let reasoning = (!reasoning.is_empty() && self.wants_reasoning).then_some(reasoning);
        AnswerMessage {
            role: Assistant::Word,
            content,
            refusal: None,
            reasoning: reasoning.clone(),
            reasoning_content: reasoning,
            tool_calls: calls,
        }
    }
}

/// The chunks of a streamed response.
pub(super) struct ChatChunks {
    pub(super) shape: Shape,
    pub(super) counts: Counts,
    pub(super) include_usage: bool,
    pub(super) continuous: bool,
}

pub(crate) type ChatCompletionChunk = Chunk<'static, ChunkDelta<'static>>;

/// A part of a streamed answer.
#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletionChunk)]
pub(crate) struct Chunk<'a, D> {
    id: &'a str,
    #[schema(inline)]
    object: ChunkObject,
    /// In seconds since 1970.
    created: u64,
    model: &'a str,
    /// One, or none in a last chunk that has `usage`.
    #[schema(value_type = Vec<ChoiceOfAnyDelta>)]
    choices: &'a [ChunkChoice<D>],
    /// In the first chunk of a choice, where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    prompt_token_ids: Option<&'a [TokenId]>,
    /// Absent unless usage was asked for; then null but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
}

type ChoiceOfAnyDelta = ChunkChoice<ChunkDelta<'static>>;

#[derive(Serialize, ToSchema)]
#[schema(as = ChatChunkChoice)]
pub(crate) struct ChunkChoice<D> {
    index: usize,
    #[schema(value_type = ChunkDelta<'static>)]
    delta: D,
    /// Of the delta's tokens; null unless asked for.
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    /// Null but in the choice's last chunk.
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    /// The text or the token that ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
    /// Where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
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
    role: Option<Assistant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// What a choice got since its last chunk.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = ChatDelta)]
pub(crate) struct ChunkDelta<'a> {
    /// In the choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    role: Option<Assistant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<CallDelta<'a>>>)]
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
        let (object, created) = (ChunkObject::Word, *created);
        out.push(&Chunk { id, object, created, model, choices, prompt_token_ids, usage });
    }

    fn running_usage(&self) -> Option<Option<Usage>> {
        self.include_usage.then(|| self.continuous.then(|| self.counts.usage()))
    }
}

impl Chunks for ChatChunks {
    fn open(&mut self, out: &mut Events) {
        for index in 0..self.counts.num_choices() {
            let delta = TextDelta { role: Some(Assistant::Word), content: Some("") };
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
