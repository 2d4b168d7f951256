//! Which instructions the processor has, found out when the program starts.

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
