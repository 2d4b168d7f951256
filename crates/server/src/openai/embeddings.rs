//! `/v1/embeddings`.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sconce_engine::{EngineRequest, Overload, RequestEvent, RequestStream, SubmitError};
use sconce_text::TextModel;
use sconce_types::{EmbeddingInfo, SamplingParams, TokenId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::inputs::Inputs;
use crate::{
    caller::TenantAuth,
    error::ApiError,
    json::{Body, JsonBody},
    openai::models::List,
    state::AppState,
    word::word,
};

word!(EmbeddingObject = "embedding");

/// OpenAI's limit.
const MAX_INPUTS: usize = 2048;
/// Texts of one request that the engine has at a time: some steps' worth of short ones, and
/// few enough that other requests find places.
const WINDOW: usize = 128;
/// Numbers of an answer that are written on the threads that serve connections.
const FEW_NUMBERS: usize = 1 << 14;

/// Texts that the model is to make embeddings of.
#[derive(Deserialize, ToSchema)]
#[schema(as = EmbeddingRequest, examples(json!({ "input": ["Paris is in France.", "Bern is in Switzerland."] })))]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingBody {
    /// A served name; the server's own model if not given.
    model: Option<String>,
    /// One text or at most 2,048, as text or as token ids.
    input: Inputs,
    /// `float` if not given.
    encoding_format: Option<EncodingFormat>,
    /// Numbers of an embedding, fewer only where the model's embeddings can be cut.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// Texts are cut to so many tokens; -1 is the model's most. Longer ones are refused if not
    /// given.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// Whether the tokenizer's special tokens are put around each text.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
    /// The client's own note of who asks; only logged.
    user: Option<String>,
}

impl Body for EmbeddingBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[
        ("embed_dtype", Some("\"float32\"")),
        ("endianness", Some("\"little\"")),
        ("messages", None),
        ("normalize", None),
        ("priority", Some("0")),
        ("request_id", None),
    ];
}

/// Numbers, or the base64 of 32-bit floats, little-endian.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EncodingFormat {
    #[default]
    Float,
    /// Of f32s, little-endian.
    Base64,
}

/// How many tokens of a text count.
#[derive(Clone, Copy)]
struct Cut {
    most: usize,
    /// Whether a longer text is cut, not refused.
    truncates: bool,
    special: bool,
}

impl Inputs {
    fn encode_cut(self, text: &TextModel, cut: Cut) -> Result<Vec<Vec<TokenId>>, ApiError> {
        let of_text = |input: &String| {
            let Cut { most, truncates, special } = cut;
            let tokens = if truncates {
                text.encode_truncated(input, special, most)
            } else {
                text.encode_within(input, special, most)
            };
            tokens.map_err(|error| ApiError::from(error).within("input"))
        };
        let of_tokens = |mut tokens: Vec<TokenId>| {
            if cut.truncates {
                tokens.truncate(cut.most);
            }
            if tokens.len() > cut.most {
                let what = format!("but an input has {}; shorten it", tokens.len());
                return Err(ApiError::too_long(Some("input"), cut.most, what));
            }
            Ok(tokens)
        };
        match self {
            Self::Text(text) => Ok(vec![of_text(&text)?]),
            Self::Texts(texts) => texts.iter().map(of_text).collect(),
            Self::Tokens(tokens) => Ok(vec![of_tokens(tokens)?]),
            Self::TokenLists(lists) => lists.into_iter().map(of_tokens).collect(),
        }
    }

    /// Whether there is nothing: no token is no text.
    fn is_empty(&self) -> bool {
        match self {
            Self::Tokens(tokens) => tokens.is_empty(),
            others => others.len() == 0,
        }
    }
}

/// A request that is ready for the engine.
struct Prepared {
    caller: TenantAuth,
    inputs: Vec<Vec<TokenId>>,
    model: Option<String>,
    format: EncodingFormat,
    /// Numbers of an embedding, if fewer than the model's.
    dimensions: Option<usize>,
}

