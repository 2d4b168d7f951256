//! `/v1/messages` and `/v1/messages/count_tokens`: the request.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    answer::{MessageAnswer, MessageChunks, MessageEvent, Shape},
    content::{self, CacheControl, Content, MessageBody},
    tools::{self, ToolBody, ToolChoiceBody},
};
use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{
        bound_calls,
        choice::{Choice, Start},
        conversation::{Conversation, Prompt, Role},
        settings::{GenerationFields, OneOrMany, Settings},
        stream,
        structure::{self, Structure},
        structure_fields,
        tools::Tools,
        usage::Counts,
    },
    json::{self, Body, JsonBody},
    openai::{chat::ReasoningEffort, check_model},
    state::AppState,
};

/// A conversation whose tokens are counted.
// It is also what a request to answer is asked of the model.
#[derive(Deserialize, ToSchema)]
#[schema(as = CountTokensRequest, examples(json!({ "model": "MODEL", "messages": [{ "role": "user", "content": "Hello" }] })))]
#[serde(deny_unknown_fields)]
pub(crate) struct Asked {
    /// A served name.
    model: String,
    /// The conversation, oldest first. An assistant's message at the end is the beginning of the
    /// answer.
    #[schema(min_items = 1)]
    messages: Vec<MessageBody>,
    /// What the model is told before the conversation.
    system: Option<Content>,
    /// Tools that the model may call.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolBody>>,
    /// `auto` if not given.
    tool_choice: Option<ToolChoiceBody>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
    /// The older name of `output_config.format`.
    #[schema(value_type = Option<structure_fields::OutputFormat>)]
    output_format: Option<Value>,
    #[serde(rename = "cache_control")]
    _cache_control: Option<CacheControl>,
    context_management: Option<ContextManagement>,
}

/// A conversation, which the model is to answer.
#[derive(Deserialize, ToSchema)]
#[schema(as = MessageRequest, examples(json!({ "model": "MODEL", "max_tokens": 256, "messages": [{ "role": "user", "content": "Hello" }] })))]
pub(crate) struct MessagesBody {
    /// Tokens of the answer at most, thoughts included; fewer where the context has no room.
    #[schema(minimum = 1)]
    max_tokens: u32,
    /// Texts that end the answer, and are left out of it: at most 16, of 1 to 1,024 bytes each.
    #[schema(max_items = 16)]
    stop_sequences: Option<Vec<String>>,
    /// Whether the answer comes as server-sent events, as it is generated.
    #[schema(default = false)]
    stream: Option<bool>,
    /// Sampling temperature; 0 is greedy. Default: the model's own, else 1.
    #[schema(minimum = 0, maximum = 100)]
    temperature: Option<f32>,
    /// Nucleus sampling: keep the likeliest tokens whose probabilities sum to this. Default: the
    /// model's own, else 1, which keeps all.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    /// Keep this many likeliest tokens; 0 or -1 keeps all. Default: the model's own, else 0.
    #[schema(minimum = -1)]
    top_k: Option<i64>,
    metadata: Option<Metadata>,
    /// Taken, and the same to this server.
    #[serde(rename = "service_tier")]
    #[schema(inline)]
    _service_tier: Option<ServiceTier>,
    /// Unknown fields are found there.
    #[serde(flatten)]
    #[schema(value_type = Asked)]
    asked: Map<String, Value>,
}

/// The fields above, for those who misspell them.
pub(crate) const OWN_FIELDS: &[&str] = &[
    "max_tokens",
    "stop_sequences",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "metadata",
    "service_tier",
];

/// Whether the model is to think, and how much.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Thinking {
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: ThinkingKind,
    /// Tokens of thoughts at most, fewer than `max_tokens`; with `enabled`, and only then.
    #[schema(minimum = 1)]
    budget_tokens: Option<u32>,
    #[serde(rename = "display")]
    #[schema(inline)]
    _display: Option<Display>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ThinkingKind {
    Enabled,
    Disabled,
    Adaptive,
}

/// Thoughts are shown whole.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Display {
    Summarized,
}

