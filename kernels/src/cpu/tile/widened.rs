//! Tiles of bf16 panels on processors that have no instruction for them: both operands
//! are widened to f32, which is exact, and multiplied and added as such.
//!
//! Input rows come in f32, rounded to bf16 before. A tile widens its panels in registers,
//! once for all of its rows: an operation for each of a panel's vectors, beside as many
//! multiply-adds as there are rows, and half of the loads of an f32 panel. A sum is f32's
//! chain over k.

use super::{LANES, MAX_PANELS, MAX_ROWS, Tile, TileFn};

pub(super) static PORTABLE: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(portable);
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{AVX2, AVX512};

unsafe fn portable<const R: usize, const P: usize>(tile: &Tile) {
    let widen = |bits: u16| f32::from_bits(u32::from(bits) << 16);
    for r in 0..R {
        for p in 0..P {
            // SAFETY: the caller vouches for all rows, panels and the accumulator.
            let (a, panel, acc) = unsafe {
                (
                    std::slice::from_raw_parts(
                        tile.a.add(r * tile.a_stride).cast::<[f32; 2]>(),
                        tile.steps,
                    ),
                    std::slice::from_raw_parts(
                        tile.panels[p].cast::<[[u16; 2]; LANES]>(),
                        tile.steps,
                    ),
                    &mut *tile.acc.add(r * tile.acc_stride + p * LANES).cast::<[f32; LANES]>(),
                )
            };
            let mut sum = if tile.resume { *acc } else { [0.0; LANES] };
            for (&[a0, a1], w) in a.iter().zip(panel) {
                for (sum, &[w0, w1]) in sum.iter_mut().zip(w) {
                    *sum += a0 * widen(w0);
                    *sum += a1 * widen(w1);
                }
            }
            *acc = sum;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::{asm, x86_64::*};

    use super::super::{LANES, MAX_PANELS, MAX_ROWS, Prefetch, Tile, TileFn, prefetch};

    pub(in super::super) static AVX2: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(avx2);
    pub(in super::super) static AVX512: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(avx512);

    /// The first k of eight pairs. In assembly, as what follows, for the compiler would
    /// keep the pairs in registers that there are not.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn first256(pairs: *const f32) -> __m256 {
        let wide;
        // SAFETY: the caller vouches for the pairs.
        unsafe {
            asm!(
                "vmovdqu {wide}, ymmword ptr [{pairs}]",
                "vpslld {wide}, {wide}, 16",
                wide = out(ymm_reg) wide,
                pairs = in(reg) pairs,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        wide
    }

    /// The second k of eight pairs.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn second256(pairs: *const f32, high: __m256) -> __m256 {
        let wide;
        // SAFETY: the caller vouches for the pairs.
        unsafe {
            asm!(
                "vandps {wide}, {high}, ymmword ptr [{pairs}]",
                wide = out(ymm_reg) wide,
                high = in(ymm_reg) high,
                pairs = in(reg) pairs,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        wide
    }

    /// The first k of sixteen pairs.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn first512(pairs: *const f32) -> __m512 {
        let wide;
        // SAFETY: the caller vouches for the pairs.
        unsafe {
            asm!(
                "vpslld {wide}, zmmword ptr [{pairs}], 16",
                wide = out(zmm_reg) wide,
                pairs = in(reg) pairs,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        wide
    }

    /// The second k of sixteen pairs.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn second512(pairs: *const f32, high: __m512) -> __m512 {
        let wide;
        // SAFETY: the caller vouches for the pairs.
        unsafe {
            asm!(
                "vpandd {wide}, {high}, zmmword ptr [{pairs}]",
                wide = out(zmm_reg) wide,
                high = in(zmm_reg) high,
                pairs = in(reg) pairs,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        wide
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            let high = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            tile_loop!(
                @of 8, tile, __m256, 2, _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_storeu_ps,
                |a, w, acc| {
                    for p in 0..P {
                        let ws = [first256(w[p]), first256(w[p].add(8))];
                        for r in 0..R {
                            ymm_row!("vfmadd231ps", a[r], acc[r][p], ws);
                        }
                        let ws = [second256(w[p], high), second256(w[p].add(8), high)];
                        for r in 0..R {
                            ymm_row!("vfmadd231ps", a[r], " + 4", acc[r][p], ws);
                        }
                    }
                }
            );
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    unsafe fn avx512<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            let high = _mm512_castsi512_ps(_mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            tile_loop!(
                @of 8, tile, __m512, 1, _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
                |a, w, acc| {
                    let mut ws = [_mm512_setzero_ps(); P];
                    for p in 0..P {
                        ws[p] = first512(w[p]);
                    }
                    for r in 0..R {
                        zmm_row!("vfmadd231ps", a[r], acc[r], ws);
                    }
                    for p in 0..P {
                        ws[p] = second512(w[p], high);
                    }
                    for r in 0..R {
                        zmm_row!("vfmadd231ps", a[r], " + 4", acc[r], ws);
                    }
                }
            );
        }
    }
}
