//! `/v1/completions`.

use std::{iter::repeat_n, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use futures::future::try_join_all;
use sconce_text::TextModel;
use sconce_types::TokenId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    FINGERPRINT,
    echo::{Echo, Prompt},
    legacy_logprobs::LegacyLogprobs,
    prompt_logprobs::{PromptLogprob, PromptLogprobs, prompt_logprobs},
};
use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{
        choice::{Choice, Delta, Finish, FinishReason, Start, StopReason, ended},
        inputs::Inputs,
        settings::{GenerationFields, MAX_CHOICES, Settings, UNSUPPORTED},
        stream::{self, Chunks, Events},
        structure,
        usage::{Counts, Usage},
    },
    json::{self, Body, JsonBody},
    state::{AppState, unix_seconds},
    word::word,
};

word!(CompletionObject = "text_completion");

/// OpenAI's default for this endpoint.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Texts that the model is to go on from.
#[derive(Deserialize, ToSchema)]
#[schema(as = CompletionRequest, examples(json!({ "prompt": "The capital of France is", "max_tokens": 16 })))]
pub(crate) struct CompletionBody {
    /// A served name; the server's own model if not given.
    model: Option<String>,
    /// One prompt or several, as text or as token ids; with `n`, at most 128 choices in all.
    prompt: Inputs,
    /// Tokens of each choice at most; 0 only with `echo`.
    #[schema(default = 16)]
    max_tokens: Option<u32>,
    /// Log-probabilities of the tokens, and of so many likeliest ones in their places.
    #[schema(maximum = 20)]
    logprobs: Option<u32>,
    /// Whether a choice begins with its prompt.
    #[schema(default = false)]
    echo: Option<bool>,
    /// Must be `n`, if it is given.
    #[schema(minimum = 1)]
    best_of: Option<usize>,
    /// What both endpoints have; unknown fields are found there.
    #[serde(flatten)]
    #[schema(value_type = GenerationFields)]
    shared: Map<String, Value>,
}

/// The fields above, for those who misspell them.
pub(crate) const OWN_FIELDS: &[&str] =
    &["model", "prompt", "max_tokens", "logprobs", "echo", "best_of"];

impl Body for CompletionBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] =
        &[("prompt_embeds", None), ("store", None), ("suffix", Some("\"\""))];
    const SHARED: &'static [(&'static str, Option<&'static str>)] = UNSUPPORTED;
}

impl Inputs {
    /// Their tokens, at most so many of each text.
    fn encode(self, state: &AppState, special: bool, most: usize) -> Result<Vec<Prompt>, ApiError> {
        let of_tokens = |tokens| Prompt { tokens, text: None };
        let texts = match self {
            Self::Tokens(tokens) => return Ok(vec![of_tokens(tokens)]),
            Self::TokenLists(lists) => return Ok(lists.into_iter().map(of_tokens).collect()),
            Self::Text(text) => vec![text],
            Self::Texts(texts) => texts,
        };
        let encode = |text: String| {
            let tokens = state.text.encode_within(&text, special, most);
            let tokens = tokens.map_err(|error| ApiError::from(error).within("prompt"))?;
            Ok(Prompt { tokens, text: Some(text) })
        };
        texts.into_iter().map(encode).collect()
    }
}

/// A request that is ready for the engine.
struct Prepared {
    settings: Settings,
    /// By prompt.
    starts: Vec<(Start, Option<Echo>)>,
    model: Option<String>,
    num_logprobs: Option<u32>,
    /// Only the prompts' log-probabilities are wanted.
    scores_only: bool,
    /// Choices given of those that are generated for each prompt: the likeliest.
    given: usize,
}

