//! Sampling from one row of logits.

use crate::ops::sampling::{REJECTIONS, SampleRequest, uniform_of_draw};

/// `logit[i] - ln Σ_j exp(logit[j])`.
#[must_use]
pub fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    logits.iter().map(|logit| logit - max - total.ln()).collect()
}

/// The logits after bias, bans, the repetition, frequency and presence
/// penalties and the mask, in this order.
#[must_use]
pub fn adjusted_logits(logits: &[f64], request: &SampleRequest<'_>) -> Vec<f64> {
    let mut logits = logits.to_vec();
    for &(token, bias) in request.logit_bias {
        logits[token as usize] += f64::from(bias);
    }
    for &token in request.banned {
        logits[token as usize] = f64::NEG_INFINITY;
    }
    for seen in request.seen {
        let logit = &mut logits[seen.token as usize];
        let penalty = f64::from(request.repetition_penalty);
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        *logit -= f64::from(request.frequency_penalty) * f64::from(seen.output_count);
        if seen.output_count > 0 {
            *logit -= f64::from(request.presence_penalty);
        }
    }
    if let Some(allowed) = request.allowed {
        for (token, logit) in logits.iter_mut().enumerate() {
            if allowed.get(token / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
                *logit = f64::NEG_INFINITY;
            }
        }
    }
    logits
}

/// The probability of each token to be drawn at a temperature above 0: of the
/// adjusted logits over the temperature, what min-p keeps; of those what top-k
/// keeps; of those, made to sum to 1, what top-p keeps; made to sum to 1 again.
#[must_use]
pub fn distribution(logits: &[f64], request: &SampleRequest<'_>) -> Vec<f64> {
    let scaled: Vec<f64> = adjusted_logits(logits, request)
        .iter()
        .map(|logit| logit / f64::from(request.temperature))
        .collect();
    let probabilities: Vec<f64> = log_softmax(&scaled).iter().map(|p| p.exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // A stable sort: equals stay in order of their ids.
    order.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));

    let least = probabilities[order[0]] * f64::from(request.min_p);
    order.retain(|&token| probabilities[token] > 0.0 && probabilities[token] >= least);
    if request.top_k > 0 {
        order.truncate(request.top_k as usize);
    }
    if request.top_p < 1.0 {
        let total: f64 = order.iter().map(|&token| probabilities[token]).sum();
        let mut reached = 0.0;
        let needed = order.iter().position(|&token| {
            reached += probabilities[token];
            reached >= f64::from(request.top_p) * total
        });
        order.truncate(needed.map_or(order.len(), |last| last + 1));
    }

    let total: f64 = order.iter().map(|&token| probabilities[token]).sum();
    let mut kept = vec![0.0; logits.len()];
    for token in order {
        kept[token] = probabilities[token] / total;
    }
    kept
}

/// Whether `token` may be what a request at a temperature above 0 draws, where sums may be off by
/// `rounding`.
#[must_use]
pub fn may_be_drawn(
    logits: &[f64],
    request: &SampleRequest<'_>,
    token: usize,
    rounding: f64,
) -> bool {
    let kept = distribution(logits, request);
    if kept[token] == 0.0 {
        return false;
    }
    let number = |draw| uniform_of_draw(request.seed, request.index, draw);
    if !request.is_drawn_by_rejection(logits.len()) {
        return lies_at(&kept, token, number(0), rounding);
    }
    let all = distribution(logits, &SampleRequest { top_k: 0, top_p: 1.0, min_p: 0.0, ..*request });
    for draw in 0..REJECTIONS {
        let number = number(draw);
        if lies_at(&all, token, number, rounding) {
            return true;
        }
        let near = [number - rounding, number, number + rounding];
        if near.iter().all(|&number| kept[token_at(&all, number)] > 0.0) {
            return false;
        }
    }
    lies_at(&kept, token, number(REJECTIONS), rounding)
}

/// Whether the probabilities, added up in order of their ids, pass `uniform` at a token.
fn lies_at(probabilities: &[f64], token: usize, uniform: f64, rounding: f64) -> bool {
    let before: f64 = probabilities[..token].iter().sum();
    before - rounding <= uniform && uniform < before + probabilities[token] + rounding
}

/// The token at which the probabilities, added up in order of their ids, pass
/// `uniform`.
fn token_at(probabilities: &[f64], uniform: f64) -> usize {
    let mut sum = 0.0;
    let passed = probabilities.iter().position(|p| {
        sum += p;
        sum > uniform
    });
    let last = || probabilities.iter().rposition(|&p| p > 0.0);
    passed.or_else(last).unwrap_or(0)
}