/// What the answer is to be.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OutputConfig {
    /// How much the model is to think, which its chat template is told.
    #[schema(inline)]
    effort: Option<Effort>,
    /// The form that the text must have.
    #[schema(value_type = Option<structure_fields::OutputFormat>)]
    format: Option<Value>,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Effort {
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

/// The client's own notes.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = MessageMetadata)]
#[serde(deny_unknown_fields)]
struct Metadata {
    /// Only logged.
    user_id: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ServiceTier {
    Auto,
    StandardOnly,
}

/// Edits of the conversation before the model sees it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ContextManagement {
    /// Only those of the type `clear_thinking_…` are taken: chat templates leave out the thoughts
    /// of earlier turns by themselves.
    #[serde(default)]
    edits: Vec<Map<String, Value>>,
}

/// Chat templates leave out the thoughts of earlier turns by themselves.
const CLEAR_THINKING: &str = "clear_thinking_";

impl Body for MessagesBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] =
        &[("container", None), ("inference_geo", None), ("mcp_servers", None)];
}

impl Body for Asked {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[("mcp_servers", None)];
    /// As for `/tokenize`, no other limit counts this work.
    const INLINE_BYTES: usize = 0;
}

impl ContextManagement {
    fn check(this: Option<&Self>) -> Result<(), ApiError> {
        let edits = this.map(|this| &*this.edits).unwrap_or_default();
        let is_known = |edit: &Map<String, Value>| {
            let kind = edit.get("type").and_then(Value::as_str);
            kind.is_some_and(|kind| kind.starts_with(CLEAR_THINKING))
        };
        match edits.iter().position(|edit| !is_known(edit)) {
            None => Ok(()),
            Some(index) => {
                Err(ApiError::unsupported(&format!("context_management.edits[{index}]")))
            }
        }
    }
}

impl Thinking {
    fn check(&self, max_tokens: u32) -> Result<(), ApiError> {
        let field = Some("thinking.budget_tokens");
        match (self.kind, self.budget_tokens) {
            (ThinkingKind::Enabled, None) => {
                Err(ApiError::invalid(field, "thinking.budget_tokens is missing"))
            }
            (ThinkingKind::Enabled, Some(budget)) if budget == 0 || budget >= max_tokens => {
                let message = format!(
                    "thinking.budget_tokens is {budget}, but must be at least 1 and less than \
                     max_tokens ({max_tokens})"
                );
                Err(ApiError::invalid(field, message))
            }
            (ThinkingKind::Enabled, _) | (_, None) => Ok(()),
            (_, Some(_)) => {
                let message = "thinking.budget_tokens has a meaning only with type enabled";
                Err(ApiError::invalid(field, message))
            }
        }
    }
}

/// What a conversation makes.
struct Encoded {
    prompt: Prompt,
    tools: Tools,
    structure: Option<Structure>,
}

impl Asked {
    fn encode(self, state: &AppState, caller: &TenantAuth) -> Result<Encoded, ApiError> {
        let (effort, format) =
            self.output_config.map_or((None, None), |config| (config.effort, config.format));
        let structure = structure_fields::of_output_format(format, self.output_format)?;
        check_model(state, caller, Some(&self.model))?;
        ContextManagement::check(self.context_management.as_ref())?;
        let tools = tools::read(self.tools, self.tool_choice)?;
        let mut template_kwargs = Map::new();
        let thinks = self.thinking.is_some_and(|thinking| thinking.kind != ThinkingKind::Disabled);
        template_kwargs.insert("enable_thinking".to_owned(), thinks.into());
        if let Some(effort) = effort {
            let effort = match effort {
                Effort::Low => ReasoningEffort::Low,
                Effort::Medium => ReasoningEffort::Medium,
                Effort::High => ReasoningEffort::High,
                Effort::Xhigh | Effort::Max => ReasoningEffort::Xhigh,
            };
            effort.tell(&mut template_kwargs);
        }
        let messages = content::read(self.system, self.messages)?;
        // A last message of the assistant's is the beginning of the answer.
        let continues = messages
            .last()
            .is_some_and(|last| last.role == Role::Assistant && last.calls.is_empty());
        let conversation = Conversation {
            messages,
            tools: &tools,
            field: "messages",
            add_generation_prompt: None,
            continues,
            template_kwargs,
        };
        let most = state.engine.limits().scheduler.max_model_len;
        let prompt = conversation.encode(&state.text, false, most)?;
        Ok(Encoded { prompt, tools, structure })
    }
}