fn prepare(
    state: &AppState,
    caller: TenantAuth,
    body: CompletionBody,
) -> Result<Prepared, ApiError> {
    super::check_model(state, &caller, body.model.as_deref())?;
    let shared: GenerationFields = json::deserialize(body.shared, OWN_FIELDS)?;
    let special = shared.add_special_tokens.unwrap_or(true);
    let mut settings = shared.settings(&state.generator, caller)?;
    let given = settings.n;
    settings.n = num_generated(&settings, body.best_of)?;
    check_choices(body.prompt.len(), settings.n)?;
    let echo = body.echo.unwrap_or(false);
    // A client that only scores its prompt asks for no token; the engine always
    // makes one, which is then not shown.
    let scores_only = echo && body.max_tokens == Some(0);
    let asked = if scores_only { Some(1) } else { body.max_tokens };
    // The likeliest are found by them.
    settings.params.logprobs = body.logprobs.or((given < settings.n).then_some(0));
    let of_echo = body.logprobs.filter(|_| echo);
    settings.params.prompt_logprobs = settings.prompt_logprobs.max(of_echo);
    let limits = state.engine.limits();
    let mut prompts = body.prompt.encode(state, special, settings.longest_prompt(limits))?;
    for prompt in &mut prompts {
        if settings.cut(&mut prompt.tokens, limits, asked) {
            prompt.text = None;
        }
    }
    let lens: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    let max_tokens = settings
        .max_tokens(limits, &lens, asked, Some(DEFAULT_MAX_TOKENS))
        .map_err(|error| error.within("prompt"))?;
    let num_logprobs = body.logprobs;
    let skip = settings.skip_special_tokens;
    let start = |(prompt, max_tokens): (Prompt, u32)| {
        // Before anything is made of it.
        let checked = limits.check(&prompt.tokens, max_tokens);
        checked.map_err(|error| ApiError::from(error).within("prompt"))?;
        let (echo, detokenizer) = if echo {
            let (echo, detokenizer) =
                Echo::new(&state.text, &prompt, skip, scores_only, num_logprobs.is_some());
            (Some(echo), detokenizer)
        } else {
            (None, state.text.detokenizer(&prompt.tokens, skip))
        };
        let start = Start { prompt: prompt.tokens, max_tokens, detokenizer, reading: None };
        Ok((start, echo))
    };
    let starts = prompts.into_iter().zip(max_tokens).map(start);
    let starts = starts.collect::<Result<_, ApiError>>()?;
    Ok(Prepared { settings, starts, model: body.model, num_logprobs, scores_only, given })
}

/// Go on from texts
///
/// Whole, or as server-sent events with `stream: true`, which end with `data: [DONE]`.
#[utoipa::path(
    post, path = "/v1/completions", tag = "OpenAI", operation_id = "createCompletion",
    request_body = CompletionBody,
    responses((status = 200, description = "The choices", content(
        (Completion = "application/json"),
        (String = "text/event-stream", item_schema = CompletionChunk),
    ))),
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let prepared = body.work(&state, prepare).await?;
    let Prepared { settings, starts, num_logprobs, .. } = prepared;
    let (mut choices, mut echoes) = (Vec::new(), Vec::new());
    for (start, echo) in &starts {
        for _ in 0..settings.n {
            let index = choices.len();
            choices.push(Choice::submit(
                &state.generator,
                &settings,
                start,
                index,
                prepared.scores_only,
            )?);
            echoes.push(echo.clone());
        }
    }
    structure::make_ready(&state, &settings, &mut choices).await?;
    let shape = Shape {
        id: state.next_id("cmpl-"),
        created: unix_seconds(),
        model: state.answering_name(prepared.model),
        text: state.text.clone(),
        num_logprobs,
        names_tokens_by_id: settings.names_tokens_by_id,
        prompt_logprobs: settings.prompt_logprobs,
        returns_token_ids: settings.returns_token_ids,
    };
    let prompt_tokens = starts.iter().map(|(start, _)| start.prompt.len()).sum();
    let counts = Counts::new(prompt_tokens, settings.n, choices.len(), settings.include_metering);
    let Some(options) = settings.stream else {
        let whole = try_join_all(choices.into_iter().map(Choice::collect)).await?;
        let usage = counts.of_all(&whole).usage();
        let whole = whole.into_iter().zip(echoes).collect();
        let whole = likeliest(whole, settings.n, prepared.given);
        let prompts = starts.iter().flat_map(|(start, _)| repeat_n(&*start.prompt, prepared.given));
        return Ok(Json(respond(&shape, usage, whole, prompts)).into_response());
    };
    let chunks = CompletionChunks {
        counts,
        given: vec![0; choices.len()],
        begun: vec![false; choices.len()],
        echoes,
        prompts: starts.into_iter().map(|(start, _)| start.prompt).collect(),
        n: settings.n,
        shape,
        include_usage: options.include_usage.unwrap_or(false) || settings.include_metering,
        continuous: options.continuous_usage_stats.unwrap_or(false),
    };
    stream::respond(choices, chunks).await
}

/// Choices that are generated for each prompt.
fn num_generated(settings: &Settings, best_of: Option<usize>) -> Result<usize, ApiError> {
    let (n, best_of) = (settings.n, best_of.unwrap_or(settings.n));
    let refuse = |message| Err(ApiError::invalid(Some("best_of"), message));
    if best_of < n || best_of > MAX_CHOICES {
        let accepted = format!("from n, which is {n}, to {MAX_CHOICES}");
        return refuse(format!("best_of is {best_of}, but must be {accepted}"));
    }
    if best_of > n && settings.stream.is_some() {
        let reason = "the likeliest are known when all are whole";
        return refuse(format!("best_of is {best_of}, but must be n with stream: true: {reason}"));
    }
    Ok(best_of)
}

