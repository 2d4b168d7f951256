//! `/v1/responses`: the request.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    items::{self, Input},
    response::Shape,
    store::History,
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
    openai::{chat::ReasoningEffort, check_metadata, check_model, shortest},
    state::AppState,
};

/// A request's body.
#[derive(Deserialize)]
pub(crate) struct ResponsesBody {
    model: Option<String>,
    input: Input,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    top_logprobs: Option<u32>,
    tools: Option<Vec<ToolBody>>,
    tool_choice: Option<ToolChoiceBody>,
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Reasoning>,
    text: Option<TextConfig>,
    include: Option<Vec<String>>,
    previous_response_id: Option<String>,
    store: Option<bool>,
    truncation: Option<Truncation>,
    metadata: Option<Map<String, Value>>,
    chat_template_kwargs: Option<Map<String, Value>>,
    /// What all endpoints have; unknown fields are found there.
    #[serde(flatten)]
    shared: Map<String, Value>,
}

/// The fields above, for those who misspell them.
const OWN_FIELDS: &[&str] = &[
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

/// An entry of `tools`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolBody {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// `tool_choice`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a string or an object {\"type\": \"function\", \"name\": …}")]
enum ToolChoiceBody {
    Mode(String),
    Named(NamedChoice),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedChoice {
    #[serde(rename = "type")]
    _kind: FunctionKind,
    name: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FunctionKind {
    Function,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Reasoning {
    effort: Option<ReasoningEffort>,
    /// Thoughts are told whole.
    summary: Option<String>,
    /// Its older name.
    #[serde(rename = "generate_summary", skip_serializing)]
    _generate_summary: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextConfig {
    format: Option<Value>,
    verbosity: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
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
    let mut settings = shared.settings(state, caller)?;
    settings.params.logprobs = num_logprobs;
    if let Some(structure) = structure {
        if settings.structure.is_some() {
            let message = "text.format and structured_outputs both ask for a form of the answer; \
                           give one of them";
            return Err(ApiError::invalid(Some("structured_outputs"), message));
        }
        settings.set_structure(state, structure)?;
    }
    bound_calls::bound(state, &mut settings, &tools)?;
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
    let start = Start::of_answer(state, &settings, &tools, prompt, max_tokens)?;
    let is_stored = body.store.unwrap_or(true);
    let mut echo = json!({
        "background": false,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata.unwrap_or_default(),
        "parallel_tool_calls": tools.parallel,
        "previous_response_id": body.previous_response_id,
        "reasoning": body.reasoning.map_or(Value::Null, |reasoning| json!(reasoning)),
        "store": is_stored,
        "temperature": shortest(settings.params.temperature),
        "text": { "format": format },
        "tool_choice": choice_json(&tools.choice),
        "tools": tools.list.iter().map(tool_json).collect::<Vec<_>>(),
        "top_logprobs": num_logprobs.unwrap_or(0),
        "top_p": shortest(settings.params.top_p),
        "truncation": "disabled",
    });
    if let Some(user) = user {
        echo["user"] = user.into();
    }
    let wants_logprobs = num_logprobs.is_some();
    let model = state.answering_name(body.model);
    let shape = Shape { model, echo, is_stored, wants_logprobs };
    Ok(Prepared { settings, start, shape, history })
}

/// The form as the response shows it, and what it asks for.
fn text_format(text: Option<TextConfig>) -> Result<(Value, Option<Structure>), ApiError> {
    let plain = json!({ "type": "text" });
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
        Some(ToolChoiceBody::Mode(mode)) => ToolChoice::from_mode(&mode)?,
    };
    Tools::new(list, choice, parallel.unwrap_or(true), "tools", "tool_choice")
}

fn tool_json(tool: &Tool) -> Value {
    json!({
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    })
}

fn choice_json(choice: &ToolChoice) -> Value {
    match choice {
        ToolChoice::None => "none".into(),
        ToolChoice::Auto => "auto".into(),
        ToolChoice::Required => "required".into(),
        ToolChoice::Named(name) => json!({ "type": "function", "name": name }),
    }
}
