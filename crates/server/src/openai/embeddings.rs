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

use super::{
    encoder::{self, Cut, Usage},
    inputs::Inputs,
};
use crate::{
    caller::TenantAuth,
    error::ApiError,
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
    let info = encoder::info(state)?;
    if let Some(user) = &body.user {
        tracing::debug!(user, "request");
    }
    let dimensions = body.dimensions.map(|asked| check_dimensions(info, asked)).transpose()?;
    let cut = Cut::new(info, body.truncate_prompt_tokens, body.add_special_tokens)?;
    let inputs = encoder::encode(state, body.input, cut, "input")?;
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
    let embeddings = encoder::embed(&state, &caller, inputs, "input").await?;
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
