//! The loops of an encoder's operations, compiled once for each instruction set.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls into functions compiled for detected instructions")
)]

use super::{
    Isa,
    vector::{WIDTH, exp, exp_and_sum, madd, multiversion, reduce, scale_and_max},
};

/// Queries whose scores are summed together, so that each key is read once for all of them.
const QUERIES: usize = 4;

multiversion! {
    /// `out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias`, for one row.
    pub(crate) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = layer_norm_body
}

#[inline(always)]
fn layer_norm_body<const FMA: bool>(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    let mean = sum(x, |x, sum| x + sum) / x.len() as f32;
    // About the mean: a sum of squares less the mean's would lose the bits of a small variance.
    let square = |x: f32, sum: f32| madd::<FMA>(x - mean, x - mean, sum);
    let scale = 1.0 / (sum(x, square) / x.len() as f32 + eps).sqrt();
    for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = madd::<FMA>((x - mean) * scale, w, b);
    }
}

#[inline(always)]
fn sum(x: &[f32], add: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<WIDTH>();
    let mut chains = [0.0; WIDTH];
    for chunk in chunks {
        for (chain, &x) in chains.iter_mut().zip(chunk) {
            *chain = add(x, *chain);
        }
    }
    tail.iter().fold(reduce(chains, |a, b| a + b), |sum, &x| add(x, sum))
}

multiversion! {
    /// `x = x / 2 * (1 + erf(x / sqrt(2)))`.
    pub(crate) fn gelu(x: &mut [f32]) = gelu_body
}

/// erf by Abramowitz and Stegun's 7.1.26, to 1.5e-7.
#[inline(always)]
fn gelu_body<const FMA: bool>(x: &mut [f32]) {
    for x in x {
        let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
        let t = 1.0 / madd::<FMA>(z, 0.327_591_1, 1.0);
        let mut p = 1.061_405_4;
        p = madd::<FMA>(p, t, -1.453_152_1);
        p = madd::<FMA>(p, t, 1.421_413_8);
        p = madd::<FMA>(p, t, -0.284_496_72);
        p = madd::<FMA>(p, t, 0.254_829_6);
        // 1 - erf(z); for a negative x that is 1 + erf(x), without cancellation.
        let rest = p * t * exp::<FMA>(-z * z);
        *x *= 0.5 * (if *x < 0.0 { rest } else { 2.0 - rest });
    }
}

/// Queries, keys and values of one head of a sequence.
pub(crate) struct Head<'a> {
    /// `[len, 3 * cols]`, of which Q is read.
    qkv: &'a [f32],
    stride: usize,
    at: usize,
    len: usize,
    head_dim: usize,
    /// `[head_dim, len]`
    keys: &'a [f32],
    /// `[len, head_dim]`
    values: &'a [f32],
    /// `[QUERIES, len]`
    scores: &'a mut [f32],
    /// `[QUERIES, head_dim]`
    out: &'a mut [f32],
}

impl<'a> Head<'a> {
    /// The head whose columns begin at `at` in each of Q, K and V; `qkv` is as long as the
    /// sequence at least, and a row of it three times its own columns.
    pub(crate) fn new(
        scratch: &'a mut Vec<f32>,
        qkv: &'a [f32],
        (len, at, head_dim): (usize, usize, usize),
    ) -> Self {
        let stride = qkv.len() / len.max(1);
        let sizes = [len * head_dim, len * head_dim, QUERIES * len, QUERIES * head_dim];
        let total: usize = sizes.iter().sum();
        if scratch.len() < total {
            scratch.resize(total, 0.0);
        }
        let (keys, rest) = scratch.split_at_mut(sizes[0]);
        let (values, rest) = rest.split_at_mut(sizes[1]);
        let (scores, rest) = rest.split_at_mut(sizes[2]);
        for (row, numbers) in qkv.chunks_exact(stride.max(1)).take(len).enumerate() {
            let cols = stride / 3;
            let key = &numbers[cols + at..][..head_dim];
            key.iter().enumerate().for_each(|(d, &x)| keys[d * len + row] = x);
            let value = &numbers[2 * cols + at..][..head_dim];
            values[row * head_dim..][..head_dim].copy_from_slice(value);
        }
        Self { qkv, stride, at, len, head_dim, keys, values, scores, out: &mut rest[..sizes[3]] }
    }

