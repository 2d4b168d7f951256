//! Sampling from one row of logits; see [`crate::ops::sampling`] for the contract.
//!
//! Nothing sorts the whole vocabulary. Whether one drawn token survives is a sum or a count of
//! those before it. Where survivors must be known, filters first throw away, in one pass,
//! what certainly falls out; selections in linear time find the exact borders.
//! Draws walk tokens in order of their ids.

use super::{Isa, vector};
use crate::ops::sampling::{
    Logprobs, REJECTIONS, SampleRequest, Sampled, SeenToken, uniform_of_draw,
};

/// Logits whose largest are looked up together.
const BLOCK: usize = 64;
/// Weights that are summed together where nothing is filtered out.
const SUM_BLOCK: usize = 1024;
/// Below this temperature the likeliest token is all that remains, and scaling
/// by its inverse would overflow.
const GREEDY_BELOW: f32 = 1e-5;
/// Above this temperature all that is finite is equally likely, and an inverse
/// of 0 would make a NaN of what is not.
const EVEN_ABOVE: f32 = 1e9;

/// Samples rows, one at a time. Each thread keeps one with its working memory,
/// so that a step allocates nothing once that has grown.
#[derive(Default)]
pub(crate) struct RowSampler {
    candidates: Vec<Candidate>,
    selected: Vec<Candidate>,
    floats: Vec<f32>,
    sums: Vec<f64>,
    raw: Vec<(u32, f32)>,
}

/// A token that may be drawn.
#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
    /// `exp((logit - largest) / temperature)`, once computed.
    weight: f32,
}

impl Candidate {
    /// Likeliest first; equals by lower id.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        // The zeros are equal.
        (other.logit + 0.0).total_cmp(&(self.logit + 0.0)).then(self.token.cmp(&other.token))
    }
}

impl RowSampler {
    /// Samples one row, which is changed by bias, bans, penalties and the mask.
    pub(crate) fn sample(
        &mut self,
        isa: Isa,
        logits: &mut [f32],
        request: &SampleRequest<'_>,
    ) -> Sampled {
        let raw_max = vector::max(isa, logits);
        if raw_max == f32::NEG_INFINITY || vector::has_nan_or_inf(isa, logits) {
            return Sampled::NonFinite;
        }
        let mut reported = request.num_logprobs.map(|num_top| {
            let log_sum = log_sum_exp(isa, logits, raw_max);
            (log_sum, self.top(isa, logits, num_top as usize, log_sum))
        });
        self.raw.clear();
        if reported.is_some() {
            self.remember_raw(logits, request);
        }
        let max = if adjust(logits, request) {
            if vector::has_nan_or_inf(isa, logits) {
                return Sampled::NonFinite;
            }
            vector::max(isa, logits)
        } else {
            raw_max
        };
        if max == f32::NEG_INFINITY {
            return Sampled::NothingAllowed;
        }
        let token = if request.temperature >= GREEDY_BELOW {
            self.draw(isa, logits, max, request)
        } else {
            first_equal(logits, max)
        };
        let logprobs = reported.take().map(|(log_sum, top)| {
            let changed = self.raw.iter().find(|&&(changed, _)| changed == token);
            let logit = changed.map_or(logits[token as usize], |&(_, raw)| raw);
            Logprobs { token, logprob: (f64::from(logit) - log_sum) as f32, rank: None, top }
        });
        Sampled::Token { token, logprobs }
    }

    /// The log-probability of `token` with the `num_top` likeliest tokens.
    pub(crate) fn logprobs(
        &mut self,
        isa: Isa,
        logits: &[f32],
        token: u32,
        num_top: usize,
    ) -> Logprobs {
        let log_sum = log_sum_exp(isa, logits, vector::max(isa, logits));
        let logprob = (f64::from(logits[token as usize]) - log_sum) as f32;
        let rank = Some(rank(logits, token as usize));
        Logprobs { token, logprob, rank, top: self.top(isa, logits, num_top, log_sum) }
    }

    /// The likeliest tokens with their log-probabilities; those of no
    /// probability at all are left out.
    fn top(&mut self, isa: Isa, logits: &[f32], num: usize, log_sum: f64) -> Vec<(u32, f32)> {
        if num == 0 {
            return Vec::new();
        }
        let bound = self.bound_of_kth(isa, logits, num);
        self.collect(logits, bound);
        keep_likeliest(&mut self.candidates, num);
        self.candidates.sort_unstable_by(Candidate::order);
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        self.candidates.iter().map(|c| (c.token, logprob(c.logit))).collect()
    }

