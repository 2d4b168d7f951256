//! `/v1/responses`: the request.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    items::{self, Input},
    response::Shape,
    store::History,
    wire::{Disabled, Echo, Text, ToolChoiceEcho, ToolEcho},
};
use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{
        bound_calls,
        choice::Start,
        conversation::{Conversation, Message, Role},
        settings::{GenerationFields, Settings, UNSUPPORTED},
        structure::Structure,
        structure_fields,
        tools::{Tool, ToolChoice, Tools},
    },
    json::{self, Body},
    openai::{
        chat::ReasoningEffort,
        check_metadata, check_model, shortest,
        tools::{FunctionKind, ToolMode},
    },
    state::AppState,
};

/// What the model is to respond to.
#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseRequest, examples(json!({ "input": "What is the capital of France?" })))]
pub(crate) struct ResponsesBody {
    /// A served name; the server's own model if not given.
    model: Option<String>,
    /// A user's text, or items, oldest first.
    input: Input,
    /// What the model is told before the conversation, of which it is no part.
    instructions: Option<String>,
    /// Tokens of the response at most, thoughts included. What the context and the tenant's
    /// limits leave room for if not given.
    #[schema(minimum = 1)]
    max_output_tokens: Option<u32>,
    /// Log-probabilities of the text's tokens, and of so many likeliest ones in their places.
    #[schema(maximum = 20)]
    top_logprobs: Option<u32>,
    /// Functions that the model may call.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolBody>>,
    /// `auto` if not given.
    tool_choice: Option<ToolChoiceBody>,
    /// Whether a response may have several calls.
    #[schema(default = true)]
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Reasoning>,
    /// The form that the text must have.
    text: Option<TextConfig>,
    /// What the response is to have beside its items. All but log-probabilities it has anyway,
    /// or nothing here makes it.
    #[schema(value_type = Option<Vec<Include>>)]
    include: Option<Vec<String>>,
    /// The stored response that the input goes on from.
    previous_response_id: Option<String>,
    /// Whether the response is kept in memory for others that go on from it.
    #[schema(default = true)]
    store: Option<bool>,
    /// `auto` is refused.
    truncation: Option<Truncation>,
    /// The client's own notes, which the response repeats: at most 16 pairs of strings, keys of
    /// at most 64 and values of at most 512 characters.
    #[schema(value_type = Option<Map<String, String>>)]
    metadata: Option<Map<String, Value>>,
    /// Variables of the chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
    /// What all endpoints have; unknown fields are found there.
    #[serde(flatten)]
    #[schema(value_type = GenerationFields)]
    shared: Map<String, Value>,
}

/// The fields above, for those who misspell them.
pub(crate) const OWN_FIELDS: &[&str] = &[
    "model",
    "input",
    "instructions",
    "max_output_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "reasoning",
    "text",
    "include",
    "previous_response_id",
    "store",
    "truncation",
    "metadata",
    "chat_template_kwargs",
];

/// What `include` may name that answers have anyway, or that nothing here makes.
const INCLUDES: &[&str] = &[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
];
const LOGPROBS: &str = "message.output_text.logprobs";

/// What `include` may name.
#[derive(ToSchema)]
#[expect(dead_code, reason = "names are read by hand")]
enum Include {
    #[serde(rename = "reasoning.encrypted_content")]
    EncryptedReasoning,
    #[serde(rename = "message.output_text.logprobs")]
    Logprobs,
    #[serde(rename = "file_search_call.results")]
    FileSearchResults,
    #[serde(rename = "message.input_image.image_url")]
    ImageUrl,
    #[serde(rename = "web_search_call.action.sources")]
    WebSearchSources,
    #[serde(rename = "code_interpreter_call.outputs")]
    CodeInterpreterOutputs,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ResponseTool)]
#[serde(deny_unknown_fields)]
struct ToolBody {
    #[serde(rename = "type")]
    #[schema(value_type = FunctionKind, inline)]
    kind: String,
    /// Letters, digits, underscores, dashes and dots.
    #[schema(
        required,
        nullable = false,
        min_length = 1,
        max_length = 64,
        pattern = "^[A-Za-z0-9_.-]+$"
    )]
    name: Option<String>,
    description: Option<String>,
    /// The JSON schema of its arguments.
    parameters: Option<Value>,
    /// Whether calls must follow the schema, which a grammar then sees to.
    #[schema(default = false)]
    strict: Option<bool>,
}

