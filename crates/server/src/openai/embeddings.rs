//! `/v1/embeddings`.

use std::sync::Arc;

use axum::{
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sconce_types::{EmbeddingInfo, TokenId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    caller::TenantAuth,
    error::ApiError,
    generation::{
        encoder::{self, Cut, check_dimensions, shortened},
        inputs::Inputs,
    },
    json::{Body, JsonBody},
    openai::models::List,
    state::AppState,
    word::word,
};

word!(EmbeddingObject = "embedding");

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

/// What the model's embeddings are.
///
/// # Errors
/// It makes none.
pub(super) fn info(state: &AppState) -> Result<&EmbeddingInfo, ApiError> {
    state.config.embedding.as_ref().ok_or_else(|| {
        let message = format!(
            "the model {:?} generates text and makes no embeddings: it answers \
             /v1/chat/completions and /v1/completions",
            state.model_name()
        );
        ApiError::invalid(Some("model"), message)
    })
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
    let info = info(state)?;
    if let Some(user) = &body.user {
        tracing::debug!(user, "request");
    }
    let dimensions = body.dimensions.map(|asked| check_dimensions(info, asked)).transpose()?;
    let cut = Cut::new(info, body.truncate_prompt_tokens, body.add_special_tokens)?;
    let inputs = encoder::encode(&state.generator, body.input, cut, "input")?;
    let format = body.encoding_format.unwrap_or_default();
    Ok(Prepared { caller, inputs, model: body.model, format, dimensions })
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
    let embeddings = encoder::embed(&state.generator, &caller, inputs, "input").await?;
    let answer = Answer {
        object: List::Word,
        model: state.answering_name(model),
        usage: Usage::new(prompt_tokens),
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

/// What an answer says of its tokens.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[schema(as = EmbeddingUsage)]
pub(super) struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    pub(super) fn new(prompt_tokens: usize) -> Self {
        Self { prompt_tokens, total_tokens: prompt_tokens }
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
