//! `/v1/responses`: a response and the events of its stream, as they are sent.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::request::Reasoning;
use crate::{
    generation::{
        structure_fields::TextFormat,
        tools::{Tool, ToolChoice},
        usage::Tokens,
    },
    openai::{
        TokenLogprob,
        tools::{FunctionKind, ToolMode},
    },
    word::word,
};

word!(ResponseObject = "response");
word!(Disabled = "disabled");
word!(Assistant = "assistant");
word!(MaxOutputTokens = "max_output_tokens");
word!(ServerError = "server_error");

/// What the model makes of an input.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = Response)]
pub(crate) struct ResponseBody {
    pub(super) id: String,
    #[schema(inline)]
    pub(super) object: ResponseObject,
    /// In seconds since 1970.
    pub(super) created_at: u64,
    pub(super) status: Status,
    /// Why it failed, if it did.
    #[schema(required)]
    pub(super) error: Option<Failure>,
    /// Why it is incomplete, if it is.
    #[schema(required)]
    pub(super) incomplete_details: Option<IncompleteDetails>,
    /// As the request called it.
    pub(super) model: String,
    /// Thoughts, texts and calls in the order in which the model wrote them.
    pub(super) output: Vec<OutputItem>,
    /// Once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<ResponseUsage>,
    #[serde(flatten)]
    pub(super) echo: Echo,
}

/// `incomplete` where it has had its most tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ResponseStatus)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    InProgress,
    Completed,
    Incomplete,
    Failed,
}

/// Why a response failed.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ResponseFailure)]
pub(crate) struct Failure {
    #[schema(inline)]
    pub(super) code: ServerError,
    pub(super) message: String,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[schema(as = ResponseIncompleteDetails)]
pub(crate) struct IncompleteDetails {
    #[schema(inline)]
    pub(super) reason: MaxOutputTokens,
}

/// The tokens of a response.
#[derive(Clone, Copy, Serialize, ToSchema)]
pub(crate) struct ResponseUsage {
    input_tokens: usize,
    #[schema(inline)]
    input_tokens_details: InputTokensDetails,
    output_tokens: usize,
    #[schema(inline)]
    output_tokens_details: OutputTokensDetails,
    total_tokens: usize,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
struct InputTokensDetails {
    /// Found in the prefix cache.
    cached_tokens: usize,
    /// Always 0: what is written costs nothing more.
    cache_write_tokens: usize,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
struct OutputTokensDetails {
    /// Tokens of thoughts.
    reasoning_tokens: usize,
}

impl ResponseUsage {
    pub(super) fn new(tokens: Tokens) -> Self {
        Self {
            input_tokens: tokens.input,
            input_tokens_details: InputTokensDetails {
                cached_tokens: tokens.cached,
                cache_write_tokens: 0,
            },
            output_tokens: tokens.output,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: tokens.reasoning },
            total_tokens: tokens.input + tokens.output,
        }
    }
}

/// What of the request the response repeats, with what was not given as it was taken.
#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct Echo {
    /// Always false.
    pub(super) background: bool,
    #[schema(required)]
    pub(super) instructions: Option<String>,
    #[schema(required)]
    pub(super) max_output_tokens: Option<u32>,
    #[schema(value_type = Map<String, String>)]
    pub(super) metadata: Map<String, Value>,
    pub(super) parallel_tool_calls: bool,
    #[schema(required)]
    pub(super) previous_response_id: Option<String>,
    #[schema(required)]
    pub(super) reasoning: Option<Reasoning>,
    pub(super) store: bool,
    pub(super) temperature: f64,
    #[schema(inline)]
    pub(super) text: Text,
    pub(super) tool_choice: ToolChoiceEcho,
    pub(super) tools: Vec<ToolEcho>,
    pub(super) top_logprobs: u32,
    pub(super) top_p: f64,
    #[schema(inline)]
    pub(super) truncation: Disabled,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
}

#[derive(Clone, Serialize, ToSchema)]
pub(crate) struct Text {
    #[schema(value_type = TextFormat)]
    pub(super) format: Value,
}

/// A function that the model could call.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ResponseToolEcho)]
pub(crate) struct ToolEcho {
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: FunctionKind,
    name: String,
    #[schema(required)]
    description: Option<String>,
    #[schema(required)]
    parameters: Option<Value>,
    strict: bool,
}

impl ToolEcho {
    pub(super) fn new(tool: &Tool) -> Self {
        Self {
            kind: FunctionKind::Function,
            name: tool.name.clone(),
            description: tool.description.clone(),
            parameters: tool.parameters.clone(),
            strict: tool.strict,
        }
    }
}

#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ResponseToolChoiceEcho)]
#[serde(untagged)]
pub(crate) enum ToolChoiceEcho {
    Mode(#[schema(inline)] ToolMode),
    Named(NamedEcho),
}

/// A call of this function was asked for.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ResponseNamedToolEcho)]
pub(crate) struct NamedEcho {
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: FunctionKind,
    name: String,
}

impl ToolChoiceEcho {
    pub(super) fn new(choice: &ToolChoice) -> Self {
        match choice {
            ToolChoice::None => Self::Mode(ToolMode::None),
            ToolChoice::Auto => Self::Mode(ToolMode::Auto),
            ToolChoice::Required => Self::Mode(ToolMode::Required),
            ToolChoice::Named(name) => {
                Self::Named(NamedEcho { kind: FunctionKind::Function, name: name.clone() })
            }
        }
    }
}

/// An item of a response.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ResponseOutputItem)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputItem {
    /// What the model says.
    Message {
        id: String,
        status: Status,
        #[schema(inline)]
        role: Assistant,
        content: Vec<OutputPart>,
    },
    /// A call of a tool.
    FunctionCall {
        id: String,
        /// What the call's output names it by.
        call_id: String,
        name: String,
        /// JSON as text, as the model wrote it: cut where the response was.
        arguments: String,
        status: Status,
    },
    /// A thought.
    Reasoning {
        id: String,
        /// Always empty: thoughts are told whole.
        summary: Vec<OutputPart>,
        content: Vec<OutputPart>,
        status: Status,
    },
}

/// A part of an item.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = ResponseOutputPart)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum OutputPart {
    OutputText {
        text: String,
        /// Always empty.
        annotations: Vec<Value>,
        /// Empty unless asked for.
        logprobs: Vec<TokenLogprob>,
    },
    ReasoningText {
        text: String,
    },
}