    /// A value that the `k` largest logits reach: the largest of each block are
    /// logits too, so the k-th largest of those is not above the k-th of all.
    fn bound_of_kth(&mut self, isa: Isa, logits: &[f32], k: usize) -> f32 {
        if k > logits.len() / BLOCK {
            return f32::NEG_INFINITY;
        }
        let maxima = &mut self.floats;
        maxima.clear();
        maxima.extend(logits.chunks(BLOCK).map(|block| vector::max(isa, block)));
        *maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }

    /// Takes the logits from `bound` on as candidates, in order of their ids.
    fn collect(&mut self, logits: &[f32], bound: f32) {
        self.candidates.clear();
        for (token, &logit) in (0..).zip(logits) {
            if logit >= bound && logit > f32::NEG_INFINITY {
                self.candidates.push(Candidate { token, logit, weight: 0.0 });
            }
        }
    }

    /// Keeps the raw logits of tokens that [`adjust`] may change.
    fn remember_raw(&mut self, logits: &[f32], request: &SampleRequest<'_>) {
        let biased = request.logit_bias.iter().map(|&(token, _)| token);
        let seen = penalized(request).iter().map(|seen| seen.token);
        for token in biased.chain(request.banned.iter().copied()).chain(seen) {
            if let Some(&logit) = logits.get(token as usize) {
                self.raw.push((token, logit));
            }
        }
    }

    /// Draws a token; `max` is the largest logit, and finite.
    fn draw(&mut self, isa: Isa, logits: &[f32], max: f32, request: &SampleRequest<'_>) -> u32 {
        let weights = Weights { isa, max, scale: 1.0 / request.temperature.min(EVEN_ABOVE) };
        let filters = Filters::of(request, logits.len());
        let number = |draw| uniform_of_draw(request.seed, request.index, draw);
        if filters.is_none() {
            self.sum_blocks(logits, weights);
            return self.draw_from_all(logits, weights, number(0));
        }
        let mut draw = 0;
        if request.is_drawn_by_rejection(logits.len()) {
            let total = self.sum_blocks(logits, weights);
            while draw < REJECTIONS {
                let token = self.draw_from_all(logits, weights, number(draw));
                match self.survives(logits, weights, filters, total, token) {
                    Some(true) => return token,
                    Some(false) => draw += 1,
                    None => break,
                }
            }
            self.find_survivors(logits, weights, filters, Some(total));
            while draw < REJECTIONS {
                let token = self.draw_from_all(logits, weights, number(draw));
                if self.candidates.binary_search_by_key(&token, |c| c.token).is_ok() {
                    return token;
                }
                draw += 1;
            }
        } else {
            self.find_survivors(logits, weights, filters, None);
        }
        self.draw_from_survivors(number(draw))
    }

    /// Whether a token survives, where one look at the row tells.
    fn survives(
        &mut self,
        logits: &[f32],
        weights: Weights,
        filters: Filters,
        total: f64,
        token: u32,
    ) -> Option<bool> {
        let token = token as usize;
        match filters {
            Filters { min_p: Some(min_p), top_k: None, top_p: None } => {
                Some(logits[token] >= weights.bound(f64::from(min_p).ln()))
            }
            Filters { min_p: None, top_k: Some(k), top_p: None } => {
                Some(rank(logits, token) as usize <= k)
            }
            Filters { min_p: None, top_k: None, top_p: Some(top_p) } => Some(
                logits[token] == weights.max && first_equal(logits, weights.max) as usize == token
                    || self.sum_before(logits, weights, token) < top_p * total,
            ),
            _ => None,
        }
    }

    /// The sum of the weights of tokens that come before one: with larger logits, or equal ones
    /// and lower ids.
    fn sum_before(&mut self, logits: &[f32], weights: Weights, token: usize) -> f64 {
        let own = logits[token];
        let mut sum = 0.0;
        for (block, start) in logits.chunks(SUM_BLOCK).zip((0..).step_by(SUM_BLOCK)) {
            let (lower, higher) = block.split_at(token.saturating_sub(start).min(block.len()));
            self.floats.clear();
            let kept = |keeps: bool, x: f32| if keeps { x } else { f32::NEG_INFINITY };
            self.floats.extend(lower.iter().map(|&x| kept(x >= own, x)));
            self.floats.extend(higher.iter().map(|&x| kept(x > own, x)));
            sum += weights.sum(&self.floats);
        }
        sum
    }

