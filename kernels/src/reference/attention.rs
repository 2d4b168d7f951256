//! Rotary embedding and attention for one query head.

use crate::AttentionParams;

/// Rotates one head for a position (RoPE in the half-split form): with
/// `angle = position * theta ^ (-2 i / d)`,
///
/// ```text
/// out[i]         = x[i] cos(angle) - x[i + d/2] sin(angle)
/// out[i + d / 2] = x[i + d/2] cos(angle) + x[i] sin(angle)
/// ```
///
/// The sines and cosines come from the caller's table, `d / 2` of each.
#[must_use]
pub fn rope(head: &[f64], cos: &[f64], sin: &[f64]) -> Vec<f64> {
    let half = head.len() / 2;
    let low = (0..half).map(|i| head[i] * cos[i] - head[i + half] * sin[i]);
    let high = (0..half).map(|i| head[i + half] * cos[i] + head[i] * sin[i]);
    low.chain(high).collect()
}

/// Attention of one query head at `position` over a sequence's keys and values,
/// `[head_dim]` each, of its whole context:
///
/// ```text
/// score[t] = scale * q · k[t]            (then cap * tanh(score / cap))
/// out      = Σ_t softmax(score)[t] v[t]  over the positions t that q sees
/// ```
#[must_use]
pub fn attention(
    params: &AttentionParams,
    position: usize,
    q: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
) -> Vec<f64> {
    let seen = params.mask.first_seen(position)..params.mask.seen_end(position, keys.len());
    let scores: Vec<f64> = keys[seen.clone()]
        .iter()
        .map(|k| {
            let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
            let score = f64::from(params.scale) * dot;
            params.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    let mut out = vec![0.0; q.len()];
    for (score, v) in scores.iter().zip(&values[seen]) {
        let weight = (score - max).exp() / total;
        for (out, v) in out.iter_mut().zip(v) {
            *out += weight * v;
        }
    }
    out
}
