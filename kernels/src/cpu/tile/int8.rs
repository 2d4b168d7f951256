//! Tiles of int8: unsigned bytes of the input by signed ones of the weight,
//! summed in i32 modulo 2^32.
//!
//! Without `vpdpbusd`, bytes are widened to 16 bits and multiplied in pairs
//! (`vpmaddwd`), even ones and odd ones apart. `vpmaddubsw` is of no use: it
//! saturates.

use super::{LANES, MAX_PANELS, MAX_ROWS, Tile, TileFn, TileKernels};
use crate::cpu::Isa;

pub(super) fn select(isa: Isa) -> TileKernels {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => TileKernels::new(&x86::AVX2, (3, 2), (3, 2)),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => TileKernels::new(&x86::AVX_VNNI, (3, 2), (6, 1)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => TileKernels::new(&x86::AVX512, (6, 4), (6, 4)),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Bf16 => TileKernels::new(&x86::AVX512_VNNI, (6, 4), (8, 3)),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => TileKernels::new(&super::neon::INT8, (2, 2), (4, 1)),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonBf16 => TileKernels::new(&super::neon::USDOT, (3, 2), (6, 1)),
        // No other processor detects these.
        _ => TileKernels::new(&PORTABLE, (2, 2), (2, 2)),
    }
}

static PORTABLE: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(portable);

unsafe fn portable<const R: usize, const P: usize>(tile: &Tile) {
    for r in 0..R {
        for p in 0..P {
            // SAFETY: the caller vouches for all rows, panels and the accumulator.
            let (a, panel, acc) = unsafe {
                (
                    std::slice::from_raw_parts(
                        tile.a.add(r * tile.a_stride).cast::<[u8; 4]>(),
                        tile.steps,
                    ),
                    std::slice::from_raw_parts(
                        tile.panels[p].cast::<[[i8; 4]; LANES]>(),
                        tile.steps,
                    ),
                    &mut *tile.acc.add(r * tile.acc_stride + p * LANES).cast::<[i32; LANES]>(),
                )
            };
            let mut sum = if tile.resume { *acc } else { [0; LANES] };
            for (a, w) in a.iter().zip(panel) {
                for (sum, w) in sum.iter_mut().zip(w) {
                    let products = a.iter().zip(w).map(|(&a, &w)| i32::from(a) * i32::from(w));
                    *sum = sum.wrapping_add(products.sum());
                }
            }
            *acc = sum;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::{LANES, MAX_PANELS, MAX_ROWS, Prefetch, Tile, TileFn, prefetch};

    pub(super) static AVX2: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(avx2);
    pub(super) static AVX_VNNI: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(avx_vnni);
    pub(super) static AVX512: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(avx512);
    pub(super) static AVX512_VNNI: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(avx512_vnni);

    /// Eight sums.
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn load256(sums: *const f32) -> __m256i {
        // SAFETY: passed on to the caller.
        unsafe { _mm256_loadu_si256(sums.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn store256(to: *mut f32, sums: __m256i) {
        // SAFETY: passed on to the caller.
        unsafe { _mm256_storeu_si256(to.cast(), sums) }
    }

    /// Sixteen sums.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load512(sums: *const f32) -> __m512i {
        // SAFETY: passed on to the caller.
        unsafe { _mm512_loadu_si512(sums.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store512(to: *mut f32, sums: __m512i) {
        // SAFETY: passed on to the caller.
        unsafe { _mm512_storeu_si512(to.cast(), sums) }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn avx2<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            let low = _mm256_set1_epi16(0xff);
            tile_loop!(tile, __m256i, 2, _mm256_setzero_si256(), load256, store256, |a, w, acc| {
                for p in 0..P {
                    let w = [load256(w[p]), load256(w[p].add(8))];
                    for r in 0..R {
                        let a = _mm256_castps_si256(_mm256_broadcast_ss(&*a[r]));
                        let a_even = _mm256_and_si256(a, low);
                        let a_odd = _mm256_srli_epi16::<8>(a);
                        for v in 0..2 {
                            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w[v]));
                            let odd = _mm256_srai_epi16::<8>(w[v]);
                            let sum = _mm256_madd_epi16(a_even, even);
                            let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a_odd, odd));
                            acc[r][p][v] = _mm256_add_epi32(acc[r][p][v], sum);
                        }
                    }
                }
            });
        }
    }

    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn avx_vnni<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            tile_loop!(tile, __m256i, 2, _mm256_setzero_si256(), load256, store256, |a, w, acc| {
                for p in 0..P {
                    let w = [load256(w[p]), load256(w[p].add(8))];
                    for r in 0..R {
                        ymm_row!("{{vex}} vpdpbusd", a[r], acc[r][p], w);
                    }
                }
            });
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn avx512<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            let low = _mm512_set1_epi16(0xff);
            tile_loop!(tile, __m512i, 1, _mm512_setzero_si512(), load512, store512, |a, w, acc| {
                for p in 0..P {
                    let w = load512(w[p]);
                    let even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(w));
                    let odd = _mm512_srai_epi16::<8>(w);
                    for r in 0..R {
                        let a = _mm512_set1_epi32(a[r].cast::<i32>().read());
                        let even = _mm512_madd_epi16(_mm512_and_si512(a, low), even);
                        let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(a), odd);
                        let sum = _mm512_add_epi32(even, odd);
                        acc[r][p][0] = _mm512_add_epi32(acc[r][p][0], sum);
                    }
                }
            });
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn avx512_vnni<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            tile_loop!(tile, __m512i, 1, _mm512_setzero_si512(), load512, store512, |a, w, acc| {
                let mut ws = [_mm512_setzero_si512(); P];
                for p in 0..P {
                    ws[p] = load512(w[p]);
                }
                for r in 0..R {
                    zmm_row!("vpdpbusd", a[r], acc[r], ws);
                }
            });
        }
    }
}
