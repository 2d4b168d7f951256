//! `/v1/chat/completions`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use futures::future::try_join_all;
use sconce_text::{ChatTemplateOptions, TextModel};
use sconce_types::{MAX_LOGPROBS, TokenId, TokenLogprobs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    choice::{Choice, Delta, Finish, Start, StopReason},
    params::{GenerationFields, Settings, UNSUPPORTED},
    stream::{self, Chunks, Events},
    usage::{Counts, Usage},
};
use crate::{
    caller::TenantAuth,
    error::ApiError,
    json::{self, Body, JsonBody},
    state::{AppState, unix_seconds},
};

/// A request's body.
#[derive(Deserialize)]
pub(crate) struct ChatBody {
    model: Option<String>,
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    add_generation_prompt: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
    /// What both endpoints have; unknown fields are found there.
    #[serde(flatten)]
    shared: Map<String, Value>,
}

/// The fields above, for those who misspell them.
const OWN_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "add_generation_prompt",
    "chat_template_kwargs",
];

/// A message of a conversation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Message {
    role: Role,
    content: Option<Content>,
    name: Option<String>,
    // What answers hold beside their text: clients send them back as they came.
    refusal: Option<Value>,
    annotations: Option<Value>,
    audio: Option<Value>,
    function_call: Option<Value>,
    tool_calls: Option<Value>,
    /// For templates that show what a model has thought; `reasoning` is vLLM's newer name.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a string or a list of {\"type\": \"text\", \"text\": …} parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", deny_unknown_fields, rename_all = "lowercase")]
enum Part {
    Text { text: String },
}

impl Message {
    /// A field that is not supported and has a value that asks for something.
    fn unsupported(&self) -> Option<&'static str> {
        let fields = [
            ("refusal", &self.refusal),
            ("annotations", &self.annotations),
            ("audio", &self.audio),
            ("function_call", &self.function_call),
            ("tool_calls", &self.tool_calls),
        ];
        let mut asked = fields
            .into_iter()
            .filter(|(_, value)| value.as_ref().is_some_and(|value| !json::asks_nothing(value)));
        asked.next().map(|(name, _)| name)
    }

    /// The message as templates see it.
    fn into_json(self) -> Value {
        let content = match self.content {
            None => String::new(),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let texts: Vec<_> = parts.into_iter().map(|Part::Text { text }| text).collect();
                texts.join("\n")
            }
        };
        let mut message = json!({ "role": self.role, "content": content });
        if let Some(name) = self.name {
            message["name"] = name.into();
        }
        if let Some(reasoning) = self.reasoning_content.or(self.reasoning) {
            message["reasoning_content"] = reasoning.into();
        }
        message
    }
}

/// Templates the messages and encodes the prompt, of at most `max_tokens` tokens.
pub(crate) fn encode(
    text: &TextModel,
    messages: Vec<Message>,
    options: &ChatTemplateOptions,
    add_special_tokens: bool,
    max_tokens: usize,
) -> Result<Vec<TokenId>, ApiError> {
    if messages.is_empty() {
        let message = "messages is empty, but must have at least one message";
        return Err(ApiError::invalid(Some("messages"), message));
    }
    for (index, message) in messages.iter().enumerate() {
        if let Some(field) = message.unsupported() {
            return Err(ApiError::unsupported(&format!("messages[{index}].{field}")));
        }
    }
    if messages.len() > max_tokens {
        let message =
            format!("messages has {} entries, but at most {max_tokens} fit", messages.len());
        return Err(ApiError::too_long("messages", message));
    }
    let messages: Vec<Value> = messages.into_iter().map(Message::into_json).collect();
    let bytes: usize = messages.iter().map(|m| m["content"].as_str().map_or(0, str::len)).sum();
    let most = text.max_bytes(max_tokens);
    if bytes > most {
        let message = format!("messages has {bytes} bytes of text, but at most {most} can fit");
        return Err(ApiError::too_long("messages", message));
    }
    let prompt = text.apply_chat_template(&messages, options)?;
    Ok(text.encode_within(&prompt, add_special_tokens, max_tokens)?)
}

/// A request that is ready for the engine.
struct Prepared {
    settings: Settings,
    start: Start,
    model: Option<String>,
    wants_logprobs: bool,
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
    let mut settings = shared.settings(state, caller)?;
    settings.params.logprobs = num_logprobs;
    let limits = state.engine.limits();
    let options = ChatTemplateOptions {
        add_generation_prompt: body.add_generation_prompt.unwrap_or(true),
        kwargs: body.chat_template_kwargs.unwrap_or_default(),
    };
    let (text, most) = (&state.text, limits.scheduler.max_model_len);
    let prompt = encode(text, body.messages, &options, add_special_tokens, most)?;
    let max_tokens = settings
        .max_tokens(limits, &[prompt.len()], max_tokens, None)
        .map_err(|error| error.renamed("max_tokens", max_tokens_name))?[0];
    let detokenizer = text.detokenizer(&prompt, settings.skip_special_tokens);
    let start = Start { prompt, max_tokens, detokenizer };
    let (model, wants_logprobs) = (body.model, num_logprobs.is_some());
    Ok(Prepared { settings, start, model, wants_logprobs, max_tokens_name })
}

