//! `/v1/chat/completions`: the request.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use futures::future::try_join_all;
use sconce_types::MAX_LOGPROBS;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    chat_answer::{ChatChunks, ChatCompletion, ChatCompletionChunk, Shape},
    messages::{self, MessageBody},
    tools::{self, ToolBody, ToolChoiceBody},
};
use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{
        bound_calls,
        choice::{Choice, Start},
        conversation::Conversation,
        settings::{GenerationFields, Settings, UNSUPPORTED},
        stream, structure,
        usage::Counts,
    },
    json::{self, Body, JsonBody},
    state::{AppState, unix_seconds},
};

/// A conversation, which the model is to answer.
#[derive(Deserialize, ToSchema)]
#[schema(as = ChatRequest, examples(json!({ "messages": [{ "role": "user", "content": "What is the capital of France?" }] })))]
pub(crate) struct ChatBody {
    /// A served name; the server's own model if not given.
    model: Option<String>,
    /// The conversation, oldest first.
    #[schema(min_items = 1)]
    messages: Vec<MessageBody>,
    /// The older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    /// Tokens of the answer at most, thoughts included. What the context and the tenant's limits
    /// leave room for if not given.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    /// Whether the answer has its tokens' log-probabilities.
    #[schema(default = false)]
    logprobs: Option<bool>,
    /// With `logprobs`: how many of the likeliest tokens have theirs too.
    #[schema(maximum = 20, default = 0)]
    top_logprobs: Option<u32>,
    /// Whether the prompt ends with the opening of an answer. True unless the last message
    /// continues.
    add_generation_prompt: Option<bool>,
    /// Whether the answer goes on from the last message, an assistant's.
    #[schema(default = false)]
    continue_final_message: Option<bool>,
    /// Variables of the chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// Functions that the model may call.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolBody>>,
    /// `auto` if not given.
    tool_choice: Option<ToolChoiceBody>,
    /// Whether an answer may have several calls.
    #[schema(default = true)]
    parallel_tool_calls: Option<bool>,
    /// How much the model is to think, which its chat template is told.
    reasoning_effort: Option<ReasoningEffort>,
    /// Whether the answer shows what the model thought.
    #[schema(default = true)]
    include_reasoning: Option<bool>,
    /// Tokens of a thought at most, after which it is closed.
    thinking_token_budget: Option<u32>,
    /// What both endpoints have; unknown fields are found there.
    #[serde(flatten)]
    #[schema(value_type = GenerationFields)]
    shared: Map<String, Value>,
}

/// The fields above, for those who misspell them.
pub(crate) const OWN_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template_kwargs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "include_reasoning",
    "thinking_token_budget",
];

/// How much a model is to think, which its chat template is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ReasoningEffort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
}

impl ReasoningEffort {
    /// Tells a template in the words that templates know; what the client says itself stays.
    pub(crate) fn tell(self, kwargs: &mut Map<String, Value>) {
        if self == Self::None {
            kwargs.entry("enable_thinking").or_insert(false.into());
        }
        let effort = serde_json::to_value(self).expect("a word is JSON");
        kwargs.entry("reasoning_effort").or_insert(effort);
    }
}

/// A request that is ready for the engine.
struct Prepared {
    settings: Settings,
    start: Start,
    model: Option<String>,
    wants_logprobs: bool,
    wants_reasoning: bool,
    /// What the request calls its maximum of tokens.
    max_tokens_name: &'static str,
}

fn prepare(state: &AppState, caller: TenantAuth, body: ChatBody) -> Result<Prepared, ApiError> {
    super::check_model(state, &caller, body.model.as_deref())?;
    let max_tokens = max_tokens(&body)?;
    let max_tokens_name =
        if body.max_tokens.is_some() { "max_tokens" } else { "max_completion_tokens" };
    let num_logprobs = num_logprobs(&body)?;
    let shared: GenerationFields = json::deserialize(body.shared, OWN_FIELDS)?;
    let add_special_tokens = shared.add_special_tokens.unwrap_or(false);
    let mut settings = shared.settings(&state.generator, caller)?;
    settings.params.logprobs = num_logprobs;
    let limits = state.engine.limits();
    let tools = tools::read(body.tools, body.tool_choice, body.parallel_tool_calls)?;
    bound_calls::bound(&state.generator, &mut settings, &tools)?;
    if let Some(tokens) = body.thinking_token_budget {
        let field = "thinking_token_budget";
        settings.thought_budget = state.generator.answers.thought_budget(tokens, field)?;
    }
    let mut template_kwargs = body.chat_template_kwargs.unwrap_or_default();
    if let Some(effort) = body.reasoning_effort {
        effort.tell(&mut template_kwargs);
    }
    let conversation = Conversation {
        messages: messages::read(body.messages)?,
        tools: &tools,
        field: "messages",
        add_generation_prompt: body.add_generation_prompt,
        continues: body.continue_final_message.unwrap_or(false),
        template_kwargs,
    };
    let text = &state.text;
    let longest = settings.longest_prompt(limits);
    let mut prompt = conversation.encode(text, add_special_tokens, longest)?;
    settings.cut(&mut prompt.tokens, limits, max_tokens);
    let max_tokens = settings
        .max_tokens(limits, &[prompt.tokens.len()], max_tokens, None)
        .map_err(|error| error.renamed("max_tokens", max_tokens_name).within("messages"))?[0];
    let start = Start::of_answer(&state.generator, &settings, &tools, prompt, max_tokens)?;
    let (model, wants_logprobs) = (body.model, num_logprobs.is_some());
    let wants_reasoning = body.include_reasoning.unwrap_or(true);
    Ok(Prepared { settings, start, model, wants_logprobs, wants_reasoning, max_tokens_name })
}

