//! Elementwise loops, compiled once for each instruction set.
//!
//! Each loop is plain Rust that the compiler turns into vectors. Every sum runs
//! over [`WIDTH`] chains that are combined in a fixed order, so its bits depend
//! on the instruction set and on nothing else.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls into functions compiled for detected instructions")
)]

use super::Isa;

/// Chains of a sum.
pub(super) const WIDTH: usize = 16;

/// Defines a function that runs `$body` compiled for the given instruction set.
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        $vis fn $name(isa: Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                match isa {
                    Isa::Portable | Isa::Neon | Isa::NeonBf16 => {}
                    // SAFETY: the level was detected on this processor.
                    Isa::Avx2 | Isa::AvxVnni => return unsafe { avx2($($arg),*) },
                    Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => {
                        // SAFETY: the level was detected on this processor.
                        return unsafe { avx512($($arg),*) };
                    }
                }
            }
            // NEON with its multiply-add is part of the target.
            #[cfg(target_arch = "aarch64")]
            if isa != Isa::Portable {
                return $body::<true>($($arg),*);
            }
            let _ = isa;
            $body::<false>($($arg),*)
        }
    };
}

pub(super) use multiversion;

/// `a * b + c`, fused where the instruction set has it. The portable form must
/// not call the C library's slow `fma`.
#[inline(always)]
pub(super) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` to about 1e-7, branch-free. Below -87 it is 0; from 88.5 on it stays
/// what it is there, just below the largest f32.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that x - n ln 2 keeps its low bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.5);
    // Adding 1.5 * 2^23 rounds to the nearest integer, which then lies in the
    // sum's low bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = madd::<FMA>(clamped, LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<FMA>(n, -LN2_HIGH, clamped);
    let r = madd::<FMA>(n, -LN2_LOW, r);
    // The Taylor-like minimax polynomial of Cephes' expf on [-ln2/2, ln2/2].
    let mut p = 1.987_569_1e-4;
    p = madd::<FMA>(p, r, 1.398_199_9e-3);
    p = madd::<FMA>(p, r, 8.333_452e-3);
    p = madd::<FMA>(p, r, 4.166_579_6e-2);
    p = madd::<FMA>(p, r, 1.666_666_5e-1);
    p = madd::<FMA>(p, r, 0.5);
    p = madd::<FMA>(p * r, r, r) + 1.0;
    // 2^n in two factors: n may reach 128, which one f32 exponent cannot hold.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned());
    let value = p * power(half) * power(n.wrapping_sub(half));
    if x < -87.0 { 0.0 } else { value }
}

/// `tanh(x)` to about 1e-7 of itself, branch-free.
#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> f32 {
    let size = x.abs();
    // Near 0 one minus a quotient would have no bits left: the polynomial of Cephes' tanhf.
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    p = madd::<FMA>(p, square, 2.063_909e-2);
    p = madd::<FMA>(p, square, -5.373_971_6e-2);
    p = madd::<FMA>(p, square, 0.133_314_42);
    p = madd::<FMA>(p, square, -0.333_332_8);
    let near = madd::<FMA>(p * square, size, size);
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * size) + 1.0);
    (if size < 0.625 { near } else { far }).copysign(x)
}

#[inline(always)]
pub(super) fn reduce(chains: [f32; WIDTH], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut chains = chains;
    let mut width = WIDTH / 2;
    while width > 0 {
        for i in 0..width {
            chains[i] = combine(chains[i], chains[i + width]);
        }
        width /= 2;
    }
    chains[0]
}

multiversion! {
    /// `out = x / sqrt(mean(x²) + eps) * weight`, for one row.
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = inverse_rms::<FMA>(x, eps);
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

multiversion! {
    /// [`rms_norm`] on top of what `out` holds.
    pub(crate) fn rms_norm_add(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_add_body
}

#[inline(always)]
fn rms_norm_add_body<const FMA: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = inverse_rms::<FMA>(x, eps);
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out += x * scale * w;
    }
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn inverse_rms<const FMA: bool>(x: &[f32], eps: f32) -> f32 {
    let (chunks, tail) = x.as_chunks::<WIDTH>();
    let mut chains = [0.0; WIDTH];
    for chunk in chunks {
        for (chain, &x) in chains.iter_mut().zip(chunk) {
            *chain = madd::<FMA>(x, x, *chain);
        }
    }
    let mut sum = reduce(chains, |a, b| a + b);
    for &x in tail {
        sum = madd::<FMA>(x, x, sum);
    }
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

multiversion! {
    /// `out = silu(gate) * up`, for one row.
    pub(crate) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_mul_body
}

#[inline(always)]
fn silu_mul_body<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp::<FMA>(-gate)) * up;
    }
}

multiversion! {
    /// `out = gelu(gate) * up` with GELU in its tanh form, for one row.
    pub(crate) fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = gelu_mul_body
}

/// `(1 + tanh(u)) / 2` is `1 / (1 + exp(-2 u))`.
#[inline(always)]
fn gelu_mul_body<const FMA: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        let cubed = gate * gate * gate;
        let twice_u = TWICE_SQRT_2_OVER_PI * madd::<FMA>(cubed, 0.044_715, gate);
        *out = gate / (1.0 + exp::<FMA>(-twice_u)) * up;
    }
}

multiversion! {
    /// Rotates one head in place: `head [d]`, `cos`, `sin [d / 2]`.
    pub(crate) fn rotate_half(head: &mut [f32], cos: &[f32], sin: &[f32]) = rotate_half_body
}

#[inline(always)]
fn rotate_half_body<const FMA: bool>(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(head.len() / 2);
    for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (a, b) = (*low, *high);
        *low = madd::<FMA>(a, cos, -(b * sin));
        *high = madd::<FMA>(b, cos, a * sin);
    }
}

multiversion! {
    /// Rounds to bf16, to nearest, ties to even; NaN stays NaN.
    pub(crate) fn round_to_bf16(x: &[f32], out: &mut [u16]) = round_to_bf16_body
}

#[inline(always)]
fn round_to_bf16_body<const FMA: bool>(x: &[f32], out: &mut [u16]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = bf16_bits(x);
    }
}

multiversion! {
    /// Rounds to bf16 as [`round_to_bf16`] does, and writes the result as f32.
    pub(crate) fn round_through_bf16(x: &[f32], out: &mut [f32]) = round_through_bf16_body
}

#[inline(always)]
fn round_through_bf16_body<const FMA: bool>(x: &[f32], out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = f32::from_bits(u32::from(bf16_bits(x)) << 16);
    }
}

/// One number in bf16, to nearest, ties to even.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1))) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet_nan } else { rounded }) as u16
}

multiversion! {
    /// The largest element; -∞ for none. NaNs are ignored.
    pub(crate) fn max(x: &[f32]) -> f32 = max_body
}

#[inline(always)]
fn max_body<const FMA: bool>(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, tail) = x.as_chunks::<WIDTH>();
    let mut chains = [f32::NEG_INFINITY; WIDTH];
    for chunk in chunks {
        for (chain, &x) in chains.iter_mut().zip(chunk) {
            *chain = larger(*chain, x);
        }
    }
    tail.iter().fold(reduce(chains, larger), |a, &b| larger(a, b))
}

multiversion! {
    /// `x = scale * x`, and the largest of that; -∞ for none. NaNs are ignored.
    pub(crate) fn scale_and_max(x: &mut [f32], scale: f32) -> f32 = scale_and_max_body
}

#[inline(always)]
fn scale_and_max_body<const FMA: bool>(x: &mut [f32], scale: f32) -> f32 {
    x.iter_mut().for_each(|x| *x *= scale);
    max_body::<FMA>(x)
}

multiversion! {
    /// `x = cap * tanh(x / cap)`.
    pub(crate) fn soft_cap(x: &mut [f32], cap: f32) = soft_cap_body
}

#[inline(always)]
fn soft_cap_body<const FMA: bool>(x: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    x.iter_mut().for_each(|x| *x = cap * tanh::<FMA>(*x * inverse));
}

multiversion! {
    /// `x = cap * tanh(scale * x / cap)`, and the largest of that; -∞ for none. NaNs are
    /// ignored.
    pub(crate) fn scale_cap_and_max(x: &mut [f32], scale: f32, cap: f32) -> f32 = scale_cap_and_max_body
}

#[inline(always)]
fn scale_cap_and_max_body<const FMA: bool>(x: &mut [f32], scale: f32, cap: f32) -> f32 {
    let inverse = scale / cap;
    x.iter_mut().for_each(|x| *x = cap * tanh::<FMA>(*x * inverse));
    max_body::<FMA>(x)
}

multiversion! {
    /// Whether any element is NaN or +∞.
    pub(crate) fn has_nan_or_inf(x: &[f32]) -> bool = has_nan_or_inf_body
}

#[inline(always)]
fn has_nan_or_inf_body<const FMA: bool>(x: &[f32]) -> bool {
    let mut bad = 0_u32;
    for &x in x {
        bad |= u32::from(x.is_nan() | (x == f32::INFINITY));
    }
    bad != 0
}

multiversion! {
    /// Replaces scores by `exp(score - max)` and returns their sum.
    pub(crate) fn exp_and_sum(x: &mut [f32], max: f32) -> f32 = exp_and_sum_body
}

#[inline(always)]
fn exp_and_sum_body<const FMA: bool>(x: &mut [f32], max: f32) -> f32 {
    let mut chains = [0.0; WIDTH];
    let (chunks, tail) = x.as_chunks_mut::<WIDTH>();
    for chunk in chunks {
        for (chain, x) in chains.iter_mut().zip(chunk) {
            *x = exp::<FMA>(*x - max);
            *chain += *x;
        }
    }
    let mut sum = reduce(chains, |a, b| a + b);
    for x in tail {
        *x = exp::<FMA>(*x - max);
        sum += *x;
    }
    sum
}

multiversion! {
    /// The sum of `exp((x - max) * scale)`; `x` stays as it is.
    pub(crate) fn sum_exp(x: &[f32], max: f32, scale: f32) -> f64 = sum_exp_body
}

#[inline(always)]
fn sum_exp_body<const FMA: bool>(x: &[f32], max: f32, scale: f32) -> f64 {
    // Short f32 sums, added up in f64: a vocabulary's tail is long and small.
    let mut total = 0.0;
    for block in x.chunks(1024) {
        let mut chains = [0.0; WIDTH];
        let (chunks, tail) = block.as_chunks::<WIDTH>();
        for chunk in chunks {
            for (chain, &x) in chains.iter_mut().zip(chunk) {
                *chain += exp::<FMA>((x - max) * scale);
            }
        }
        let mut sum = reduce(chains, |a, b| a + b);
        for &x in tail {
            sum += exp::<FMA>((x - max) * scale);
        }
        total += f64::from(sum);
    }
    total
}

/// `exp(x)` as every loop here computes it, for single numbers.
pub(crate) fn exp_one(isa: Isa, x: f32) -> f32 {
    let mut one = [x];
    exp_and_sum(isa, &mut one, 0.0);
    one[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_a_few_ulp_everywhere() {
        for isa in Isa::available() {
            for i in -9_000..=8_850 {
                let x = i as f32 * 0.01;
                let (got, want) = (f64::from(exp_one(isa, x)), f64::from(x).exp());
                if x < -87.0 {
                    assert!(got == 0.0, "exp({x}) underflows to 0, got {got}");
                } else {
                    assert!((got - want).abs() <= want * 3e-7, "exp({x}) = {got}, not {want}");
                }
            }
            assert_eq!(exp_one(isa, f32::NEG_INFINITY), 0.0);
            assert_eq!(exp_one(isa, 0.0), 1.0);
        }
    }

    #[test]
    fn a_cap_is_its_formula_to_a_few_ulp_everywhere() {
        for isa in Isa::available() {
            let mut x: Vec<f32> = (-40_000..=40_000).map(|i| i as f32 * 1e-2).collect();
            x.extend((-120..=4).flat_map(|power| [1.0, -1.0].map(|x| x * 2_f32.powi(power))));
            x.extend([f32::INFINITY, f32::NEG_INFINITY, 0.0, f32::MAX]);
            for cap in [1.0, 30.0] {
                let (mut got, mut scaled) = (x.clone(), x.clone());
                soft_cap(isa, &mut got, cap);
                let max = scale_cap_and_max(isa, &mut scaled, 1.0, cap);
                assert_eq!((&got, max), (&scaled, cap));
                for (&x, &got) in x.iter().zip(&got) {
                    let want = f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= want.abs() * 4e-7, "of {x} {got}, not {want}");
                    assert!(got == 0.0 || got.is_sign_negative() == x.is_sign_negative());
                }
            }
            let mut nan = [f32::NAN; 3];
            soft_cap(isa, &mut nan, 30.0);
            assert!(nan.iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn rounding_to_bf16_is_to_nearest_even() {
        let mut x: Vec<f32> = (0..=u16::MAX)
            .flat_map(|high| {
                [0_u32, 0x7fff, 0x8000, 0x8001]
                    .map(|low| f32::from_bits(u32::from(high) << 16 | low))
            })
            .collect();
        x.push(f32::MAX);
        for isa in Isa::available() {
            let mut out = vec![0; x.len()];
            round_to_bf16(isa, &x, &mut out);
            for (&x, &bits) in x.iter().zip(&out) {
                let want = half::bf16::from_f32(x);
                let got = half::bf16::from_bits(bits);
                assert!(got == want || (got.is_nan() && want.is_nan()), "{x} -> {got}, not {want}");
            }
        }
    }
}