/// Of each `generated` choices the `given` of the highest log-probability a token.
fn likeliest(
    mut choices: Vec<(Delta, Option<Echo>)>,
    generated: usize,
    given: usize,
) -> Vec<(Delta, Option<Echo>)> {
    if given == generated {
        return choices;
    }
    let mean = |choice: &Delta| {
        let sum: f32 = choice.logprobs.iter().map(|at| at.logprob).sum();
        sum / choice.logprobs.len().max(1) as f32
    };
    let mut kept = Vec::with_capacity(choices.len() / generated * given);
    while !choices.is_empty() {
        let mut of_prompt: Vec<_> = choices.drain(..generated).collect();
        // Stable: of equals the first.
        of_prompt.sort_by(|(a, _), (b, _)| mean(b).total_cmp(&mean(a)));
        of_prompt.truncate(given);
        kept.append(&mut of_prompt);
    }
    kept
}

fn check_choices(prompts: usize, n: usize) -> Result<(), ApiError> {
    if prompts == 0 {
        let message = "prompt is an empty list, but must have at least one prompt";
        return Err(ApiError::invalid(Some("prompt"), message));
    }
    if prompts.saturating_mul(n) > MAX_CHOICES {
        let message =
            format!("{prompts} prompts with n = {n} ask for more than {MAX_CHOICES} choices");
        return Err(ApiError::invalid(Some("prompt"), message));
    }
    Ok(())
}

/// What every response and chunk of a request says, and how.
struct Shape {
    id: String,
    created: u64,
    model: String,
    text: Arc<TextModel>,
    num_logprobs: Option<u32>,
    names_tokens_by_id: bool,
    /// How many of the likeliest tokens are told in each place of the prompt, if any.
    prompt_logprobs: Option<u32>,
    returns_token_ids: bool,
}

impl Shape {
    /// The log-probabilities of a delta, the prompt's first where it is echoed;
    /// `given` counts the prompt's.
    fn logprobs(
        &self,
        echo: Option<&Echo>,
        given: &mut usize,
        delta: &Delta,
    ) -> Option<LegacyLogprobs> {
        // Of the prompt more may have been asked for elsewhere.
        let num_top = self.num_logprobs? as usize;
        let mut out = LegacyLogprobs::default();
        if let Some(echo) = echo {
            let first = echo.first_token.filter(|_| *given == 0).map(|token| (token, None));
            let later = delta.prompt_logprobs.iter().map(|at| (at.token, Some(at)));
            let offsets = echo.offsets.get(*given..).unwrap_or_default();
            for ((token, at), &offset) in first.into_iter().chain(later).zip(offsets) {
                out.push(&self.text, token, at, offset, self.names_tokens_by_id, num_top);
                *given += 1;
            }
        }
        let text_start = echo.map_or(0, |echo| echo.num_chars);
        for (at, offset) in delta.logprobs.iter().zip(&delta.offsets) {
            let offset = text_start + offset;
            out.push(&self.text, at.token, Some(at), offset, self.names_tokens_by_id, num_top);
        }
        Some(out)
    }
}

/// Texts that go on from the prompts.
#[derive(Serialize, ToSchema)]
pub(crate) struct Completion {
    id: String,
    #[schema(inline)]
    object: CompletionObject,
    /// In seconds since 1970.
    created: u64,
    /// As the request called it.
    model: String,
    /// The same settings and seed give the same answer under it.
    system_fingerprint: &'static str,
    /// Those of the first prompt, then those of the next.
    choices: Vec<CompletionChoice>,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
struct CompletionChoice {
    index: usize,
    text: String,
    /// Null unless asked for.
    #[schema(required)]
    logprobs: Option<LegacyLogprobs>,
    finish_reason: FinishReason,
    /// The text or the token that ended it, if one did.
    #[schema(required)]
    stop_reason: Option<StopReason>,
    /// Where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    token_ids: Option<Vec<TokenId>>,
    /// Where ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    prompt_token_ids: Option<Vec<TokenId>>,
    /// Where they are asked for: null for the prompt's first token, then by token id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<std::collections::BTreeMap<String, PromptLogprob>>>>)]
    prompt_logprobs: Option<PromptLogprobs>,
}

fn respond<'a>(
    shape: &Shape,
    usage: Usage,
    choices: Vec<(Delta, Option<Echo>)>,
    prompts: impl Iterator<Item = &'a [TokenId]>,
) -> Completion {
    let choices = choices
        .into_iter()
        .zip(prompts)
        .enumerate()
        .map(|(index, ((choice, echo), prompt))| {
            let logprobs = shape.logprobs(echo.as_ref(), &mut 0, &choice);
            let of_prompt = &choice.prompt_logprobs;
            let prompt_logprobs = shape
                .prompt_logprobs
                .map(|num_top| prompt_logprobs(&shape.text, of_prompt, num_top));
            let Finish { reason, stop_reason } = ended(choice.finish);
            CompletionChoice {
                index,
                text: echo.map_or_else(String::new, |echo| echo.text) + &choice.text,
                logprobs,
                finish_reason: reason,
                stop_reason,
                token_ids: shape.returns_token_ids.then_some(choice.token_ids),
                prompt_token_ids: shape.returns_token_ids.then(|| prompt.to_vec()),
                prompt_logprobs,
            }
        })
        .collect();
    Completion {
        id: shape.id.clone(),
        object: CompletionObject::Word,
        created: shape.created,
        model: shape.model.clone(),
        system_fingerprint: FINGERPRINT,
        choices,
        usage,
    }
}