/// Answer a conversation
///
/// Whole, or as server-sent events with `stream: true`, which end with `data: [DONE]`.
#[utoipa::path(
    post, path = "/v1/chat/completions", tag = "OpenAI", operation_id = "createChatCompletion",
    request_body = ChatBody,
    responses((status = 200, description = "The answer", content(
        (ChatCompletion = "application/json"),
        (String = "text/event-stream", item_schema = ChatCompletionChunk),
    ))),
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let prepared = body.work(&state, prepare).await?;
    let Prepared { mut settings, start, .. } = prepared;
    let mut choices = Vec::with_capacity(settings.n);
    for index in 0..settings.n {
        let choice =
            Choice::submit(&state.generator, &settings, &start, index, false).map_err(|error| {
                error.renamed("max_tokens", prepared.max_tokens_name).within("messages")
            })?;
        choices.push(choice);
        // One choice tells those of the prompt, which all have.
        settings.params.prompt_logprobs = None;
    }
    structure::make_ready(&state, &settings, &mut choices).await?;
    let shape = Shape {
        id: state.next_id("chatcmpl-"),
        created: unix_seconds(),
        model: state.answering_name(prepared.model),
        text: state.text.clone(),
        wants_logprobs: prepared.wants_logprobs,
        wants_reasoning: prepared.wants_reasoning,
        names_tokens_by_id: settings.names_tokens_by_id,
        prompt_logprobs: settings.prompt_logprobs,
        prompt_token_ids: settings.returns_token_ids.then(|| start.prompt.clone()),
    };
    let prompt_tokens = start.prompt.len();
    let counts = Counts::new(prompt_tokens, settings.n, choices.len(), settings.include_metering);
    let Some(options) = settings.stream else {
        let whole = try_join_all(choices.into_iter().map(Choice::collect)).await?;
        let usage = counts.of_all(&whole).usage();
        return Ok(Json(shape.respond(usage, whole)).into_response());
    };
    let chunks = ChatChunks {
        shape,
        counts,
        include_usage: options.include_usage.unwrap_or(false) || settings.include_metering,
        continuous: options.continuous_usage_stats.unwrap_or(false),
    };
    stream::respond(choices, chunks).await
}

impl Body for ChatBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[
        ("audio", None),
        ("best_of", Some("1")),
        ("chat_template", None),
        ("documents", None),
        ("echo", None),
        ("function_call", Some("\"none\"")),
        ("functions", None),
        ("modalities", Some("[\"text\"]")),
        ("prediction", None),
        ("store", None),
        ("verbosity", Some("\"medium\"")),
        ("web_search_options", None),
    ];
    const SHARED: &'static [(&'static str, Option<&'static str>)] = UNSUPPORTED;
}

fn max_tokens(body: &ChatBody) -> Result<Option<u32>, ApiError> {
    match (body.max_tokens, body.max_completion_tokens) {
        (Some(a), Some(b)) if a != b => {
            let message = "max_tokens and max_completion_tokens differ; give one of them";
            Err(ApiError::invalid(Some("max_completion_tokens"), message))
        }
        (a, b) => Ok(b.or(a)),
    }
}

fn num_logprobs(body: &ChatBody) -> Result<Option<u32>, ApiError> {
    match (body.logprobs.unwrap_or(false), body.top_logprobs) {
        (true, Some(top)) if top > MAX_LOGPROBS => {
            let message = format!("top_logprobs is {top}, but must be at most {MAX_LOGPROBS}");
            Err(ApiError::invalid(Some("top_logprobs"), message))
        }
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let message = "top_logprobs has a meaning only with logprobs: true";
            Err(ApiError::invalid(Some("top_logprobs"), message))
        }
    }
}
