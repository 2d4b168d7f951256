//! `/tokenize` and `/detokenize`, as vLLM has them.

use axum::{Json, extract::State, response::IntoResponse};
use sconce_text::ChatTemplateOptions;
use sconce_types::TokenId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    caller::AsTenant,
    error::ApiError,
    json::{ApiJson, Body},
    openai::{chat, offload},
    state::AppState,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeBody {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<chat::Message>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

impl Body for TokenizeBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] =
        &[("tools", None), ("chat_template", None), ("continue_final_message", None)];
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeBody {
    model: Option<String>,
    tokens: Vec<TokenId>,
}

impl Body for DetokenizeBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[];
}

pub(crate) async fn tokenize(
    State(state): State<AppState>,
    caller: AsTenant,
    ApiJson(body): ApiJson<TokenizeBody>,
) -> Result<impl IntoResponse, ApiError> {
    crate::openai::check_model(&state, &caller, body.model.as_deref())?;
    let text = state.text.clone();
    let tokens = match (body.prompt, body.messages) {
        (Some(prompt), None) => {
            let special = body.add_special_tokens.unwrap_or(true);
            offload(prompt.len(), move || text.encode(&prompt, special)).await??
        }
        (None, Some(messages)) => {
            let options = ChatTemplateOptions {
                add_generation_prompt: body.add_generation_prompt.unwrap_or(true),
                kwargs: body.chat_template_kwargs.unwrap_or_default(),
            };
            let special = body.add_special_tokens.unwrap_or(false);
            chat::encode(&state, messages, options, special).await?
        }
        _ => return Err(ApiError::invalid(None, "give either prompt or messages")),
    };
    let strings = body
        .return_token_strs
        .unwrap_or(false)
        .then(|| tokens.iter().map(|&token| state.text.token(token)).collect::<Vec<_>>());
    Ok(Json(json!({
        "count": tokens.len(),
        "max_model_len": state.engine.limits().max_model_len,
        "tokens": tokens,
        "token_strs": strings,
    })))
}

pub(crate) async fn detokenize(
    State(state): State<AppState>,
    caller: AsTenant,
    ApiJson(body): ApiJson<DetokenizeBody>,
) -> Result<impl IntoResponse, ApiError> {
    crate::openai::check_model(&state, &caller, body.model.as_deref())?;
    let vocab_size = state.engine.limits().vocab_size;
    if let Some(token) = body.tokens.iter().find(|&&token| token as usize >= vocab_size) {
        let message = format!("token {token} is outside the vocabulary of {vocab_size} tokens");
        return Err(ApiError::invalid(Some("tokens"), message));
    }
    let text = state.text.clone();
    let decode = move || text.decode(&body.tokens, false);
    let prompt = offload(usize::MAX, decode).await??;
    Ok(Json(json!({ "prompt": prompt })))
}