pub(crate) async fn create(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let prepared = body.work(&state, prepare).await?;
    let Prepared { settings, start, .. } = prepared;
    let choices = (0..settings.n)
        .map(|index| Choice::submit(&state, &settings, &start, index, false))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.renamed("max_tokens", prepared.max_tokens_name))?;
    let head = Head {
        id: state.next_id("chatcmpl"),
        created: unix_seconds(),
        model: prepared.model.unwrap_or_else(|| state.model_name().to_owned()),
    };
    let prompt_tokens = start.prompt.len();
    let counts = Counts::new(prompt_tokens, settings.n, choices.len(), settings.include_metering);
    let Some(options) = settings.stream else {
        let whole = try_join_all(choices.into_iter().map(Choice::collect)).await?;
        let usage = counts.of_all(&whole).usage();
        return Ok(Json(respond(&state.text, &head, usage, whole)).into_response());
    };
    let chunks = ChatChunks {
        head,
        text: state.text.clone(),
        counts,
        logprobs: prepared.wants_logprobs,
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
        ("continue_final_message", None),
        ("documents", None),
        ("echo", None),
        ("function_call", Some("\"none\"")),
        ("functions", None),
        ("include_reasoning", None),
        ("modalities", Some("[\"text\"]")),
        ("parallel_tool_calls", Some("true")),
        ("prediction", None),
        ("reasoning_effort", None),
        ("tool_choice", Some("\"none\"")),
        ("tools", None),
        ("verbosity", None),
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

/// What every response and chunk of a request says.
#[derive(Clone)]
struct Head {
    id: String,
    created: u64,
    model: String,
}

fn respond(text: &TextModel, head: &Head, usage: Usage, choices: Vec<Delta>) -> Value {
    let choices: Vec<Value> = choices
        .into_iter()
        .enumerate()
        .map(|(index, choice)| {
            let Finish { reason, stop_reason } = ended(choice.finish);
            json!({
                "index": index,
                "message": { "role": "assistant", "content": choice.text, "refusal": null },
                "logprobs": logprobs(text, &choice.logprobs),
                "finish_reason": reason,
                "stop_reason": stop_reason,
            })
        })
        .collect();
    json!({
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": choices,
        "usage": usage,
    })
}

/// A choice's stream ends with a finish or an error, and this is no error.
pub(super) fn ended(finish: Option<Finish>) -> Finish {
    finish.expect("a choice that did not fail has finished")
}

/// OpenAI's `logprobs` of chat choices; null where none were asked for.
fn logprobs(text: &TextModel, logprobs: &[TokenLogprobs]) -> Option<Value> {
    let entry = |token: TokenId, logprob: f32| {
        let token = text.token_text(token);
        json!({ "token": token.text, "logprob": logprob, "bytes": token.bytes })
    };
    let content: Vec<Value> = logprobs
        .iter()
        .map(|at| {
            let mut sampled = entry(at.token, at.logprob);
            sampled["top_logprobs"] =
                at.top.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
            sampled
        })
        .collect();
    (!content.is_empty()).then(|| json!({ "content": content, "refusal": null }))
}

/// The chunks of a streamed response.
struct ChatChunks {
    head: Head,
    text: std::sync::Arc<TextModel>,
    counts: Counts,
    logprobs: bool,
    include_usage: bool,
    continuous: bool,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [ChunkChoice<'a>],
    /// Absent unless usage was asked for; then null but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: ChunkDelta<'a>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
}

#[derive(Serialize)]
struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl ChatChunks {
    fn push(&self, choices: &[ChunkChoice<'_>], usage: Option<Option<Usage>>, out: &mut Events) {
        let Head { id, created, model } = &self.head;
        let object = "chat.completion.chunk";
        out.push(&Chunk { id, object, created: *created, model, choices, usage });
    }

    fn running_usage(&self) -> Option<Option<Usage>> {
        (self.include_usage || self.continuous)
            .then(|| self.continuous.then(|| self.counts.usage()))
    }
}

impl Chunks for ChatChunks {
    fn open(&mut self, out: &mut Events) {
        for index in 0..self.counts.num_choices() {
            let delta = ChunkDelta { role: Some("assistant"), content: Some("") };
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
        let logprobs = if self.logprobs { logprobs(&self.text, &delta.logprobs) } else { None };
        if delta.text.is_empty() && logprobs.is_none() && delta.finish.is_none() {
            return;
        }
        let (finish_reason, stop_reason) =
            delta.finish.map_or((None, None), |finish| (Some(finish.reason), finish.stop_reason));
        let content = (!delta.text.is_empty() || finish_reason.is_none()).then_some(&*delta.text);
        let delta = ChunkDelta { role: None, content };
        let choice = ChunkChoice { index, delta, logprobs, finish_reason, stop_reason };
        self.push(&[choice], self.running_usage(), out);
    }

    fn close(&mut self, out: &mut Events) {
        if self.include_usage {
            self.push(&[], Some(Some(self.counts.usage())), out);
        }
    }
}
