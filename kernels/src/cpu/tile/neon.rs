//! The tiles of 64-bit Arm processors: four vectors a panel.

use std::arch::{aarch64::*, asm};

use super::{LANES, MAX_PANELS, MAX_ROWS, Prefetch, Tile, TileFn, prefetch};

pub(super) static F32: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(f32_tile);
pub(super) static BF16: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(bf16_tile);
pub(super) static BFDOT: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(bfdot_tile);
pub(super) static INT8: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(int8_tile);
pub(super) static USDOT: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(usdot_tile);

/// Four sums of integers.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_s32(sums: *const f32) -> int32x4_t {
    // SAFETY: passed on to the caller.
    unsafe { vld1q_s32(sums.cast()) }
}

#[inline]
#[target_feature(enable = "neon")]
unsafe fn store_s32(to: *mut f32, sums: int32x4_t) {
    // SAFETY: passed on to the caller.
    unsafe { vst1q_s32(to.cast(), sums) }
}

#[target_feature(enable = "neon")]
unsafe fn f32_tile<const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for all rows, panels and the accumulator.
    unsafe {
        tile_loop!(tile, float32x4_t, 4, vdupq_n_f32(0.0), vld1q_f32, vst1q_f32, |a, w, acc| {
            for p in 0..P {
                let w: [_; 4] = std::array::from_fn(|v| vld1q_f32(w[p].add(v * 4)));
                for r in 0..R {
                    let a = vdupq_n_f32(*a[r]);
                    for v in 0..4 {
                        acc[r][p][v] = vfmaq_f32(acc[r][p][v], w[v], a);
                    }
                }
            }
        });
    }
}

#[target_feature(enable = "neon")]
unsafe fn bf16_tile<const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for all rows, panels and the accumulator.
    unsafe {
        let high = vdupq_n_u32(0xffff_0000);
        let first = |pairs| vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs));
        let second = |pairs| vreinterpretq_f32_u32(vandq_u32(pairs, high));
        tile_loop!(tile, float32x4_t, 4, vdupq_n_f32(0.0), vld1q_f32, vst1q_f32, |a, w, acc| {
            for p in 0..P {
                let w: [_; 4] = std::array::from_fn(|v| vld1q_u32(w[p].add(v * 4).cast()));
                for r in 0..R {
                    let a = vdupq_n_u32(a[r].cast::<u32>().read());
                    let (a0, a1) = (first(a), second(a));
                    for v in 0..4 {
                        let sum = vfmaq_f32(acc[r][p][v], first(w[v]), a0);
                        acc[r][p][v] = vfmaq_f32(sum, second(w[v]), a1);
                    }
                }
            }
        });
    }
}

#[target_feature(enable = "neon,bf16")]
unsafe fn bfdot_tile<const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for all rows, panels and the accumulator.
    unsafe {
        tile_loop!(tile, float32x4_t, 4, vdupq_n_f32(0.0), vld1q_f32, vst1q_f32, |a, w, acc| {
            for p in 0..P {
                let w: [_; 4] = std::array::from_fn(|v| vld1q_u32(w[p].add(v * 4).cast()));
                for r in 0..R {
                    let a = vdupq_n_u32(a[r].cast::<u32>().read());
                    for v in 0..4 {
                        // Its intrinsic is not stable yet.
                        asm!(
                            "bfdot {sum:v}.4s, {w:v}.8h, {a:v}.8h",
                            sum = inout(vreg) acc[r][p][v],
                            w = in(vreg) w[v],
                            a = in(vreg) a,
                            options(pure, nomem, nostack, preserves_flags),
                        );
                    }
                }
            }
        });
    }
}

#[target_feature(enable = "neon")]
unsafe fn int8_tile<const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for all rows, panels and the accumulator.
    unsafe {
        tile_loop!(tile, int32x4_t, 4, vdupq_n_s32(0), load_s32, store_s32, |a, w, acc| {
            for p in 0..P {
                for v in 0..4 {
                    // Four columns of four numbers.
                    let w = vld1q_s8(w[p].add(v * 4).cast());
                    let (low, high) = (vmovl_s8(vget_low_s8(w)), vmovl_high_s8(w));
                    for r in 0..R {
                        let a = vreinterpret_u8_u32(vdup_n_u32(a[r].cast::<u32>().read()));
                        let a = vget_low_s16(vreinterpretq_s16_u16(vmovl_u8(a)));
                        let first = vpaddq_s32(
                            vmull_s16(vget_low_s16(low), a),
                            vmull_s16(vget_high_s16(low), a),
                        );
                        let second = vpaddq_s32(
                            vmull_s16(vget_low_s16(high), a),
                            vmull_s16(vget_high_s16(high), a),
                        );
                        acc[r][p][v] = vaddq_s32(acc[r][p][v], vpaddq_s32(first, second));
                    }
                }
            }
        });
    }
}

#[target_feature(enable = "neon,i8mm")]
unsafe fn usdot_tile<const R: usize, const P: usize>(tile: &Tile) {
    // SAFETY: the caller vouches for all rows, panels and the accumulator.
    unsafe {
        tile_loop!(tile, int32x4_t, 4, vdupq_n_s32(0), load_s32, store_s32, |a, w, acc| {
            for p in 0..P {
                let w: [_; 4] = std::array::from_fn(|v| vld1q_s8(w[p].add(v * 4).cast()));
                for r in 0..R {
                    let a = vdupq_n_u32(a[r].cast::<u32>().read());
                    for v in 0..4 {
                        // Its intrinsic is not stable yet.
                        asm!(
                            "usdot {sum:v}.4s, {a:v}.16b, {w:v}.16b",
                            sum = inout(vreg) acc[r][p][v],
                            a = in(vreg) a,
                            w = in(vreg) w[v],
                            options(pure, nomem, nostack, preserves_flags),
                        );
                    }
                }
            }
        });
    }
}