/// A request that is ready for the engine.
struct Prepared {
    settings: Settings,
    start: Start,
    model: String,
    /// The context has no room for all the tokens that were asked for.
    is_clamped: bool,
}

fn prepare(state: &AppState, caller: TenantAuth, body: MessagesBody) -> Result<Prepared, ApiError> {
    if body.max_tokens == 0 {
        let message = "max_tokens is 0, but must be at least 1";
        return Err(ApiError::invalid(Some("max_tokens"), message));
    }
    let asked: Asked = json::deserialize(body.asked, OWN_FIELDS)?;
    if let Some(thinking) = &asked.thinking {
        thinking.check(body.max_tokens)?;
    }
    let budget = asked.thinking.as_ref().and_then(|thinking| thinking.budget_tokens);
    let model = asked.model.clone();
    let Encoded { prompt, tools, structure } = asked.encode(state, &caller)?;
    let fields = GenerationFields {
        temperature: body.temperature,
        top_p: body.top_p,
        top_k: body.top_k,
        stop: body.stop_sequences.map(OneOrMany::Many),
        stream: body.stream,
        user: body.metadata.and_then(|metadata| metadata.user_id),
        ..GenerationFields::default()
    };
    let mut settings = fields
        .settings(&state.generator, caller)
        .map_err(|error| error.renamed("stop", "stop_sequences"))?;
    if let Some(structure) = structure {
        settings.set_structure(&state.generator, structure)?;
    }
    bound_calls::bound(&state.generator, &mut settings, &tools)?;
    if let Some(tokens) = budget {
        let field = "thinking.budget_tokens";
        settings.thought_budget = state.generator.answers.thought_budget(tokens, field)?;
    }
    let limits = state.engine.limits();
    // Clients ask for as many tokens as a model can write, whatever the context.
    let max_tokens =
        settings.max_tokens(limits, &[prompt.tokens.len()], None, Some(body.max_tokens))?[0];
    let start = Start::of_answer(&state.generator, &settings, &tools, prompt, max_tokens)?;
    Ok(Prepared { settings, start, model, is_clamped: max_tokens < body.max_tokens })
}

/// Answer a conversation
///
/// Whole, or as server-sent events with `stream: true`, each named by its `type`.
#[utoipa::path(
    post, path = "/v1/messages", tag = "Anthropic", operation_id = "createMessage",
    request_body = MessagesBody,
    responses((status = 200, description = "The answer", content(
        (MessageAnswer = "application/json"),
        (String = "text/event-stream", item_schema = MessageEvent),
    ))),
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let Prepared { settings, start, model, is_clamped } = body.work(&state, prepare).await?;
    let mut choices = vec![Choice::submit(&state.generator, &settings, &start, 0, false)?];
    structure::make_ready(&state, &settings, &mut choices).await?;
    let counts = Counts::new(start.prompt.len(), 1, 1, false);
    let shape = Shape { id: state.next_id("msg_"), model, is_clamped };
    if settings.stream.is_none() {
        let choice = choices.pop().expect("one was submitted");
        let whole = [choice.collect().await?];
        let tokens = counts.of_all(&whole).tokens();
        let [whole] = whole;
        return Ok(Json(shape.respond(tokens, whole)).into_response());
    }
    stream::respond(choices, MessageChunks::new(shape, counts)).await
}

/// The tokens of a conversation.
#[derive(Serialize, ToSchema)]
pub(crate) struct TokenCount {
    input_tokens: usize,
}

/// Count a conversation's tokens
#[utoipa::path(
    post, path = "/v1/messages/count_tokens", tag = "Anthropic", operation_id = "countTokens",
    request_body = Asked,
    responses((status = 200, description = "The number of tokens", body = TokenCount)),
)]
pub(crate) async fn count_tokens(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<TokenCount>, ApiError> {
    body.work(&state, |state, caller, asked: Asked| {
        let Encoded { prompt, .. } = asked.encode(state, &caller)?;
        Ok(Json(TokenCount { input_tokens: prompt.tokens.len() }))
    })
    .await
}
