//! How a request's tokens are chosen.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::TokenId;

/// Most alternatives that `logprobs` and `prompt_logprobs` may ask for.
pub const MAX_LOGPROBS: u32 = 20;
/// Most entries of `logit_bias`.
pub const MAX_LOGIT_BIAS: usize = 1024;
/// Most entries of `stop_token_ids`.
pub const MAX_STOP_TOKEN_IDS: usize = 128;

/// How a request's tokens are chosen and when it ends. The meaning of each
/// field is that of vLLM's parameter of the same name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// Tokens to generate at most; at least 1.
    pub max_tokens: u32,
    /// Until so many tokens exist, no end or stop token is sampled.
    pub min_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `top_k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens whose probabilities sum to `top_p`; in (0, 1].
    pub top_p: f32,
    /// Keep tokens at least `min_p` times as likely as the likeliest; in [0, 1].
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt
    /// or the output; 1 is off (Keskar et al., 2019).
    pub repetition_penalty: f32,
    /// Subtracted from the logit of each token in the output; in [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once per occurrence in the output; in [-2, 2].
    pub frequency_penalty: f32,
    /// Seed of the request's own generator. With the index of the token drawn
    /// it fixes every draw, whatever the request is batched with.
    pub seed: u64,
    /// Added to the logits of these tokens; in [-100, 100].
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Tokens that end the request, beside the model's own.
    pub stop_token_ids: Vec<TokenId>,
    /// The model's end tokens; empty when the client asked to ignore them.
    pub eos_token_ids: Arc<[TokenId]>,
    /// Report the log-probability of each token and of this many likeliest.
    pub logprobs: Option<u32>,
    /// The same for the prompt's tokens.
    pub prompt_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            min_tokens: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
            stop_token_ids: Vec::new(),
            eos_token_ids: Arc::from([]),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// A sampling parameter out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, but must be {accepted}")]
pub struct InvalidSamplingParams {
    /// The field's name.
    pub field: &'static str,
    /// The value given.
    pub value: String,
    /// What would be accepted.
    pub accepted: String,
}

impl SamplingParams {
    /// Checks every field against its range and every token id against the
    /// vocabulary. The engine refuses what does not pass, so that all entry
    /// points share one validator.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self, vocab_size: usize) -> Result<(), InvalidSamplingParams> {
        let float = |field, value: f32, ok: bool, accepted: &str| {
            if ok && value.is_finite() { Ok(()) } else { Err(invalid(field, value, accepted)) }
        };
        if self.max_tokens == 0 {
            return Err(invalid("max_tokens", 0, "at least 1"));
        }
        if self.min_tokens > self.max_tokens {
            let accepted = format!("at most max_tokens, which is {}", self.max_tokens);
            return Err(invalid("min_tokens", self.min_tokens, &accepted));
        }
        let t = self.temperature;
        float("temperature", t, (0.0..=100.0).contains(&t), "a number from 0 to 100")?;
        let p = self.top_p;
        float("top_p", p, p > 0.0 && p <= 1.0, "a number above 0 and at most 1")?;
        float("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1")?;
        let r = self.repetition_penalty;
        float("repetition_penalty", r, r > 0.0 && r <= 100.0, "a number above 0 and at most 100")?;
        for (field, v) in [
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ] {
            float(field, v, (-2.0..=2.0).contains(&v), "a number from -2 to 2")?;
        }
        for (field, v) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(n) = v.filter(|&n| n > MAX_LOGPROBS) {
                return Err(invalid(field, n, &format!("at most {MAX_LOGPROBS}")));
            }
        }
        if self.logit_bias.len() > MAX_LOGIT_BIAS {
            let accepted = format!("a map of at most {MAX_LOGIT_BIAS} tokens");
            let value = format!("a map of {}", self.logit_bias.len());
            return Err(invalid("logit_bias", value, &accepted));
        }
        if self.stop_token_ids.len() > MAX_STOP_TOKEN_IDS {
            let accepted = format!("a list of at most {MAX_STOP_TOKEN_IDS} tokens");
            let value = format!("a list of {}", self.stop_token_ids.len());
            return Err(invalid("stop_token_ids", value, &accepted));
        }
        let in_vocabulary = |field, token: TokenId| {
            if (token as usize) < vocab_size {
                Ok(())
            } else {
                let accepted = format!("token ids below the vocabulary's size, {vocab_size}");
                Err(invalid(field, token, &accepted))
            }
        };
        for &(token, bias) in &self.logit_bias {
            in_vocabulary("logit_bias", token)?;
            float("logit_bias", bias, (-100.0..=100.0).contains(&bias), "from -100 to 100")?;
        }
        self.stop_token_ids.iter().try_for_each(|&token| in_vocabulary("stop_token_ids", token))
    }

    /// Whether any penalty looks at the tokens so far.
    #[must_use]
    pub fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

fn invalid(field: &'static str, value: impl ToString, accepted: &str) -> InvalidSamplingParams {
    InvalidSamplingParams { field, value: value.to_string(), accepted: accepted.to_owned() }
}