fn prepare(
    state: &AppState,
    caller: TenantAuth,
    body: EmbeddingBody,
) -> Result<Prepared, ApiError> {
    super::check_model(state, &caller, body.model.as_deref())?;
    let Some(info) = &state.config.embedding else {
        let message = format!(
            "the model {:?} generates text and makes no embeddings: it answers \
             /v1/chat/completions and /v1/completions",
            state.model_name()
        );
        return Err(ApiError::invalid(Some("model"), message));
    };
    if let Some(user) = &body.user {
        tracing::debug!(user, "request");
    }
    match body.input.len() {
        _ if body.input.is_empty() => {
            let message = "input is an empty list, but must have at least one text or token";
            return Err(ApiError::invalid(Some("input"), message));
        }
        0..=MAX_INPUTS => {}
        count => {
            let message = format!("input has {count} entries, but at most {MAX_INPUTS} are taken");
            return Err(ApiError::invalid(Some("input"), message));
        }
    }
    let dimensions = body.dimensions.map(|asked| check_dimensions(info, asked)).transpose()?;
    let (most, truncates) = match body.truncate_prompt_tokens {
        None => (info.max_tokens, false),
        Some(-1) => (info.max_tokens, true),
        Some(asked) => {
            let fits = usize::try_from(asked).ok().filter(|n| (1..=info.max_tokens).contains(n));
            let Some(most) = fits else {
                let message = format!(
                    "truncate_prompt_tokens is {asked}, but must be from 1 to {}, or -1 for that",
                    info.max_tokens
                );
                return Err(ApiError::invalid(Some("truncate_prompt_tokens"), message));
            };
            (most, true)
        }
    };
    let special = body.add_special_tokens.unwrap_or(true);
    let inputs = body.input.encode_cut(&state.text, Cut { most, truncates, special })?;
    for tokens in &inputs {
        // Before any of them is computed.
        let checked = state.engine.limits().check(tokens, 1);
        checked.map_err(|error| ApiError::from(error).renamed("prompt", "input"))?;
    }
    check_minute(&caller, &inputs)?;
    let format = body.encoding_format.unwrap_or_default();
    Ok(Prepared { caller, inputs, model: body.model, format, dimensions })
}

/// Fewer numbers than the model makes, where its first ones are an embedding too.
fn check_dimensions(info: &EmbeddingInfo, asked: usize) -> Result<usize, ApiError> {
    let most = info.dimensions;
    let accepted = match &info.matryoshka {
        _ if asked == most => return Ok(asked),
        None => format!("{most}: this model's embeddings cannot be cut"),
        Some(any) if any.is_empty() => {
            if (1..=most).contains(&asked) {
                return Ok(asked);
            }
            format!("from 1 to {most}")
        }
        Some(some) => {
            if asked < most && some.contains(&asked) {
                return Ok(asked);
            }
            let some: Vec<String> = some.iter().map(ToString::to_string).collect();
            format!("{most}, or one of {}", some.join(", "))
        }
    };
    let message = format!("dimensions is {asked}, but must be {accepted}");
    Err(ApiError::invalid(Some("dimensions"), message))
}

/// Refuses what its tenant could use in no minute: it would be refused half done.
fn check_minute(caller: &TenantAuth, inputs: &[Vec<TokenId>]) -> Result<(), ApiError> {
    let limit = caller.entry().and_then(|entry| entry.tenant.tokens_per_minute);
    // Each text reserves the token that nobody reads.
    let tokens = inputs.iter().map(|tokens| tokens.len() + 1).sum::<usize>() as u64;
    match limit.filter(|&limit| tokens > limit) {
        None => Ok(()),
        Some(limit) => {
            let message = format!(
                "the input has {tokens} tokens, but this tenant's limit is {limit} a minute, so \
                 that it could never be taken; send fewer texts at a time"
            );
            Err(ApiError::invalid(Some("input"), message))
        }
    }
}

/// Answers where a model is asked to generate that makes embeddings.
pub(crate) async fn generates_nothing(State(state): State<AppState>) -> ApiError {
    let model = state.model_name();
    let message =
        format!("the model {model:?} makes embeddings: POST /v1/embeddings; it generates no text");
    ApiError::invalid(Some("model"), message)
}

/// Make embeddings of texts
///
/// Of a model that makes embeddings; one that generates text refuses it.
#[utoipa::path(
    post, path = "/v1/embeddings", tag = "OpenAI", operation_id = "createEmbedding",
    request_body = EmbeddingBody,
    responses((status = 200, description = "The embeddings, in the texts' order", body = Answer)),
)]
pub(crate) async fn create(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let prepared = body.work(&state, prepare).await?;
    let Prepared { caller, inputs, model, format, dimensions } = prepared;
    let prompt_tokens = inputs.iter().map(Vec::len).sum();
    let embeddings = embed(&state, &caller, inputs).await?;
    let answer = Answer {
        object: List::Word,
        model: state.answering_name(model),
        usage: Usage { prompt_tokens, total_tokens: prompt_tokens },
        data: Vec::new(),
    };
    let numbers = embeddings.iter().map(|embedding| embedding.len()).sum::<usize>();
    let write = move || answer.write(&embeddings, format, dimensions);
    let body = if numbers <= FEW_NUMBERS {
        write()
    } else {
        tokio::task::spawn_blocking(write).await.map_err(|_| ApiError::bug())?
    };
    Ok(([(CONTENT_TYPE, "application/json")], body?).into_response())
}