/// Whether the model may or must call tools.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ResponseToolChoice)]
#[serde(
    untagged,
    expecting = "a mode, which is none, auto or required, or an object {\"type\": \"function\", \
                 \"name\": …}"
)]
enum ToolChoiceBody {
    Mode(#[schema(inline)] ToolMode),
    Named(NamedChoice),
}

/// A call of this function.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ResponseNamedTool)]
#[serde(deny_unknown_fields)]
struct NamedChoice {
    #[serde(rename = "type")]
    #[schema(inline)]
    _kind: FunctionKind,
    name: String,
}

/// How the model is to think.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = ResponseReasoning)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reasoning {
    effort: Option<ReasoningEffort>,
    /// Thoughts are told whole.
    summary: Option<String>,
    /// Its older name.
    #[serde(rename = "generate_summary", skip_serializing)]
    _generate_summary: Option<String>,
}

/// The form that a response's text must have.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[schema(as = ResponseText)]
#[serde(deny_unknown_fields)]
struct TextConfig {
    #[schema(value_type = Option<structure_fields::TextFormat>)]
    format: Option<Value>,
    /// Only `medium` is taken.
    verbosity: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Truncation {
    Auto,
    Disabled,
}

impl Body for ResponsesBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[
        ("add_special_tokens", None),
        ("background", None),
        ("conversation", None),
        ("include_metering", None),
        ("max_tool_calls", None),
        ("n", Some("1")),
        ("prompt", None),
        ("prompt_cache_retention", None),
        ("prompt_logprobs", None),
        ("response_format", None),
        ("return_token_ids", None),
        ("return_tokens_as_token_ids", None),
        ("truncate_prompt_tokens", None),
    ];
    const SHARED: &'static [(&'static str, Option<&'static str>)] = UNSUPPORTED;
    /// However short, it may go on from a long conversation.
    const INLINE_BYTES: usize = 0;
}

/// A request that is ready for the engine.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    pub(super) start: Start,
    pub(super) shape: Shape,
    /// The conversation, for requests that go on from the response.
    pub(super) history: History,
}

pub(super) fn prepare(
    state: &AppState,
    caller: TenantAuth,
    body: ResponsesBody,
) -> Result<Prepared, ApiError> {
    check_model(state, &caller, body.model.as_deref())?;
    check_metadata(body.metadata.as_ref())?;
    if matches!(body.truncation, Some(Truncation::Auto)) {
        return Err(ApiError::unsupported("truncation: auto"));
    }
    let (format, structure) = text_format(body.text)?;
    let num_logprobs = num_logprobs(body.include.as_deref(), body.top_logprobs)?;
    let tools = read_tools(body.tools, body.tool_choice, body.parallel_tool_calls)?;
    let mut history = History::default();
    if let Some(id) = &body.previous_response_id {
        let before = state.responses.messages(caller.id, id);
        let before =
            before.ok_or_else(|| ApiError::response_not_found("previous_response_id", id))?;
        history.before = Some(before);
    }
    items::read(body.input, &mut history.added)?;
    let mut messages = history.messages();
    if let Some(instructions) = &body.instructions {
        // They are this request's, and no part of the conversation.
        messages.insert(0, Message::new(Role::System, instructions.clone()));
    }
    let shared: GenerationFields = json::deserialize(body.shared, OWN_FIELDS)?;
    let user = shared.user.clone();
    let mut settings = shared.settings(&state.generator, caller)?;
    settings.params.logprobs = num_logprobs;
    if let Some(structure) = structure {
        if settings.structure.is_some() {
            let message = "text.format and structured_outputs both ask for a form of the answer; \
                           give one of them";
            return Err(ApiError::invalid(Some("structured_outputs"), message));
        }
        settings.set_structure(&state.generator, structure)?;
    }
    bound_calls::bound(&state.generator, &mut settings, &tools)?;
    let mut template_kwargs = body.chat_template_kwargs.unwrap_or_default();
    if let Some(effort) = body.reasoning.as_ref().and_then(|reasoning| reasoning.effort) {
        effort.tell(&mut template_kwargs);
    }
    let conversation = Conversation {
        messages,
        tools: &tools,
        field: "input",
        add_generation_prompt: None,
        continues: false,
        template_kwargs,
    };
    let limits = state.engine.limits();
    let prompt = conversation.encode(&state.text, false, limits.scheduler.max_model_len)?;
    let max_tokens = settings
        .max_tokens(limits, &[prompt.tokens.len()], body.max_output_tokens, None)
        .map_err(|error| error.renamed("max_tokens", "max_output_tokens").within("input"))?[0];
    let start = Start::of_answer(&state.generator, &settings, &tools, prompt, max_tokens)?;
    let is_stored = body.store.unwrap_or(true);
    let echo = Echo {
        background: false,
        instructions: body.instructions,
        max_output_tokens: body.max_output_tokens,
        metadata: body.metadata.unwrap_or_default(),
        parallel_tool_calls: tools.parallel,
        previous_response_id: body.previous_response_id,
        reasoning: body.reasoning,
        store: is_stored,
        temperature: shortest(settings.params.temperature),
        text: Text { format },
        tool_choice: ToolChoiceEcho::new(&tools.choice),
        tools: tools.list.iter().map(ToolEcho::new).collect(),
        top_logprobs: num_logprobs.unwrap_or(0),
        top_p: shortest(settings.params.top_p),
        truncation: Disabled::Word,
        user,
    };
    let wants_logprobs = num_logprobs.is_some();
    let model = state.answering_name(body.model);
    let shape = Shape { model, echo, is_stored, wants_logprobs };
    Ok(Prepared { settings, start, shape, history })
}

