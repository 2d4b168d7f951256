//! `/v1/messages`: the response, whole and as events.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::error::{self, ErrorDetail};
use crate::{
    error::ApiError,
    generation::{
        answers::{Block, Call, Part, blocks},
        choice::{self, Delta, Finish, FinishReason, ended},
        stream::{Chunks, Events},
        usage::{Counts, Tokens},
    },
    word::word,
};

word!(MessageType = "message");
word!(Assistant = "assistant");

/// An answer to a conversation.
#[derive(Serialize, ToSchema)]
#[schema(as = Message)]
pub(crate) struct MessageAnswer {
    id: String,
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: MessageType,
    #[schema(inline)]
    role: Assistant,
    /// As the request called it.
    model: String,
    /// Thoughts, texts and calls in the order in which the model wrote them.
    content: Vec<ContentBlock>,
    /// Null while the answer has not ended.
    #[schema(required)]
    stop_reason: Option<StopReason>,
    /// The text that ended it, if one did.
    #[schema(required)]
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

/// A block of an answer.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ContentBlock {
    Text {
        text: String,
    },
    Thinking {
        thinking: String,
        /// Always empty.
        signature: &'static str,
    },
    /// A call of a tool.
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = MessageStopReason)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
    ModelContextWindowExceeded,
}

/// The tokens of an answer. Input is what was computed, beside what the cache had.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct MessageUsage {
    input_tokens: usize,
    /// Always 0: what is cached costs nothing more.
    cache_creation_input_tokens: usize,
    /// Found in the prefix cache.
    cache_read_input_tokens: usize,
    output_tokens: usize,
}

/// What a stream tells of an answer. Blocks are counted from 0.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum MessageEvent {
    MessageStart {
        message: MessageAnswer,
    },
    ContentBlockStart {
        index: usize,
        content_block: ContentBlock,
    },
    ContentBlockDelta {
        index: usize,
        delta: BlockDelta,
    },
    ContentBlockStop {
        index: usize,
    },
    MessageDelta {
        delta: Ended,
        usage: MessageUsage,
    },
    MessageStop {},
    /// Nothing was generated for 15 seconds.
    Ping {},
    /// The stream ends with it.
    Error {
        error: ErrorDetail,
    },
}

/// What a block got.
#[derive(Serialize, ToSchema)]
#[schema(as = ContentBlockDelta)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the API's words")]
pub(crate) enum BlockDelta {
    TextDelta {
        text: String,
    },
    ThinkingDelta {
        thinking: String,
    },
    SignatureDelta {
        /// Always empty.
        signature: &'static str,
    },
    /// A piece of a call's arguments.
    InputJsonDelta {
        partial_json: String,
    },
}

/// How a message ended.
#[derive(Serialize, ToSchema)]
#[schema(as = MessageEnd)]
pub(crate) struct Ended {
    #[serde(rename = "stop_reason")]
    reason: StopReason,
    /// The text that ended it, if one did.
    #[schema(required)]
    stop_sequence: Option<String>,
}

impl MessageEvent {
    /// The event's name, which its `type` repeats.
    fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop {} => "message_stop",
            Self::Ping {} => "ping",
            Self::Error { .. } => "error",
        }
    }

    fn send(&self, out: &mut Events) {
        out.push_named(self.name(), self);
    }
}

impl MessageUsage {
    fn new(tokens: Tokens) -> Self {
        Self {
            input_tokens: tokens.input - tokens.cached,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: tokens.cached,
            output_tokens: tokens.output,
        }
    }
}

/// What a response says, and how.
pub(super) struct Shape {
    pub(super) id: String,
    pub(super) model: String,
    /// Fewer tokens may be generated than were asked for.
    pub(super) is_clamped: bool,
}

impl Shape {
    /// The whole response.
    pub(super) fn respond(&self, tokens: Tokens, mut choice: Delta) -> MessageAnswer {
        let content: Vec<ContentBlock> =
            blocks(choice.take_parts()).into_iter().filter_map(block).collect();
        let has_calls = content.iter().any(|block| matches!(block, ContentBlock::ToolUse { .. }));
        let Ended { mut reason, stop_sequence } = self.ended(ended(choice.finish));
        if reason == StopReason::ToolUse && !has_calls {
            reason = StopReason::EndTurn;
        }
        MessageAnswer { stop_reason: Some(reason), stop_sequence, ..self.message(tokens, content) }
    }

