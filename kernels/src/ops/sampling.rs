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
#![expect(unsafe_code, reason = "tasks write disjoint rows")]

use super::ensure;
use crate::{
    KernelError,
    cpu::{self, Cpu, CpuBuffer, Isa, SharedMut},
};

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

/// A thread's working memory.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Tokens that may be drawn, with their logits.
    candidates: Vec<(u32, f32)>,
    weights: Vec<f32>,
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
    let largest = requests.iter().flat_map(|request| {
        let biased = request.logit_bias.iter().map(|&(token, _)| token);
        let seen = request.seen.iter().map(|seen| seen.token);
        biased.chain(seen).chain(request.banned.iter().copied())
    });
    check_token(OP, largest.max(), vocab_size)?;
    let first = out.len();
    out.resize(first + rows, Sampled::NonFinite);
    let results = SharedMut::new(&mut out[first..]);
    let logits = SharedMut::new(logits.rows_mut(rows));
    cpu.pool.run(rows, &|thread, row| {
        // SAFETY: each task has its own row.
        let (logits, result) =
            unsafe { (logits.slice(row * vocab_size, vocab_size), results.slice(row, 1)) };
        let mut scratch = cpu.scratch(thread);
        result[0] = sample_row(cpu.isa, &requests[row], logits, &mut scratch.sampling);
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
    check_token(OP, tokens.iter().copied().max(), logits.cols())?;
    for (row, (&token, &num_top)) in tokens.iter().zip(num_top).enumerate() {
        let logits = logits.row(row);
        let row = RawRow::new(cpu.isa, logits, num_top);
        out.push(row.logprobs(token, logits[token as usize]));
    }
    Ok(())
}

fn check_token(op: &'static str, token: Option<u32>, vocab_size: usize) -> Result<(), KernelError> {
    let token = token.unwrap_or(0);
    let expected = || format!("below the vocabulary of {vocab_size}");
    ensure((token as usize) < vocab_size, op, "a token id", || token.to_string(), expected)
}

fn sample_row(
    isa: Isa,
    request: &SampleRequest<'_>,
    logits: &mut [f32],
    scratch: &mut Scratch,
) -> Sampled {
    if cpu::has_nan_or_inf(isa, logits) {
        return Sampled::NonFinite;
    }
    // The raw distribution is still needed once the row has been changed.
    let raw = request.num_logprobs.map(|n| (RawRow::new(isa, logits, n), logits.to_vec()));
    adjust(request, logits);
    let max = cpu::max(isa, logits);
    if max == f32::NEG_INFINITY {
        return Sampled::NonFinite;
    }
    let token = if request.temperature == 0.0 {
        position_of(logits, max)
    } else {
        draw(isa, request, logits, max, scratch)
    };
    let logprobs = raw.map(|(row, logits)| row.logprobs(token, logits[token as usize]));
    Sampled::Token { token, logprobs }
}

/// The lowest index that holds `value`.
fn position_of(logits: &[f32], value: f32) -> u32 {
    let position = logits.iter().position(|&x| x == value).expect("the maximum is one of them");
    u32::try_from(position).expect("a vocabulary is below 2^32")
}

/// Bias, bans and penalties, in vLLM's order.
fn adjust(request: &SampleRequest<'_>, logits: &mut [f32]) {
    for &(token, bias) in request.logit_bias {
        logits[token as usize] += bias;
    }
    for &token in request.banned {
        logits[token as usize] = f32::NEG_INFINITY;
    }
    let SampleRequest { repetition_penalty, presence_penalty, frequency_penalty, .. } = *request;
    if repetition_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0 {
        return;
    }
    for seen in request.seen {
        let logit = &mut logits[seen.token as usize];
        *logit *= if *logit > 0.0 { 1.0 / repetition_penalty } else { repetition_penalty };
        if seen.output_count > 0 {
            *logit -= frequency_penalty * seen.output_count as f32 + presence_penalty;
        }
    }
}

/// Draws from what min-p, top-k and top-p leave of the tempered distribution.
fn draw(
    isa: Isa,
    request: &SampleRequest<'_>,
    logits: &[f32],
    max: f32,
    scratch: &mut Scratch,
) -> u32 {
    let SampleRequest { temperature, top_k, top_p, min_p, .. } = *request;
    let scale = 1.0 / temperature;
    if !scale.is_finite() {
        return position_of(logits, max);
    }
    let Scratch { candidates, weights } = scratch;
    candidates.clear();
    // exp((l - max) / T) >= min_p; without min-p whatever can be drawn at all.
    let floor = if min_p > 0.0 { max + temperature * min_p.ln() } else { f32::NEG_INFINITY };
    let ids = 0..u32::try_from(logits.len()).expect("a vocabulary is below 2^32");
    candidates.extend(
        ids.zip(logits.iter().copied()).filter(|&(_, l)| l >= floor && l > f32::NEG_INFINITY),
    );
    let top_k = if top_k == 0 { usize::MAX } else { top_k as usize };
    if top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, likelier_first);
        candidates.truncate(top_k);
        // Selection leaves no defined order; the draw needs one.
        candidates.sort_unstable_by(likelier_first);
    }
    let weigh = |candidates: &[(u32, f32)], weights: &mut Vec<f32>| {
        weights.clear();
        weights.extend(candidates.iter().map(|&(_, logit)| (logit - max) * scale));
        cpu::exp_and_sum(isa, weights, 0.0);
    };
    weigh(candidates, weights);
    if top_p < 1.0 {
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        keep_top_p(candidates, total * f64::from(top_p), |logit| {
            f64::from(cpu::exp_one(isa, (logit - max) * scale))
        });
        weigh(candidates, weights);
    }
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let target = uniform(request.seed, request.index) * total;
    let mut sum = 0.0;
    for (&(token, _), &weight) in candidates.iter().zip(&*weights) {
        sum += f64::from(weight);
        if sum > target {
            return token;
        }
    }
    // Rounding may leave the sum at the target; the last that weighs anything takes it.
    let last = candidates.iter().zip(&*weights).rev().find(|&(_, &weight)| weight > 0.0);
    last.map_or_else(|| position_of(logits, max), |(&(token, _), _)| token)
}