/// The form as the response shows it, and what it asks for.
fn text_format(text: Option<TextConfig>) -> Result<(Value, Option<Structure>), ApiError> {
    let plain = serde_json::json!({ "type": "text" });
    let Some(TextConfig { format, verbosity }) = text else { return Ok((plain, None)) };
    if verbosity.is_some_and(|verbosity| verbosity != "medium") {
        return Err(ApiError::unsupported("text.verbosity"));
    }
    match format {
        None | Some(Value::Null) => Ok((plain, None)),
        Some(format) => Ok((format.clone(), structure_fields::of_text_format(format)?)),
    }
}

/// Log-probabilities are given where `include` names them, or some are asked for beside the
/// sampled token's.
fn num_logprobs(include: Option<&[String]>, top: Option<u32>) -> Result<Option<u32>, ApiError> {
    let include = include.unwrap_or_default();
    if let Some(index) = include.iter().position(|name| !INCLUDES.contains(&&**name)) {
        let field = format!("include[{index}]");
        let message =
            format!("{field} is {:?}, but must be one of {}", include[index], INCLUDES.join(", "));
        return Err(ApiError::invalid(Some(&field), message));
    }
    if let Some(top) = top.filter(|&top| top > sconce_types::MAX_LOGPROBS) {
        let most = sconce_types::MAX_LOGPROBS;
        let message = format!("top_logprobs is {top}, but must be at most {most}");
        return Err(ApiError::invalid(Some("top_logprobs"), message));
    }
    let is_included = include.iter().any(|name| name == LOGPROBS);
    Ok(top.filter(|&top| top > 0).or(is_included.then_some(0)))
}

fn read_tools(
    tools: Option<Vec<ToolBody>>,
    choice: Option<ToolChoiceBody>,
    parallel: Option<bool>,
) -> Result<Tools, ApiError> {
    let tool = |(index, tool): (usize, ToolBody)| {
        let field = format!("tools[{index}]");
        if tool.kind != "function" {
            let name = format!("{field}.type");
            let message = format!(
                "{name} is {:?}, but must be function: this server runs no tools itself",
                tool.kind
            );
            return Err(ApiError::invalid(Some(&name), message));
        }
        let name = tool.name.ok_or_else(|| ApiError::missing(&field, "name"))?;
        let (description, parameters) = (tool.description, tool.parameters);
        let strict = tool.strict.unwrap_or(false);
        Ok(Tool { name, description, parameters, strict })
    };
    let list = tools.unwrap_or_default().into_iter().enumerate().map(tool);
    let list = list.collect::<Result<Vec<_>, _>>()?;
    let choice = match choice {
        None => ToolChoice::Auto,
        Some(ToolChoiceBody::Named(named)) => ToolChoice::Named(named.name),
        Some(ToolChoiceBody::Mode(mode)) => mode.into(),
    };
    Tools::new(list, choice, parallel.unwrap_or(true), "tools", "tool_choice")
}