/// The chunks of a streamed response.
struct CompletionChunks {
    shape: Shape,
    /// By choice; their text is taken by its first chunk.
    echoes: Vec<Option<Echo>>,
    /// Their tokens, by prompt.
    prompts: Vec<Vec<TokenId>>,
    /// Choices of each.
    n: usize,
    /// By choice: how many of the prompt's tokens had their log-probabilities.
    given: Vec<usize>,
    /// By choice: whether it had a chunk.
    begun: Vec<bool>,
    counts: Counts,
    include_usage: bool,
    continuous: bool,
}

pub(crate) type CompletionChunk = Chunk<'static>;

/// A part of streamed choices.
#[derive(Serialize, ToSchema)]
#[schema(as = CompletionChunk)]
pub(crate) struct Chunk<'a> {
    id: &'a str,
    #[schema(inline)]
    object: CompletionObject,
    /// In seconds since 1970.
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    /// One, or none in a last chunk that has `usage`.
    #[schema(value_type = Vec<ChunkChoice>)]
    choices: &'a [ChunkChoice],
    /// Absent unless usage was asked for; then null but in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CompletionChunkChoice)]
struct ChunkChoice {
    index: usize,
    /// What the choice got since its last chunk.
    text: String,
    /// Of the text's tokens; null unless asked for.
    #[schema(required)]
    logprobs: Option<LegacyLogprobs>,
    /// Null but in the choice's last chunk.
    #[schema(required)]
    finish_reason: Option<FinishReason>,
    #[schema(required)]
    stop_reason: Option<StopReason>,
    /// Where ids are asked for; the prompt's in a choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<u32>>)]
    prompt_token_ids: Option<Vec<TokenId>>,
}

impl CompletionChunks {
    fn push(&self, choices: &[ChunkChoice], usage: Option<Option<Usage>>, out: &mut Events) {
        let Shape { id, created, model, .. } = &self.shape;
        let object = CompletionObject::Word;
        let (created, system_fingerprint) = (*created, FINGERPRINT);
        out.push(&Chunk { id, object, created, model, system_fingerprint, choices, usage });
    }
}

impl Chunks for CompletionChunks {
    fn open(&mut self, _: &mut Events) {}

    fn delta(&mut self, index: usize, delta: Delta, out: &mut Events) {
        self.counts.note(index, &delta);
        let echo = &mut self.echoes[index];
        let mut logprobs = self.shape.logprobs(echo.as_ref(), &mut self.given[index], &delta);
        logprobs = logprobs.filter(|logprobs| !logprobs.tokens.is_empty());
        let echoed = echo.as_mut().map(|echo| std::mem::take(&mut echo.text));
        let text = echoed.unwrap_or_default() + &delta.text;
        let has_ids = !delta.token_ids.is_empty();
        if text.is_empty() && logprobs.is_none() && delta.finish.is_none() && !has_ids {
            return;
        }
        let returns_ids = self.shape.returns_token_ids;
        let is_first = returns_ids && !std::mem::replace(&mut self.begun[index], true);
        let prompt_token_ids = is_first.then(|| self.prompts[index / self.n].clone());
        let token_ids = returns_ids.then_some(delta.token_ids);
        let (finish_reason, stop_reason) =
            delta.finish.map_or((None, None), |finish| (Some(finish.reason), finish.stop_reason));
        let choice = ChunkChoice {
            index,
            text,
            logprobs,
            finish_reason,
            stop_reason,
            token_ids,
            prompt_token_ids,
        };
        let usage = self.include_usage.then(|| self.continuous.then(|| self.counts.usage()));
        self.push(&[choice], usage, out);
    }

    fn close(&mut self, out: &mut Events) {
        if self.include_usage {
            self.push(&[], Some(Some(self.counts.usage())), out);
        }
        out.done();
    }
}
