//! Element types of activations, weights and the KV cache.

/// The dtype a model computes in: of weights that are not quantized, and of the KV
/// cache unless that has one of its own. Sums are always in f32. On a CPU,
/// activations are f32 and an operation's input is rounded (to nearest, ties to
/// even) where it meets weights of fewer bits; on CUDA, activations between
/// operations are of this dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// What K and V are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheDtype {
    /// As [`Dtype::F32`].
    F32,
    /// As [`Dtype::F16`].
    F16,
    /// As [`Dtype::Bf16`].
    Bf16,
    /// 8-bit floats with four bits of exponent (Micikevicius et al., 2022), saturated
    /// at ±448.
    Fp8E4m3,
}

impl CacheDtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8E4m3 => 1,
        }
    }
}

impl From<Dtype> for CacheDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// What a packed weight's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// As [`Dtype::F32`].
    F32,
    /// As [`Dtype::F16`].
    F16,
    /// As [`Dtype::Bf16`].
    Bf16,
    /// 8-bit integers with one scale for each output (row of `[n, k]`),
    /// quantized when the weight is packed. An operation's input is quantized
    /// where it meets them, with one scale a row. Both are symmetric: the scale
    /// is the row's largest magnitude over 127, and numbers are rounded to
    /// nearest, ties to even. Products are summed in i32, which is exact, and
    /// scaled in f32.
    ///
    /// Before either is quantized, both rows are rotated by the same Hadamard
    /// matrix ([`crate::reference::rotate`]), which leaves their product what it
    /// is and spreads the few channels that would set a row's scale alone
    /// (QuaRot, Ashkboos et al., 2024).
    Int8,
    /// 8-bit floats as [`CacheDtype::Fp8E4m3`], with one scale for each output, or, as some
    /// checkpoints have them, for each 128 inputs of one ([`crate::Fp8Weight`]). A product of
    /// few rows takes its input as it is; one of many may quantize it likewise, with one
    /// scale a row.
    Fp8E4m3,
}

impl WeightDtype {
    /// Bytes of one element, scales apart.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 | Self::Fp8E4m3 => 1,
        }
    }
}

impl From<Dtype> for WeightDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}