/// The embeddings of texts, in their order. Each is a request of the engine's, whose steps
/// hold texts of all requests and tenants. Where the engine has no place for another, one of
/// this request's own is waited for first, if there is one.
async fn embed(
    state: &AppState,
    caller: &TenantAuth,
    inputs: Vec<Vec<TokenId>>,
) -> Result<Vec<Arc<[f32]>>, ApiError> {
    let mut embeddings = Vec::with_capacity(inputs.len());
    let mut running: VecDeque<RequestStream> = VecDeque::new();
    for tokens in inputs {
        if let Some(stats) = &caller.stats {
            stats.note_prompt(tokens.len());
        }
        if running.len() == WINDOW {
            embeddings.extend(next_embedding(&mut running).await?);
        }
        let params = SamplingParams { max_tokens: 1, ..SamplingParams::default() };
        let request = EngineRequest {
            tenant: caller.id,
            request_id: Arc::clone(&caller.request_id),
            // The token that a text ends in is none of the model's.
            scores_prompt: true,
            ..EngineRequest::new(tokens, params)
        };
        let stream = loop {
            match state.engine.submit(request.clone()) {
                Ok(stream) => break stream,
                Err(error) if !running.is_empty() && is_full(&error) => {
                    embeddings.extend(next_embedding(&mut running).await?);
                }
                Err(error) => return Err(ApiError::from(error).renamed("prompt", "input")),
            }
        };
        running.push_back(stream);
    }
    while let Some(embedding) = next_embedding(&mut running).await? {
        embeddings.push(embedding);
    }
    Ok(embeddings)
}

/// Whether a text is refused for others that are before it, which may be its own request's.
fn is_full(error: &SubmitError) -> bool {
    match error {
        SubmitError::QueueFull { .. } => true,
        SubmitError::Overloaded { reason, .. } => {
            !matches!(reason, Overload::TokensPerMinute { .. })
        }
        _ => false,
    }
}

/// Waits for the text that was submitted first; `None` if none is left.
async fn next_embedding(
    running: &mut VecDeque<RequestStream>,
) -> Result<Option<Arc<[f32]>>, ApiError> {
    let Some(mut stream) = running.pop_front() else { return Ok(None) };
    let mut embedding = None;
    loop {
        match stream.next().await {
            Some(RequestEvent::Embedding(made)) => embedding = Some(made),
            // Its end: read, lest the request count as cancelled.
            Some(RequestEvent::Token(_)) => {
                let missing = || ApiError::internal("the model made no embedding");
                return embedding.map(Some).ok_or_else(missing);
            }
            Some(RequestEvent::Failed(error)) => return Err(error.into()),
            Some(RequestEvent::PromptLogprobs { .. }) => {}
            None => return Err(ApiError::bug()),
        }
    }
}

/// Embeddings of texts.
#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingList)]
pub(crate) struct Answer {
    #[schema(inline)]
    object: List,
    data: Vec<Item>,
    model: String,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Embedding)]
struct Item {
    #[schema(inline)]
    object: EmbeddingObject,
    /// The text's place in the request.
    index: usize,
    embedding: Numbers,
}

/// As `encoding_format` asks.
#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingNumbers)]
#[serde(untagged)]
enum Numbers {
    Floats(Vec<f32>),
    Base64(String),
}

#[derive(Serialize, ToSchema)]
#[schema(as = EmbeddingUsage)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Answer {
    /// The whole body.
    fn write(
        mut self,
        embeddings: &[Arc<[f32]>],
        format: EncodingFormat,
        dimensions: Option<usize>,
    ) -> Result<Vec<u8>, ApiError> {
        let item = |(index, embedding): (usize, &Arc<[f32]>)| {
            let numbers = match dimensions.filter(|&n| n < embedding.len()) {
                None => embedding.to_vec(),
                Some(dimensions) => shortened(embedding, dimensions),
            };
            let embedding = match format {
                EncodingFormat::Float => Numbers::Floats(numbers),
                EncodingFormat::Base64 => {
                    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                    Numbers::Base64(STANDARD.encode(&bytes))
                }
            };
            Item { object: EmbeddingObject::Word, index, embedding }
        };
        self.data = embeddings.iter().enumerate().map(item).collect();
        serde_json::to_vec(&self).map_err(|_| ApiError::bug())
    }
}

/// The first numbers of an embedding, scaled to length 1.
fn shortened(embedding: &[f32], dimensions: usize) -> Vec<f32> {
    let first = &embedding[..dimensions];
    let length = first.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    first.iter().map(|x| x / length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_embeddings_that_may_be_cut_are() {
        let info = |matryoshka| EmbeddingInfo {
            dimensions: 8,
            matryoshka,
            is_normalized: true,
            max_tokens: 16,
        };
        let allowed = |matryoshka: Option<Vec<usize>>| -> Vec<usize> {
            let info = info(matryoshka);
            (0..=10).filter(|&asked| check_dimensions(&info, asked).is_ok()).collect()
        };
        assert_eq!(allowed(None), [8]);
        assert_eq!(allowed(Some(Vec::new())), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(allowed(Some(vec![2, 4, 9])), [2, 4, 8]);
        assert_eq!(shortened(&[3.0, 4.0, 12.0], 2), [0.6, 0.8]);
    }
}
