//! vLLM's `prompt_logprobs`: the log-probabilities of a prompt's tokens.

use std::iter::once;

use sconce_text::TextModel;
use sconce_types::{TokenId, TokenLogprobs};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::shortest;

/// What JSON has no number for is told as this, as in vLLM.
const LEAST: f32 = -9999.0;

/// One of the tokens at a place of the prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PromptLogprob {
    logprob: f64,
    /// Its place among all tokens by likelihood, from 1.
    #[schema(required)]
    rank: Option<u32>,
    /// Its text, with U+FFFD for what is a part of a character.
    decoded_token: String,
}

/// By token id: the prompt's own token, and the likeliest in its place.
#[derive(Debug)]
pub(super) struct ByToken(Vec<(TokenId, PromptLogprob)>);

impl Serialize for ByToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, at)| (token, at)))
    }
}

/// For each token of a prompt; null for the first, which nothing predicts.
pub(super) type PromptLogprobs = Vec<Option<ByToken>>;

/// Those of a prompt from its second token on, with `num_top` of the likeliest each.
pub(super) fn prompt_logprobs(
    text: &TextModel,
    logprobs: &[TokenLogprobs],
    num_top: u32,
) -> PromptLogprobs {
    let entry = |token: TokenId, logprob: f32, rank: Option<u32>| {
        let decoded_token = text.token_text(token).text;
        (token, PromptLogprob { logprob: shortest(logprob.max(LEAST)), rank, decoded_token })
    };
    let of_token = |TokenLogprobs { token, logprob, rank, top }: &TokenLogprobs| {
        let ranked = top.iter().zip(1..);
        let others = ranked.take(num_top as usize).filter(|((other, _), _)| other != token);
        let others = others.map(|(&(other, logprob), rank)| entry(other, logprob, Some(rank)));
        Some(ByToken(once(entry(*token, *logprob, *rank)).chain(others).collect()))
    };
    once(None).chain(logprobs.iter().map(of_token)).collect()
}
