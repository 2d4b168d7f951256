//! Choosing a token from a row of logits.
//!
//! In this order, as in vLLM: log-probabilities are taken from the raw logits;
//! then logit bias and bans, repetition, frequency and presence penalties;
//! greedy rows take the likeliest token (ties: the lowest id); others divide by
//! the temperature, then keep min-p, top-k and top-p survivors and draw one.
//!
//! The draw is a Philox4x32-10 number (Salmon et al., 2011) of
//! `(seed, index)`: it depends on nothing else, so a request's tokens are the
//! same in any batch and after any preemption.

/// What one row's request asks.
#[derive(Clone, Copy, Debug)]
pub struct SampleRequest<'a> {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep so many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the likeliest tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// Keep tokens at least so many times as likely as the likeliest.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of seen tokens; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of generated tokens.
    pub presence_penalty: f32,
    /// Subtracted from the logits of generated tokens once per occurrence.
    pub frequency_penalty: f32,
    /// The tokens seen so far, each once: in the prompt or the output. Read
    /// only where a penalty is on.
    pub seen: &'a [SeenToken],
    /// Added to these tokens' logits.
    pub logit_bias: &'a [(u32, f32)],
    /// Never drawn (end tokens before `min_tokens`).
    pub banned: &'a [u32],
    /// The request's seed.
    pub seed: u64,
    /// The index of the output token drawn.
    pub index: u32,
    /// Report the drawn token's log-probability and so many likeliest tokens.
    pub num_logprobs: Option<u32>,
}

impl Default for SampleRequest<'_> {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seen: &[],
            logit_bias: &[],
            banned: &[],
            seed: 0,
            index: 0,
            num_logprobs: None,
        }
    }
}

/// A token in a request's prompt or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenToken {
    /// The token.
    pub token: u32,
    /// How often the output has it; 0 if only the prompt does.
    pub output_count: u32,
}

/// A row's result.
#[derive(Clone, Debug, PartialEq)]
pub enum Sampled {
    /// The token drawn.
    Token {
        /// Its id.
        token: u32,
        /// Its log-probabilities, if asked for.
        logprobs: Option<Logprobs>,
    },
    /// The row holds a NaN, an infinity, or nothing that may be drawn.
    NonFinite,
}

/// Natural-log probabilities from a row's raw logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token asked about.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens, most likely first; ties by lower id.
    pub top: Vec<(u32, f32)>,
}
