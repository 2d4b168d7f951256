//! `/tokenize` and `/detokenize`, as vLLM has them. They generate nothing and use no KV
//! cache: `tokens_per_minute` does not count them, the turns of the intake's lanes do.

use axum::{Json, extract::State};
use sconce_engine::EngineLimits;
use sconce_types::TokenId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    error::ApiError,
    generation::conversation::Conversation,
    json::{Body, JsonBody},
    openai::{
        messages::{self, MessageBody},
        tools::{self, ToolBody},
    },
    state::AppState,
};

/// Contexts that fit into what is tokenized or detokenized at most: enough to say by how
/// much a text is too long, and no way to have a processor for oneself.
const MAX_CONTEXTS: usize = 4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeBody {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<MessageBody>>,
    tools: Option<Vec<ToolBody>>,
    continue_final_message: Option<bool>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

impl Body for TokenizeBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[("chat_template", None)];
    /// However short, it waits for its tenant's turn: no other limit counts this work.
    const INLINE_BYTES: usize = 0;
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeBody {
    model: Option<String>,
    tokens: Vec<TokenId>,
}

impl Body for DetokenizeBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[];
    const INLINE_BYTES: usize = 0;
}

#[derive(Serialize)]
pub(crate) struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<TokenId>,
    /// As in the vocabulary; null for an id that is none of its.
    token_strs: Option<Vec<Option<String>>>,
}

#[derive(Serialize)]
pub(crate) struct Detokenized {
    prompt: String,
}

pub(crate) async fn tokenize(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<Tokenized>, ApiError> {
    body.work(&state, |state, caller, body: TokenizeBody| {
        crate::openai::check_model(state, &caller, body.model.as_deref())?;
        let max_model_len = state.max_model_len();
        let most = max_model_len.saturating_mul(MAX_CONTEXTS);
        let text = &state.text;
        let tokens = match (body.prompt, body.messages) {
            (Some(prompt), None) => {
                let special = body.add_special_tokens.unwrap_or(true);
                text.encode_within(&prompt, special, most)?
            }
            (None, Some(messages)) => {
                let conversation = Conversation {
                    messages: messages::read(messages)?,
                    tools: &tools::read(body.tools, None, None)?,
                    field: "messages",
                    add_generation_prompt: body.add_generation_prompt,
                    continues: body.continue_final_message.unwrap_or(false),
                    template_kwargs: body.chat_template_kwargs.unwrap_or_default(),
                };
                let special = body.add_special_tokens.unwrap_or(false);
                conversation.encode(text, special, most)?.tokens
            }
            _ => return Err(ApiError::invalid(None, "give either prompt or messages")),
        };
        let token_strs = body
            .return_token_strs
            .unwrap_or(false)
            .then(|| tokens.iter().map(|&token| text.token(token)).collect());
        Ok(Json(Tokenized { count: tokens.len(), max_model_len, tokens, token_strs }))
    })
    .await
}

pub(crate) async fn detokenize(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<Detokenized>, ApiError> {
    body.work(&state, |state, caller, body: DetokenizeBody| {
        crate::openai::check_model(state, &caller, body.model.as_deref())?;
        let EngineLimits { vocab_size, .. } = *state.engine.limits();
        let max_model_len = state.max_model_len();
        let (count, most) = (body.tokens.len(), max_model_len.saturating_mul(MAX_CONTEXTS));
        if count > most {
            let what = format!("but tokens has {count} entries; at most {most} are taken");
            return Err(ApiError::too_long(Some("tokens"), max_model_len, what));
        }
        if let Some(token) = body.tokens.iter().find(|&&token| token as usize >= vocab_size) {
            let message = format!("token {token} is outside the vocabulary of {vocab_size} tokens");
            return Err(ApiError::invalid(Some("tokens"), message));
        }
        Ok(Json(Detokenized { prompt: state.text.decode(&body.tokens, false)? }))
    })
    .await
}
