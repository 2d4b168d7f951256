//! Which instructions the processor has, found out when the program starts.

use crate::WeightDtype;

/// A level of vector instructions, from narrow to wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What the compiler's target has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX2 and FMA with `vpdpbusd` on 256 bits.
    AvxVnni,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with `vpdpbusd`.
    Avx512Vnni,
    /// AVX-512 with `vpdpbusd` and `vdpbf16ps`.
    Avx512Bf16,
    /// NEON, which every 64-bit Arm processor has.
    Neon,
    /// NEON with `bfdot` and `usdot` (Armv8.6).
    NeonBf16,
}

impl Isa {
    /// The highest level that this processor has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::Portable)
    }

    /// Every level that this processor has, lowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") {
                levels.push(Self::Avx2);
                if has!("avxvnni") {
                    levels.push(Self::AvxVnni);
                }
                if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                    levels.push(Self::Avx512);
                    if has!("avx512vnni") {
                        levels.push(Self::Avx512Vnni);
                        // No processor has `vdpbf16ps` without `vpdpbusd`.
                        if has!("avx512bf16") {
                            levels.push(Self::Avx512Bf16);
                        }
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            levels.push(Self::Neon);
            if has!("bf16") && has!("i8mm") {
                levels.push(Self::NeonBf16);
            }
        }
        levels
    }

    /// The levels of this processor's architecture, lowest first.
    pub const LEVELS: &[Self] = if cfg!(target_arch = "x86_64") {
        &[
            Self::Portable,
            Self::Avx2,
            Self::AvxVnni,
            Self::Avx512,
            Self::Avx512Vnni,
            Self::Avx512Bf16,
        ]
    } else if cfg!(target_arch = "aarch64") {
        &[Self::Portable, Self::Neon, Self::NeonBf16]
    } else {
        &[Self::Portable]
    };

    /// The highest level that this processor has and that is no higher than this one.
    #[must_use]
    pub fn or_lower(self) -> Self {
        Self::available().into_iter().rfind(|&level| level <= self).unwrap_or(Self::Portable)
    }

    /// Whether there is an instruction that multiplies bf16.
    #[must_use]
    pub const fn has_bf16(self) -> bool {
        matches!(self, Self::Avx512Bf16 | Self::NeonBf16)
    }

    /// Whether there is an instruction that multiplies int8 by four.
    #[must_use]
    pub const fn has_int8(self) -> bool {
        matches!(self, Self::AvxVnni | Self::Avx512Vnni | Self::Avx512Bf16 | Self::NeonBf16)
    }

    /// The instructions that products with such weights take, for people.
    #[must_use]
    pub const fn products(self, weights: WeightDtype) -> &'static str {
        match (self, weights) {
            (Self::Portable, WeightDtype::Bf16) => "portable, bf16 widened to f32",
            (Self::Avx2 | Self::AvxVnni, WeightDtype::Bf16) => "AVX2, bf16 widened to f32",
            (Self::Avx512, WeightDtype::Bf16) => "AVX-512, bf16 widened to f32",
            (Self::Avx512Vnni, WeightDtype::Bf16) => "AVX-512 VNNI, bf16 widened to f32",
            (Self::Neon, WeightDtype::Bf16) => "NEON, bf16 widened to f32",
            (Self::Portable, WeightDtype::Int8) => "portable, int8 widened to 32 bits",
            (Self::Avx2, WeightDtype::Int8) => "AVX2, int8 widened to 16 bits",
            (Self::Avx512, WeightDtype::Int8) => "AVX-512, int8 widened to 16 bits",
            (Self::Neon, WeightDtype::Int8) => "NEON, int8 widened to 16 bits",
            _ => self.name(),
        }
    }

    /// The level's name as flags have it.
    #[must_use]
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Neon => "neon",
            Self::NeonBf16 => "neon-bf16",
        }
    }

    /// The level's name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::AvxVnni => "AVX-VNNI",
            Self::Avx512 => "AVX-512",
            Self::Avx512Vnni => "AVX-512 VNNI",
            Self::Avx512Bf16 => "AVX-512 BF16",
            Self::Neon => "NEON",
            Self::NeonBf16 => "NEON BF16",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_lowered_to_what_there_is_and_never_raised() {
        let available = Isa::available();
        for &level in Isa::LEVELS {
            let found = level.or_lower();
            assert!(found <= level && available.contains(&found), "{level:?} gives {found:?}");
            assert!(!available.contains(&level) || found == level);
        }
    }
}
