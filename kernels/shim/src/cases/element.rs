//! The kernels' element types, and inputs of them.

use std::sync::LazyLock;

use half::{bf16, f16};
use sconce_kernels::ops::sampling::uniform;

/// A dtype of activations, or of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// bfloat16
    Bf16,
    /// IEEE half precision
    F16,
    /// FP8 with four bits of exponent
    E4m3,
}

impl Element {
    /// Those that activations have.
    pub const ACTIVATIONS: [Self; 2] = [Self::Bf16, Self::F16];

    /// As kernels' names have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::E4m3 => "e4m3",
        }
    }

    /// Bytes of one.
    #[must_use]
    pub fn size(self) -> usize {
        if self == Self::E4m3 { 1 } else { 2 }
    }

    /// Half a unit in the last place of 1, which bounds the relative error of rounding.
    pub fn epsilon(self) -> f64 {
        match self {
            Self::Bf16 => 2_f64.powi(-8),
            Self::F16 => 2_f64.powi(-11),
            Self::E4m3 => 2_f64.powi(-4),
        }
    }

    /// Numbers as they are stored.
    #[must_use]
    pub fn encode(self, x: &[f32]) -> Vec<u8> {
        x.iter()
            .flat_map(|&x| match self {
                Self::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                Self::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                Self::E4m3 => vec![to_e4m3(x)],
            })
            .collect()
    }

    /// What is stored as numbers.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Vec<f64> {
        let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self {
            Self::Bf16 => pairs().map(|bits| bf16::from_bits(bits).to_f64()).collect(),
            Self::F16 => pairs().map(|bits| f16::from_bits(bits).to_f64()).collect(),
            Self::E4m3 => bytes.iter().map(|&bits| from_e4m3(bits)).collect(),
        }
    }

    /// What is left of numbers once they are stored.
    pub fn rounded(self, x: &[f32]) -> Vec<f64> {
        self.decode(&self.encode(x))
    }

    /// A NaN, as often as asked.
    pub fn poison(self, len: usize) -> Vec<u8> {
        match self {
            Self::Bf16 | Self::F16 => [0xff, 0x7f].repeat(len),
            Self::E4m3 => vec![0x7f; len],
        }
    }
}

/// Micikevicius et al., 2022: four bits of exponent, bias 7, no infinities.
fn from_e4m3(bits: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2_f64.powi(-9),
        _ => (8.0 + mantissa) * 2_f64.powi(exponent - 10),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The nearest of all values, the even one of two.
fn to_e4m3(x: f32) -> u8 {
    // Positive values, in their order.
    static VALUES: LazyLock<[f64; 0x7f]> =
        LazyLock::new(|| std::array::from_fn(|bits| from_e4m3(bits as u8)));
    let magnitude = f64::from(x.abs());
    let above = VALUES.partition_point(|&value| value < magnitude);
    let (low, high) = (above.saturating_sub(1), above.min(VALUES.len() - 1));
    let distance = |bits: usize| (VALUES[bits] - magnitude).abs();
    let order = distance(low).total_cmp(&distance(high)).then((low & 1).cmp(&(high & 1)));
    let nearest = if order.is_le() { low } else { high };
    nearest as u8 | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// Numbers in [-1, 1), the same for the same seed.
pub(super) fn numbers(seed: u64, len: usize) -> Vec<f32> {
    (0..u32::try_from(len).expect("a test is small"))
        .map(|i| (uniform(seed, i) * 2.0 - 1.0) as f32)
        .collect()
}

/// Asserts `|got - want| <= tolerance` everywhere, and that nothing is NaN.
pub(super) fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: impl Fn(f64) -> f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let near = (got - want).abs() <= tolerance(want);
        assert!(near, "{what}: [{i}] is {got}, not {want}");
    }
}
