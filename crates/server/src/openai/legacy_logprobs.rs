//! OpenAI's `logprobs` of legacy completions.

use sconce_text::TextModel;
use sconce_types::{TokenId, TokenLogprobs};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::shortest;

/// One entry a token in each list; null for a first token of the prompt, which nothing predicts.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = CompletionLogprobs)]
pub(crate) struct LegacyLogprobs {
    pub(super) tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    /// The likeliest tokens and the sampled one, by their texts.
    #[schema(value_type = Vec<Option<Map<String, f64>>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where the token begins, in characters of the choice's text.
    text_offset: Vec<usize>,
}

impl LegacyLogprobs {
    /// Adds a token that begins `offset` characters into the choice's text, called `token_id:N`
    /// if `by_id`, with `num_top` of the likeliest at most.
    pub(super) fn push(
        &mut self,
        text: &TextModel,
        token: TokenId,
        at: Option<&TokenLogprobs>,
        offset: usize,
        by_id: bool,
        num_top: usize,
    ) {
        let name = |token| if by_id { id_name(token) } else { name(text, token) };
        let mut sampled = name(token);
        self.token_logprobs.push(at.map(|at| shortest(at.logprob)));
        self.top_logprobs.push(at.map(|at| top(at, num_top, name, &mut sampled)));
        self.text_offset.push(offset);
        self.tokens.push(sampled);
    }
}

/// The likeliest tokens and the sampled one by name. Distinct tokens may have one text, such as `A` and the byte
/// 0x41: the likelier keeps it, the other is named `token_id:N`. The sampled token
/// has the same name in `tokens` as among the alternatives.
fn top(
    at: &TokenLogprobs,
    num_top: usize,
    name: impl Fn(TokenId) -> String,
    sampled: &mut String,
) -> Map<String, Value> {
    let mut out = Map::new();
    let likeliest = at.top.iter().take(num_top);
    for &(token, logprob) in likeliest.clone() {
        let mut name = name(token);
        if out.contains_key(&name) {
            name = id_name(token);
        }
        if token == at.token {
            sampled.clone_from(&name);
        }
        out.insert(name, shortest(logprob).into());
    }
    let is_listed = likeliest.clone().any(|&(token, _)| token == at.token);
    if !is_listed {
        if out.contains_key(sampled.as_str()) {
            *sampled = id_name(at.token);
        }
        out.insert(sampled.clone(), shortest(at.logprob).into());
    }
    out
}

fn id_name(token: TokenId) -> String {
    format!("token_id:{token}")
}

/// A token's text; as OpenAI writes it where that is a part of a character:
/// `bytes:\xf0\x9f`.
fn name(text: &TextModel, token: TokenId) -> String {
    String::from_utf8(text.token_text(token).bytes).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", bytes.collect::<String>())
    })
}