    /// Gives `write` each row and what comes of it.
    pub(crate) fn attend(self, isa: Isa, mut write: impl FnMut(usize, &[f32])) {
        let Self { qkv, stride, at, len, head_dim, keys, values, scores, out } = self;
        let scale = 1.0 / (head_dim as f32).sqrt();
        for first in (0..len).step_by(QUERIES) {
            // The last group has some of its queries more than once.
            let row = |i: usize| (first + i).min(len - 1);
            let query = |i: usize| &qkv[row(i) * stride + at..][..head_dim];
            score(isa, [query(0), query(1), query(2), query(3)], keys, scores);
            let mut sums = [0.0; QUERIES];
            for (scores, sum) in scores.chunks_exact_mut(len).zip(&mut sums) {
                let max = scale_and_max(isa, scores, scale);
                *sum = exp_and_sum(isa, scores, max);
            }
            weigh(isa, scores, values, out);
            for i in 0..QUERIES.min(len - first) {
                let out = &mut out[i * head_dim..][..head_dim];
                out.iter_mut().for_each(|x| *x /= sums[i]);
                write(first + i, out);
            }
        }
    }
}

multiversion! {
    /// `scores[i] = queries[i] · keys`, each one chain over the head's elements.
    fn score(queries: [&[f32]; QUERIES], keys: &[f32], scores: &mut [f32]) = score_body
}

#[inline(always)]
fn score_body<const FMA: bool>(queries: [&[f32]; QUERIES], keys: &[f32], scores: &mut [f32]) {
    let len = scores.len() / QUERIES;
    scores.fill(0.0);
    let (a, rest) = scores.split_at_mut(len);
    let (b, rest) = rest.split_at_mut(len);
    let (c, d) = rest.split_at_mut(len);
    for (i, keys) in keys.chunks_exact(len).enumerate() {
        let q = queries.map(|query| query[i]);
        for ((((a, b), c), d), &k) in a.iter_mut().zip(&mut *b).zip(&mut *c).zip(&mut *d).zip(keys)
        {
            *a = madd::<FMA>(q[0], k, *a);
            *b = madd::<FMA>(q[1], k, *b);
            *c = madd::<FMA>(q[2], k, *c);
            *d = madd::<FMA>(q[3], k, *d);
        }
    }
}

multiversion! {
    /// `out[i] = Σ_j weights[i][j] * values[j]`, each one chain over the sequence.
    fn weigh(weights: &[f32], values: &[f32], out: &mut [f32]) = weigh_body
}

#[inline(always)]
fn weigh_body<const FMA: bool>(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let (len, head_dim) = (weights.len() / QUERIES, out.len() / QUERIES);
    out.fill(0.0);
    let (a, rest) = out.split_at_mut(head_dim);
    let (b, rest) = rest.split_at_mut(head_dim);
    let (c, d) = rest.split_at_mut(head_dim);
    for (j, values) in values.chunks_exact(head_dim).enumerate() {
        let w = [0, 1, 2, 3].map(|i| weights[i * len + j]);
        for ((((a, b), c), d), &v) in
            a.iter_mut().zip(&mut *b).zip(&mut *c).zip(&mut *d).zip(values)
        {
            *a = madd::<FMA>(w[0], v, *a);
            *b = madd::<FMA>(w[1], v, *b);
            *c = madd::<FMA>(w[2], v, *c);
            *d = madd::<FMA>(w[3], v, *d);
        }
    }
}
