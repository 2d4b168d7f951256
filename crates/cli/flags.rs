//! Values of flags, with the words that `vllm serve` has for them.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use sconce::{CacheDtype, DeviceChoice, Dtype, Isa, Quantization, SchedulingPolicy};

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum PolicyFlag {
    /// The tenant that was served least for its weight; within it by priority
    Fair,
    /// Whoever came first
    Fcfs,
    /// The lowest priority number, then whoever came first
    Priority,
}

impl PolicyFlag {
    pub(crate) fn policy(self) -> SchedulingPolicy {
        match self {
            Self::Fair => SchedulingPolicy::Fair,
            Self::Fcfs => SchedulingPolicy::Fcfs,
            Self::Priority => SchedulingPolicy::Priority,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum DeviceFlag {
    /// The first CUDA device if there is one, else the CPU
    Auto,
    Cpu,
    Cuda,
}

impl DeviceFlag {
    pub(crate) fn choice(self) -> DeviceChoice {
        match self {
            Self::Auto => DeviceChoice::Auto,
            Self::Cpu => DeviceChoice::Cpu,
            Self::Cuda => DeviceChoice::Cuda,
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum DtypeFlag {
    Auto,
    Bfloat16,
    /// On CUDA
    #[value(alias = "half")]
    Float16,
    /// On a CPU
    #[value(alias = "float")]
    Float32,
}

impl DtypeFlag {
    pub(crate) fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Auto => None,
            Self::Bfloat16 => Some(Dtype::Bf16),
            Self::Float16 => Some(Dtype::F16),
            Self::Float32 => Some(Dtype::F32),
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum CacheDtypeFlag {
    /// As --dtype
    Auto,
    Bfloat16,
    #[value(alias = "half")]
    Float16,
    #[value(alias = "float")]
    Float32,
    /// 8-bit floats, on CUDA
    #[value(name = "fp8_e4m3", alias = "fp8")]
    Fp8E4m3,
}

impl CacheDtypeFlag {
    pub(crate) fn dtype(self) -> Option<CacheDtype> {
        match self {
            Self::Auto => None,
            Self::Bfloat16 => Some(CacheDtype::Bf16),
            Self::Float16 => Some(CacheDtype::F16),
            Self::Float32 => Some(CacheDtype::F32),
            Self::Fp8E4m3 => Some(CacheDtype::Fp8E4m3),
        }
    }
}

/// Levels of this architecture's CPU instructions, each with those below it.
pub(crate) fn cpu_isa() -> impl TypedValueParser<Value = Isa> {
    PossibleValuesParser::new(Isa::LEVELS.iter().map(|level| level.flag())).map(|name| {
        let level = Isa::LEVELS.iter().find(|level| level.flag() == name);
        *level.expect("only these names are possible")
    })
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum QuantizationFlag {
    /// 8-bit integers: one scale for each output, inputs quantized token by token; on a CPU
    Int8,
    /// 8-bit floats (e4m3): one scale for each output, of layers' weights; on CUDA
    Fp8,
}

impl QuantizationFlag {
    pub(crate) fn quantization(self) -> Quantization {
        match self {
            Self::Int8 => Quantization::Int8,
            Self::Fp8 => Quantization::Fp8,
        }
    }
}

/// A dtype's name as the flags have it.
pub(crate) fn cache_dtype_name(dtype: Option<CacheDtype>) -> &'static str {
    match dtype {
        None => "none",
        Some(CacheDtype::F32) => "float32",
        Some(CacheDtype::F16) => "float16",
        Some(CacheDtype::Bf16) => "bfloat16",
        Some(CacheDtype::Fp8E4m3) => "fp8_e4m3",
    }
}

/// A share of something: above 0, at most 1.
pub(crate) fn parse_share(text: &str) -> Result<f64, String> {
    let bad = || format!("{text:?} is not a share; write a number above 0 and at most 1");
    let share: f64 = text.parse().map_err(|_| bad())?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err(bad()) }
}

/// A time above 0; `inf` is no limit.
pub(crate) fn parse_limit(text: &str) -> Result<f64, String> {
    let bad = || format!("{text:?} is not a limit; write a number above 0, or inf for none");
    let limit: f64 = text.parse().map_err(|_| bad())?;
    if limit > 0.0 { Ok(limit) } else { Err(bad()) }
}

/// Bytes, or a number with a suffix.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size; write bytes, or a number with K, M, G or T");
    let (digits, shift) = match text.trim_end_matches("iB").char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.trim().parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::{parse_bytes, parse_limit, parse_share};

    #[test]
    fn limits_are_above_zero_or_infinite() {
        assert_eq!(parse_limit("0.5"), Ok(0.5));
        assert_eq!(parse_limit("inf"), Ok(f64::INFINITY));
        for bad in ["0", "-1", "nan", "none", ""] {
            assert!(parse_limit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_suffixes_and_bounds() {
        assert_eq!(parse_bytes("123"), Ok(123));
        assert_eq!(parse_bytes("4G"), Ok(4 << 30));
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert!(parse_bytes("four").is_err());
        assert!(parse_bytes("99999999999999G").is_err());
        assert!(parse_bytes("").is_err());
    }

    #[test]
    fn shares_are_above_zero_and_at_most_one() {
        assert_eq!(parse_share("0.9"), Ok(0.9));
        assert_eq!(parse_share("1"), Ok(1.0));
        for bad in ["0", "-0.5", "1.01", "nan", "90%"] {
            assert!(parse_share(bad).is_err(), "{bad}");
        }
    }
}
