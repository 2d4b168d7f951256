//! OpenAI's endpoints.

pub(crate) mod batches;
pub(crate) mod chat;
pub(crate) mod chat_answer;
pub(crate) mod completions;
mod echo;
pub(crate) mod embeddings;
pub(crate) mod files;
mod legacy_logprobs;
pub(crate) mod messages;
pub(crate) mod models;
mod prompt_logprobs;
pub(crate) mod responses;
pub(crate) mod scores;
pub(crate) mod tools;

use sconce_text::TextModel;
use sconce_types::{TokenId, TokenLogprobs};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{caller::TenantAuth, error::ApiError, state::AppState};

/// What answers are made with: the same settings and seed give the same answer under it.
const FINGERPRINT: &str = concat!("sconce-", env!("CARGO_PKG_VERSION"));

/// The served names that a caller may use.
pub(crate) fn models_of(state: &AppState, caller: &TenantAuth) -> Vec<String> {
    let served = state.config.served_model_names.iter();
    served.filter(|name| caller.may_use(name)).cloned().collect()
}

/// Refuses a model that is not served, or not to this caller; none means the one that is.
pub(crate) fn check_model(
    state: &AppState,
    caller: &TenantAuth,
    model: Option<&str>,
) -> Result<(), ApiError> {
    let model = model.unwrap_or_else(|| state.model_name());
    let is_served = state.config.served_model_names.iter().any(|name| name == model);
    if (is_served || model.is_empty()) && caller.may_use(model) {
        return Ok(());
    }
    Err(ApiError::model_not_found(model, &models_of(state, caller)))
}

/// Pairs of `metadata`, and characters of a key and of a value, as in OpenAI's API.
const MAX_METADATA: (usize, usize, usize) = (16, 64, 512);

/// OpenAI's limits of `metadata`.
pub(crate) fn check_metadata(metadata: Option<&Map<String, Value>>) -> Result<(), ApiError> {
    let Some(metadata) = metadata else { return Ok(()) };
    let (most, key_chars, value_chars) = MAX_METADATA;
    let is_fit = |(key, value): (&String, &Value)| {
        let value = value.as_str();
        key.chars().count() <= key_chars
            && value.is_some_and(|value| value.chars().count() <= value_chars)
    };
    if metadata.len() <= most && metadata.iter().all(is_fit) {
        return Ok(());
    }
    let message = format!(
        "metadata must be at most {most} pairs of strings, keys of at most {key_chars} and values \
         of at most {value_chars} characters"
    );
    Err(ApiError::invalid(Some("metadata"), message))
}

/// A number in as many digits as tell it from its neighbours, everywhere the same: not those
/// that appear when an f32 becomes an f64.
pub(crate) fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or_else(|_| x.into())
}

/// The log-probability of a token of an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    /// Its text, with U+FFFD for what is a part of a character.
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
    /// As many of the likeliest tokens in its place as were asked for.
    top_logprobs: Vec<TopLogprob>,
}

/// One of the likeliest tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

/// OpenAI's log-probabilities of tokens, which are called `token_id:N` if `by_id`.
pub(crate) fn token_logprobs(
    text: &TextModel,
    logprobs: &[TokenLogprobs],
    by_id: bool,
) -> Vec<TokenLogprob> {
    let entry = |&(id, logprob): &(TokenId, f32)| {
        let token = text.token_text(id);
        let name = if by_id { format!("token_id:{id}") } else { token.text };
        TopLogprob { token: name, logprob: shortest(logprob), bytes: token.bytes }
    };
    let whole = |at: &TokenLogprobs| {
        let TopLogprob { token, logprob, bytes } = entry(&(at.token, at.logprob));
        TokenLogprob { token, logprob, bytes, top_logprobs: at.top.iter().map(entry).collect() }
    };
    logprobs.iter().map(whole).collect()
}