/// More likely first; ties by lower id.
fn likelier_first(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the likeliest candidates whose weights reach `target`, sorted. The
/// head is sorted in growing parts: rarely is more than a few of it needed.
fn keep_top_p(candidates: &mut Vec<(u32, f32)>, target: f64, weight: impl Fn(f32) -> f64) {
    let (mut sorted, mut sum) = (0, 0.0);
    let mut part = 64;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let len = part.min(rest.len());
        if len < rest.len() {
            rest.select_nth_unstable_by(len - 1, likelier_first);
        }
        rest[..len].sort_unstable_by(likelier_first);
        for i in 0..len {
            sum += weight(rest[i].1);
            if sum >= target {
                candidates.truncate(sorted + i + 1);
                return;
            }
        }
        sorted += len;
        part *= 8;
    }
}

/// What log-probabilities need of a row.
struct RawRow {
    log_total: f32,
    top: Vec<(u32, f32)>,
}

impl RawRow {
    fn new(isa: Isa, logits: &[f32], num_top: u32) -> Self {
        let max = cpu::max(isa, logits);
        let log_total = max + cpu::sum_exp(isa, logits, max, 1.0).ln() as f32;
        Self { log_total, top: likeliest(logits, num_top as usize, log_total) }
    }

    fn logprobs(self, token: u32, logit: f32) -> Logprobs {
        Logprobs { token, logprob: logit - self.log_total, top: self.top }
    }
}

/// The `n` likeliest tokens with their log-probabilities, in one pass.
fn likeliest(logits: &[f32], n: usize, log_total: f32) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(n + 1);
    for (token, &logit) in (0..).zip(logits) {
        if top.len() == n && top.last().is_none_or(|&(_, least)| logit <= least) {
            continue;
        }
        let at = top.partition_point(|&(_, other)| other >= logit);
        top.insert(at, (token, logit));
        top.truncate(n);
    }
    top.iter_mut().for_each(|(_, logit)| *logit -= log_total);
    top
}

/// A number in [0, 1) of the request's own sequence.
#[must_use]
pub fn uniform(seed: u64, index: u32) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let [a, b, ..] = philox4x32_10([index, 0, 0, 0], key);
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
        counter =
            [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
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