    /// Makes candidates, in order of their ids, of the tokens that filters keep. `total`: the sum
    /// of all weights, where it is known.
    fn find_survivors(
        &mut self,
        logits: &[f32],
        weights: Weights,
        filters: Filters,
        total: Option<f64>,
    ) {
        // A first bound throws most of the vocabulary away. Tokens less likely
        // than (1 - top_p) / vocabulary are together less likely than
        // 1 - top_p, so those above reach top_p; half of that is a margin for
        // rounding.
        let Filters { min_p, top_k, top_p } = filters;
        let mut nucleus_of = None;
        let mut bound =
            min_p.map_or(f32::NEG_INFINITY, |min_p| weights.bound(f64::from(min_p).ln()));
        if let Some(k) = top_k {
            bound = bound.max(self.bound_of_kth(weights.isa, logits, k));
        } else if let (Some(top_p), None) = (top_p, min_p) {
            let sum = total.unwrap_or_else(|| weights.sum(logits));
            nucleus_of = Some(sum);
            bound = weights.bound(((1.0 - top_p) * 0.5 / logits.len() as f64 * sum).ln());
        }
        self.collect(logits, bound);
        self.weigh(weights);

        self.selected.clear();
        self.selected.extend_from_slice(&self.candidates);
        if let Some(k) = top_k {
            keep_likeliest(&mut self.selected, k);
        }
        let border = match top_p {
            Some(top_p) => {
                let sum = || self.selected.iter().map(|c| f64::from(c.weight)).sum::<f64>();
                let total = nucleus_of.unwrap_or_else(sum);
                nucleus_border(&mut self.selected, top_p * total)
            }
            None => self.selected.iter().copied().max_by(Candidate::order).expect("one stays"),
        };
        self.candidates.retain(|c| c.order(&border).is_le());
    }

    /// Draws from the candidates.
    fn draw_from_survivors(&self, uniform: f64) -> u32 {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let mut left = uniform * total;
        let drawn = self.candidates.iter().find(|c| {
            left -= f64::from(c.weight);
            left < 0.0
        });
        drawn.or(self.candidates.iter().rfind(|c| c.weight > 0.0)).expect("one stays").token
    }

    /// Computes the candidates' weights.
    fn weigh(&mut self, weights: Weights) {
        self.floats.clear();
        self.floats.extend(self.candidates.iter().map(|c| c.logit));
        weights.weigh(&mut self.floats);
        for (candidate, &weight) in self.candidates.iter_mut().zip(&self.floats) {
            candidate.weight = weight;
        }
    }

    /// Sums the weights of blocks; the sum of all.
    fn sum_blocks(&mut self, logits: &[f32], weights: Weights) -> f64 {
        self.sums.clear();
        self.sums.extend(logits.chunks(SUM_BLOCK).map(|block| weights.sum(block)));
        self.sums.iter().sum()
    }

    /// Draws from all tokens: by the sums of blocks first, then within one block.
    fn draw_from_all(&mut self, logits: &[f32], weights: Weights, uniform: f64) -> u32 {
        let mut left = uniform * self.sums.iter().sum::<f64>();
        // Rounding may carry the target past the last weight that counts.
        let last = self.sums.iter().rposition(|&sum| sum > 0.0).expect("the largest weighs 1");
        let mut block = 0;
        while block < last && left >= self.sums[block] {
            left -= self.sums[block];
            block += 1;
        }
        let start = block * SUM_BLOCK;
        let end = logits.len().min(start + SUM_BLOCK);
        self.floats.clear();
        self.floats.extend_from_slice(&logits[start..end]);
        weights.weigh(&mut self.floats);
        let within = self.floats.iter().position(|&weight| {
            left -= f64::from(weight);
            left < 0.0
        });
        let last_within = || self.floats.iter().rposition(|&weight| weight > 0.0);
        (start + within.or_else(last_within).unwrap_or(0)) as u32
    }
}

/// Likelihoods beside the likeliest token's: `exp((logit - max) * scale)`.
#[derive(Clone, Copy)]
struct Weights {
    isa: Isa,
    max: f32,
    scale: f32,
}

impl Weights {
    /// The sum of logits' weights.
    fn sum(self, logits: &[f32]) -> f64 {
        vector::sum_exp(self.isa, logits, self.max, self.scale)
    }

    /// Makes weights of logits.
    fn weigh(self, logits: &mut [f32]) {
        logits.iter_mut().for_each(|x| *x = (*x - self.max) * self.scale);
        vector::exp_and_sum(self.isa, logits, 0.0);
    }

