//! The operations in f64, one row at a time, written to be read.
//!
//! Every form of an operation is held against these by tests. They take
//! exact inputs: where an operation rounds (to bf16), a test rounds first and
//! states how much error the rounding inside an operation may add.

mod attention;
mod sampling;

pub use attention::{attention, rope};
pub use sampling::{adjusted_logits, distribution, log_softmax, may_be_drawn};

use crate::{Activation, Routing};

/// `out = x / sqrt(mean(x²) + eps) * weight`.
#[must_use]
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    let norm = (mean_square + eps).sqrt();
    x.iter().zip(weight).map(|(x, weight)| x / norm * weight).collect()
}

/// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.
#[must_use]
pub fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    let norm = (variance + eps).sqrt();
    let affine = |((x, weight), bias): ((&f64, &f64), &f64)| (x - mean) / norm * weight + bias;
    x.iter().zip(weight).zip(bias).map(affine).collect()
}

/// `x / 2 * (1 + erf(x / sqrt(2)))`, with erf as its power series (Abramowitz and Stegun,
/// 7.1.5), or 1 where that has long been reached.
#[must_use]
pub fn gelu(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let (mut term, mut series) = (z, z);
    for n in 1..200 {
        let n = f64::from(n);
        term *= -z * z / n;
        series += term / (2.0 * n + 1.0);
    }
    let erf = if z > 4.0 { 1.0 } else { series * 2.0 / std::f64::consts::PI.sqrt() };
    x / 2.0 * (1.0 + erf.copysign(x))
}

/// Attention of one head in both directions: `q`, `k`, `v [len, head_dim]` in rows.
#[must_use]
pub fn full_attention(q: &[f64], k: &[f64], v: &[f64], head_dim: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let of_query = |q: &[f64]| {
        let scores = k.chunks_exact(head_dim).map(|k| dot(q, k) / (head_dim as f64).sqrt());
        let weights: Vec<f64> = scores.map(f64::exp).collect();
        let total: f64 = weights.iter().sum();
        let sum = |d: usize| {
            let values = v.chunks_exact(head_dim).zip(&weights);
            values.map(|(v, weight)| v[d] * weight).sum::<f64>() / total
        };
        (0..head_dim).map(sum).collect::<Vec<_>>()
    };
    q.chunks_exact(head_dim).flat_map(of_query).collect()
}

/// `out[i] = cap * tanh(x[i] / cap)`.
#[must_use]
pub fn soft_cap(x: &[f64], cap: f64) -> Vec<f64> {
    x.iter().map(|x| cap * (x / cap).tanh()).collect()
}

/// `out[j] = Σ_i x[i] * w[j][i] + bias[j]`; `w [n, k]` in rows.
#[must_use]
pub fn linear(x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let dot = |row: &[f64]| x.iter().zip(row).map(|(x, w)| x * w).sum::<f64>();
    let rows = w.chunks_exact(x.len()).enumerate();
    rows.map(|(j, row)| dot(row) + bias.map_or(0.0, |bias| bias[j])).collect()
}

/// A row as int8 holds it before it is rounded: its Walsh–Hadamard transform
/// along as many leading bits of the index as leave at least 8 numbers each,
/// not normalized. With `x` in `blocks = 2^bits` parts of equal length,
///
/// ```text
/// out[a][i] = Σ_b (-1)^popcount(a & b) x[b][i]
/// ```
///
/// Also gives `blocks`: inner products of rotated rows are so many times those
/// of the rows.
#[must_use]
pub fn rotate(x: &[f64]) -> (Vec<f64>, usize) {
    let mut part = x.len();
    while part.is_multiple_of(2) && part / 2 >= 8 {
        part /= 2;
    }
    let blocks = x.len() / part.max(1);
    let sign = |a: usize, b: usize| if (a & b).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let out = |a: usize, i: usize| (0..blocks).map(|b| sign(a, b) * x[b * part + i]).sum();
    ((0..blocks).flat_map(|a| (0..part).map(move |i| out(a, i))).collect(), blocks)
}

/// `out[i] = act(gate[i]) * up[i]`.
#[must_use]
pub fn gated(activation: Activation, gate: &[f64], up: &[f64]) -> Vec<f64> {
    let act = |x: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
    };
    gate.iter().zip(up).map(|(&gate, up)| act(gate) * up).collect()
}

/// The experts that a row of scores goes to, and what each counts for: the largest of the
/// softmax, of equal ones the lowest experts', and with `normalise` their share of the chosen.
#[must_use]
pub fn route(scores: &[f64], routing: Routing) -> Vec<(usize, f64)> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    let mut chosen: Vec<(usize, f64)> =
        powers.into_iter().map(|power| power / sum).enumerate().collect();
    // A stable sort: equal ones stay in order.
    chosen.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    chosen.truncate(routing.top_k);
    if routing.normalise {
        let total: f64 = chosen.iter().map(|(_, weight)| weight).sum();
        chosen.iter_mut().for_each(|(_, weight)| *weight /= total);
    }
    chosen
}

/// `Σ weight * down[e] · gated(gate_up[e] · x)` over a row's experts and what each counts for;
/// `gate_up [num_experts, 2 * intermediate, k]`, `down [num_experts, k, intermediate]`.
#[must_use]
pub fn experts(
    x: &[f64],
    chosen: &[(usize, f64)],
    (gate_up, down): (&[f64], &[f64]),
    intermediate: usize,
    activation: Activation,
) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    for &(expert, weight) in chosen {
        let len = x.len() * intermediate;
        let sums = linear(x, &gate_up[expert * 2 * len..][..2 * len], None);
        let units = gated(activation, &sums[..intermediate], &sums[intermediate..]);
        let of_expert = linear(&units, &down[expert * len..][..len], None);
        out.iter_mut().zip(of_expert).for_each(|(out, x)| *out += weight * x);
    }
    out
}