    fn message(&self, tokens: Tokens, content: Vec<ContentBlock>) -> MessageAnswer {
        MessageAnswer {
            id: self.id.clone(),
            kind: MessageType::Word,
            role: Assistant::Word,
            model: self.model.clone(),
            content,
            stop_reason: None,
            stop_sequence: None,
            usage: MessageUsage::new(tokens),
        }
    }

    fn ended(&self, finish: Finish) -> Ended {
        let stop_sequence = match finish.stop_reason {
            Some(choice::StopReason::Text(text)) => Some(text),
            _ => None,
        };
        let reason = match finish.reason {
            _ if stop_sequence.is_some() => StopReason::StopSequence,
            FinishReason::Length if self.is_clamped => StopReason::ModelContextWindowExceeded,
            FinishReason::Length => StopReason::MaxTokens,
            FinishReason::ToolCalls => StopReason::ToolUse,
            FinishReason::Stop => StopReason::EndTurn,
        };
        Ended { reason, stop_sequence }
    }
}

fn block(block: Block) -> Option<ContentBlock> {
    let text = |text: String| (!text.is_empty()).then_some(ContentBlock::Text { text });
    match block {
        Block::Text(said) => text(said),
        Block::Reasoning(thinking) => Some(ContentBlock::Thinking { thinking, signature: "" }),
        Block::Call(Call { id, name, arguments }) => {
            // Arguments that were cut are no JSON: what there is of them is said as text.
            match serde_json::from_str::<Map<String, Value>>(&arguments) {
                Ok(input) => Some(ContentBlock::ToolUse { id, name, input }),
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

    fn begin(&mut self, kind: Kind, content_block: ContentBlock, out: &mut Events) {
        self.end(out);
        self.open = Some(kind);
        MessageEvent::ContentBlockStart { index: self.num_blocks, content_block }.send(out);
        self.num_blocks += 1;
    }

    fn delta_of(&self, delta: BlockDelta, out: &mut Events) {
        MessageEvent::ContentBlockDelta { index: self.num_blocks - 1, delta }.send(out);
    }

    fn end(&mut self, out: &mut Events) {
        if let Some(kind) = self.open.take() {
            if kind == Kind::Thinking {
                self.delta_of(BlockDelta::SignatureDelta { signature: "" }, out);
            }
            MessageEvent::ContentBlockStop { index: self.num_blocks - 1 }.send(out);
        }
    }

    fn part(&mut self, part: Part, out: &mut Events) {
        match part {
            Part::Text(text) => {
                if self.open != Some(Kind::Text) {
                    self.begin(Kind::Text, ContentBlock::Text { text: String::new() }, out);
                }
                self.delta_of(BlockDelta::TextDelta { text }, out);
            }
            Part::Reasoning(thinking) => {
                if self.open != Some(Kind::Thinking) {
                    let thinking = String::new();
                    let block = ContentBlock::Thinking { thinking, signature: "" };
                    self.begin(Kind::Thinking, block, out);
                }
                self.delta_of(BlockDelta::ThinkingDelta { thinking }, out);
            }
            Part::CallStart { id, name, .. } => {
                let block = ContentBlock::ToolUse { id, name, input: Map::new() };
                self.begin(Kind::Call, block, out);
            }
            Part::CallArguments { json, .. } => {
                self.delta_of(BlockDelta::InputJsonDelta { partial_json: json }, out);
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
            MessageEvent::MessageStart { message }.send(out);
        }
        for part in delta.take_parts() {
            self.part(part, out);
        }
        if let Some(finish) = delta.finish {
            self.end(out);
            let delta = self.shape.ended(finish);
            let usage = MessageUsage::new(self.counts.tokens());
            MessageEvent::MessageDelta { delta, usage }.send(out);
        }
    }

    fn close(&mut self, out: &mut Events) {
        MessageEvent::MessageStop {}.send(out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        MessageEvent::Error { error: error::detail(error) }.send(out);
    }

    fn keep_alive(&mut self, out: &mut Events) {
        MessageEvent::Ping {}.send(out);
    }
}