/// What a stream tells of a response. Items, and the parts of their contents, are counted from 0.
#[derive(Serialize, ToSchema)]
#[schema(as = ResponseEvent)]
#[serde(tag = "type")]
pub(crate) enum Event<'a> {
    #[serde(rename = "response.created")]
    Created { response: &'a ResponseBody, sequence_number: u64 },
    #[serde(rename = "response.in_progress")]
    InProgress { response: &'a ResponseBody, sequence_number: u64 },
    #[serde(rename = "response.output_item.added")]
    ItemAdded { output_index: usize, item: &'a OutputItem, sequence_number: u64 },
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        part: &'a OutputPart,
        sequence_number: u64,
    },
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        /// Empty unless asked for.
        logprobs: &'a [TokenLogprob],
        sequence_number: u64,
    },
    #[serde(rename = "response.output_text.done")]
    TextDone {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        text: &'a str,
        /// Empty unless asked for.
        logprobs: &'a [TokenLogprob],
        sequence_number: u64,
    },
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        sequence_number: u64,
    },
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        text: &'a str,
        sequence_number: u64,
    },
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta { item_id: &'a str, output_index: usize, delta: &'a str, sequence_number: u64 },
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        item_id: &'a str,
        output_index: usize,
        name: &'a str,
        arguments: &'a str,
        sequence_number: u64,
    },
    #[serde(rename = "response.content_part.done")]
    PartDone {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        part: &'a OutputPart,
        sequence_number: u64,
    },
    #[serde(rename = "response.output_item.done")]
    ItemDone { output_index: usize, item: &'a OutputItem, sequence_number: u64 },
    #[serde(rename = "response.completed")]
    Completed { response: &'a ResponseBody, sequence_number: u64 },
    #[serde(rename = "response.incomplete")]
    Incomplete { response: &'a ResponseBody, sequence_number: u64 },
    #[serde(rename = "response.failed")]
    Failed { response: &'a ResponseBody, sequence_number: u64 },
}

pub(crate) type ResponseEvent = Event<'static>;

impl Event<'_> {
    /// The event's name, which its `type` repeats.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::ReasoningDelta { .. } => "response.reasoning_text.delta",
            Self::ReasoningDone { .. } => "response.reasoning_text.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}

/// A stored response that is gone.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeletedResponse {
    pub(super) id: String,
    #[schema(inline)]
    pub(super) object: ResponseObject,
    pub(super) deleted: bool,
}