    /// The logit of the weight with this logarithm. The likeliest token always reaches it,
    /// however it is rounded.
    fn bound(self, log: f64) -> f32 {
        ((f64::from(self.max) + log / f64::from(self.scale)) as f32).min(self.max)
    }
}

/// What of a row may be drawn.
#[derive(Clone, Copy)]
struct Filters {
    min_p: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f64>,
}

impl Filters {
    fn of(request: &SampleRequest<'_>, vocab_size: usize) -> Self {
        Self {
            min_p: (request.min_p > 0.0).then_some(request.min_p.min(1.0)),
            top_k: Some(request.top_k as usize).filter(|&k| k > 0 && k < vocab_size),
            top_p: (request.top_p < 1.0).then_some(f64::from(request.top_p.max(0.0))),
        }
    }

    const fn is_none(self) -> bool {
        self.min_p.is_none() && self.top_k.is_none() && self.top_p.is_none()
    }
}

/// A token's place by its logit, the largest being 1; equals by lower id.
fn rank(logits: &[f32], token: usize) -> u32 {
    let own = logits[token];
    let before = logits[..token].iter().map(|&logit| u32::from(logit >= own)).sum::<u32>();
    let behind = logits[token..].iter().map(|&logit| u32::from(logit > own)).sum::<u32>();
    before + behind + 1
}

/// `ln Σ exp(logit)`.
fn log_sum_exp(isa: Isa, logits: &[f32], max: f32) -> f64 {
    f64::from(max) + vector::sum_exp(isa, logits, max, 1.0).ln()
}

/// The first token whose logit is `max`.
fn first_equal(logits: &[f32], max: f32) -> u32 {
    // Blocks first: a comparison that never leaves early is a vector's work.
    let block = logits
        .chunks(BLOCK)
        .position(|block| block.iter().fold(false, |found, &logit| found | (logit == max)));
    let start = block.unwrap_or(0) * BLOCK;
    let within = logits[start..].iter().position(|&logit| logit == max);
    (start + within.unwrap_or(0)) as u32
}

/// The tokens that penalties touch; none where no penalty is on.
fn penalized<'a>(request: &SampleRequest<'a>) -> &'a [SeenToken] {
    let off = request.repetition_penalty == 1.0
        && request.presence_penalty == 0.0
        && request.frequency_penalty == 0.0;
    if off { &[] } else { request.seen }
}

/// Applies bias, bans, penalties and the mask. Tokens outside the vocabulary are passed
/// over. Returns whether anything may have changed.
fn adjust(logits: &mut [f32], request: &SampleRequest<'_>) -> bool {
    for &(token, bias) in request.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    for &token in request.banned {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let seen = penalized(request);
    for seen in seen {
        let Some(logit) = logits.get_mut(seen.token as usize) else {
            continue;
        };
        if *logit > 0.0 {
            *logit /= request.repetition_penalty;
        } else {
            *logit *= request.repetition_penalty;
        }
        if seen.output_count > 0 {
            *logit -= request.frequency_penalty * seen.output_count as f32;
            *logit -= request.presence_penalty;
        }
    }
    if let Some(allowed) = request.allowed {
        leave_out(logits, allowed);
    }
    let is_plain = request.logit_bias.is_empty() && request.banned.is_empty() && seen.is_empty();
    !is_plain || request.allowed.is_some()
}

/// Leaves out the tokens whose bits are not set.
fn leave_out(logits: &mut [f32], allowed: &[u32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        if word == 0 {
            logits.fill(f32::NEG_INFINITY);
        } else if word != u32::MAX {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Keeps the `k` likeliest candidates, in no order.
fn keep_likeliest(candidates: &mut Vec<Candidate>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, Candidate::order);
        candidates.truncate(k);
    }
}

/// The least likely of the likeliest candidates whose weights reach `target`:
/// a selection that follows weights instead of counts.
fn nucleus_border(mut candidates: &mut [Candidate], target: f64) -> Candidate {
    const SORT_FROM: usize = 32;
    let mut left = target;
    while candidates.len() > SORT_FROM {
        let middle = candidates.len() / 2;
        let (above, _, _) = candidates.select_nth_unstable_by(middle, Candidate::order);
        let sum: f64 = above.iter().map(|c| f64::from(c.weight)).sum();
        if sum >= left {
            candidates = &mut candidates[..middle];
        } else {
            left -= sum;
            candidates = &mut candidates[middle..];
        }
    }
    candidates.sort_unstable_by(Candidate::order);
    let border = candidates.iter().find(|c| {
        left -= f64::from(c.weight);
        left <= 0.0
    });
    *border.or(candidates.last()).expect("there is at least one candidate")
}
