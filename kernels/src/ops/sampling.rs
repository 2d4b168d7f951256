//! Choosing a token from a row of logits.
//!
//! In this order, as in vLLM: log-probabilities are taken from the raw logits;
//! then logit bias and bans, repetition, frequency and presence penalties; then tokens
//! that are not allowed are left out; greedy rows take the likeliest token (ties: the lowest id); others divide by
//! the temperature, then keep min-p, top-k and top-p survivors and draw one.
//!
//! Filters draw by rejection: up to [`REJECTIONS`] tokens are drawn from all that have a
//! probability, the first that survives is the row's, and only if none does one is drawn from the
//! survivors. The distribution is the same, but of most rows it is enough to know whether one
//! token survives. A top-k of at most [`SMALL_TOP_K`], which may keep little of a row, draws from
//! the survivors at once.
//!
//! A draw is a Philox4x32-10 number (Salmon et al., 2011) of
//! `(seed, index, draw)`: it depends on nothing else, so a request's tokens are the
//! same in any batch and after any preemption.
#![expect(unsafe_code, reason = "tasks write disjoint rows")]

use super::ensure;
use crate::{
    KernelError,
    cpu::{Cpu, CpuBuffer, SharedMut},
};

/// Tokens that filters draw from a whole row before one from the survivors.
pub const REJECTIONS: u32 = 4;
/// The largest top-k whose survivors are drawn from at once.
pub const SMALL_TOP_K: u32 = 128;

/// What one row's request asks.
#[derive(Clone, Copy, Debug)]
pub struct SampleRequest<'a> {
    /// 0 is greedy, and so is whatever is below 1e-5.
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
    /// Whether what [`Self::slot`] sampled last is output that `seen` does not count yet:
    /// [`crate::Sampler::end_step`] counts it.
    pub last_is_uncounted: bool,
    /// The slot for which [`crate::Sampler::end_step`] keeps the token.
    pub slot: Option<u32>,
    /// Added to these tokens' logits. Tokens outside the vocabulary are passed
    /// over, here and in `seen` and `banned`.
    pub logit_bias: &'a [(u32, f32)],
    /// Never drawn (end tokens before `min_tokens`).
    pub banned: &'a [u32],
    /// The tokens that may be drawn: token `t` if bit `t % 32` of word `t / 32` is set, none of
    /// those beyond the last word; `None` allows all. Other tokens are never drawn, whatever
    /// their bias. Log-probabilities are of all tokens.
    pub allowed: Option<&'a [u32]>,
    /// The request's seed.
    pub seed: u64,
    /// The index of the output token drawn.
    pub index: u32,
    /// Report the drawn token's log-probability and so many likeliest tokens.
    pub num_logprobs: Option<u32>,
}

impl SampleRequest<'_> {
    /// Whether a row of so many tokens is drawn by rejection.
    #[must_use]
    pub fn is_drawn_by_rejection(&self, vocab_size: usize) -> bool {
        let has_top_k = self.top_k > 0 && (self.top_k as usize) < vocab_size;
        let is_filtered = has_top_k || self.top_p < 1.0 || self.min_p > 0.0;
        is_filtered && !(has_top_k && self.top_k <= SMALL_TOP_K)
    }
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
            last_is_uncounted: false,
            slot: None,
            logit_bias: &[],
            banned: &[],
            allowed: None,
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
    /// The row holds a NaN, an infinity, or nothing of any probability.
    NonFinite,
    /// The row could be drawn from, but what is asked of it leaves no token: all that have a
    /// probability are banned or not allowed.
    NothingAllowed,
}

/// Natural-log probabilities from a row's raw logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The token asked about.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// Its place among all tokens, the likeliest being 1, ties by lower id; `None` of a token that
    /// was drawn, whose place is not counted.
    pub rank: Option<u32>,
    /// The likeliest tokens, most likely first; ties by lower id. Tokens of
    /// probability 0 are left out.
    pub top: Vec<(u32, f32)>,
}

pub(crate) fn sample(
    cpu: &Cpu,
    logits: &mut CpuBuffer,
    requests: &[SampleRequest<'_>],
    out: &mut Vec<Sampled>,
) -> Result<(), KernelError> {
    const OP: &str = "sample";
    let (rows, vocab_size) = (requests.len(), logits.cols());
    logits.check(OP, "logits", rows, vocab_size)?;
    let first = out.len();
    out.resize(first + rows, Sampled::NonFinite);
    let results = SharedMut::new(&mut out[first..]);
    let logits = SharedMut::new(logits.rows_mut(rows));
    cpu.pool.run(rows, &|thread, row| {
        // SAFETY: each task has its own row.
        let (logits, result) =
            unsafe { (logits.slice(row * vocab_size, vocab_size), results.slice(row, 1)) };
        let sampler = &mut cpu.scratch(thread).sampling;
        result[0] = sampler.sample(cpu.isa, logits, &requests[row]);
    });
    Ok(())
}

pub(crate) fn logprobs(
    cpu: &Cpu,
    logits: &CpuBuffer,
    tokens: &[u32],
    num_top: &[u32],
    out: &mut Vec<Logprobs>,
) -> Result<(), KernelError> {
    const OP: &str = "logprobs";
    logits.check(OP, "logits", tokens.len(), logits.cols())?;
    ensure(
        tokens.len() == num_top.len(),
        OP,
        "num_top",
        || num_top.len().to_string(),
        || format!("{} as tokens", tokens.len()),
    )?;
    let vocab_size = logits.cols();
    let largest = tokens.iter().copied().max().unwrap_or(0) as usize;
    let expected = || format!("below the vocabulary of {vocab_size}");
    let fits = tokens.is_empty() || largest < vocab_size;
    ensure(fits, OP, "a token id", || largest.to_string(), expected)?;
    let first = out.len();
    let empty = Logprobs { token: 0, logprob: 0.0, rank: None, top: Vec::new() };
    out.resize(first + tokens.len(), empty);
    let results = SharedMut::new(&mut out[first..]);
    cpu.pool.run(tokens.len(), &|thread, row| {
        // SAFETY: each task has its own row.
        let result = unsafe { results.slice(row, 1) };
        let sampler = &mut cpu.scratch(thread).sampling;
        let num_top = num_top[row] as usize;
        result[0] = sampler.logprobs(cpu.isa, logits.row(row), tokens[row], num_top);
    });
    Ok(())
}

/// A number in [0, 1) of the request's own sequence: the first of the token at `index`.
#[must_use]
pub fn uniform(seed: u64, index: u32) -> f64 {
    uniform_of_draw(seed, index, 0)
}

/// The number in [0, 1) of a token's draw, counted from 0.
#[must_use]
pub fn uniform_of_draw(seed: u64, index: u32, draw: u32) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let [a, b, ..] = philox4x32_10([index, draw, 0, 0], key);
    let bits = u64::from(a) << 32 | u64::from(b);
    (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let multiply = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    for round in 0..10 {
        if round > 0 {
            key[0] = key[0].wrapping_add(0x9e37_79b9);
            key[1] = key[1].wrapping_add(0xbb67_ae85);
        }
        let (high0, low0) = multiply(0xd251_1f53, counter[0]);
        let (high1, low1) = multiply(0xcd9e_8d57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::philox4x32_10;

    /// The known answers that come with Random123.
    #[test]
    fn philox_gives_the_published_numbers() {
        assert_eq!(
            philox4x32_10([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }
}
