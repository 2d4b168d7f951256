//! `/tokenize` and `/detokenize`, as vLLM has them. They generate nothing and use no KV
//! cache: `tokens_per_minute` does not count them, the turns of the intake's lanes do.

use axum::{Json, extract::State};
use sconce_engine::EngineLimits;
use sconce_types::TokenId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

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

/// A text or a conversation whose tokens are wanted: either `prompt` or `messages`.
#[derive(Deserialize, ToSchema)]
#[schema(as = TokenizeRequest, examples(json!({ "prompt": "Hello" })))]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeBody {
    /// A served name; the server's own model if not given.
    model: Option<String>,
    /// At most what four contexts hold.
    prompt: Option<String>,
    messages: Option<Vec<MessageBody>>,
    /// Of `messages`, as are `continue_final_message`, `add_generation_prompt` and
    /// `chat_template_kwargs`.
    #[schema(max_items = 128)]
    tools: Option<Vec<ToolBody>>,
    /// Whether an answer would go on from the last message, an assistant's.
    #[schema(default = false)]
    continue_final_message: Option<bool>,
    /// Whether the tokenizer's special tokens are put around the text. True for a prompt and
    /// false for a conversation, whose template has them.
    add_special_tokens: Option<bool>,
    /// Whether the text ends with the opening of an answer. True unless the last message
    /// continues.
    add_generation_prompt: Option<bool>,
    /// Whether the answer has each token as it is in the vocabulary.
    #[schema(default = false)]
    return_token_strs: Option<bool>,
    /// Variables of the chat template.
    chat_template_kwargs: Option<Map<String, Value>>,
}

impl Body for TokenizeBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[("chat_template", None)];
    /// However short, it waits for its tenant's turn: no other limit counts this work.
    const INLINE_BYTES: usize = 0;
}

/// Tokens whose text is wanted.
#[derive(Deserialize, ToSchema)]
#[schema(as = DetokenizeRequest, examples(json!({ "tokens": [1, 2, 3] })))]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeBody {
    /// A served name; the server's own model if not given.
    model: Option<String>,
    /// At most what four contexts hold.
    #[schema(value_type = Vec<u32>)]
    tokens: Vec<TokenId>,
}

impl Body for DetokenizeBody {
    const UNSUPPORTED: &'static [(&'static str, Option<&'static str>)] = &[];
    const INLINE_BYTES: usize = 0;
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Tokenized {
    count: usize,
    /// Tokens of context.
    max_model_len: usize,
    #[schema(value_type = Vec<u32>)]
    tokens: Vec<TokenId>,
    /// As in the vocabulary; null for an id that is none of its, and where they were not asked
    /// for.
    #[schema(required)]
    token_strs: Option<Vec<Option<String>>>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct Detokenized {
    prompt: String,
}

/// Tokens of a text or a conversation
#[utoipa::path(
    post, path = "/tokenize", tag = "Tokens", operation_id = "tokenize",
    request_body = TokenizeBody,
    responses((status = 200, description = "The tokens", body = Tokenized)),
)]
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    body: JsonBody,
) -> Result<Json<Tokenized>, ApiError> {
    body.work(&state, |state, caller, mut body: TokenizeBody| {
        crate::openai::check_model(state, &caller, body.model.as_deref())?;
        let max_model_len = state.max_model_len();
        let most = max_model_len.saturating_mul(MAX_CONTEXTS);
        let text = &state.text;
        let (prompt, messages) = (body.prompt.take(), body.messages.take());
        let tokens = match (prompt, messages) {
            (Some(prompt), None) => {
                refuse_of_conversations(&body)?;
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

/// Refuses beside a prompt what would change nothing there.
fn refuse_of_conversations(body: &TokenizeBody) -> Result<(), ApiError> {
    let fields = [
        ("tools", body.tools.is_some()),
        ("continue_final_message", body.continue_final_message.is_some()),
        ("add_generation_prompt", body.add_generation_prompt.is_some()),
        ("chat_template_kwargs", body.chat_template_kwargs.is_some()),
    ];
    match fields.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((name, _)) => {
            let message = format!("{name} has a meaning only with messages");
            Err(ApiError::invalid(Some(name), message))
        }
    }
}

/// The text of tokens
#[utoipa::path(
    post, path = "/detokenize", tag = "Tokens", operation_id = "detokenize",
    request_body = DetokenizeBody,
    responses((status = 200, description = "The text", body = Detokenized)),
)]
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
