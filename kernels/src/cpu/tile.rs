//! The one inner loop of matrix products and attention.
//!
//! A *panel* is a weight's 16 output columns with k in sequence, so that one
//! vector holds the same k of 16 columns:
//!
//! ```text
//! f32   [k][16]                 one step of the loop takes one k
//! bf16  [k / 2][16][2]          one step takes two, as vdpbf16ps does
//! int8  [k / 4][16][4]          one step takes four, as vpdpbusd does
//! ```
//!
//! A *tile* multiplies up to [`MAX_ROWS`] input rows with up to [`MAX_PANELS`]
//! panels. Each of its sums is one chain over k, started at zero or at what the
//! accumulator holds, so no sum depends on how many rows or panels the tile has.
#![expect(unsafe_code, reason = "vector loads through pointers whose bounds the caller checks")]

use super::{Isa, packed::PanelDtype};

/// Columns of a panel.
pub(crate) const LANES: usize = 16;
/// Rows of a tile at most.
pub(crate) const MAX_ROWS: usize = 8;
/// Panels of a tile at most.
pub(crate) const MAX_PANELS: usize = 4;

/// A tile's operands.
pub(crate) struct Tile {
    /// The first input row, k in sequence: elements of the panel's dtype (in int8 with
    /// 128 added to each), or f32 where [`TileKernels::widens`].
    pub(crate) a: *const u8,
    /// Bytes from one input row to the next.
    pub(crate) a_stride: usize,
    /// The panels.
    pub(crate) panels: [*const u8; MAX_PANELS],
    /// Steps over k: single k in f32, two in bf16, four in int8.
    pub(crate) steps: usize,
    /// Where the sums go, `acc_stride` from one row to the next and 16 a panel;
    /// with int8 panels they are i32.
    pub(crate) acc: *mut f32,
    /// Floats from one row of sums to the next.
    pub(crate) acc_stride: usize,
    /// Start from `acc` instead of zero.
    pub(crate) resume: bool,
    /// What to bring near of the tile's own panels and of later ones.
    pub(crate) prefetch: Prefetch,
}

/// What a tile asks memory for beside what it reads. The processor's own
/// prefetchers do not keep memory busy by themselves once there is arithmetic
/// between the loads.
#[derive(Clone, Copy)]
pub(crate) enum Prefetch {
    /// Nothing: the panels are near already.
    None,
    /// A line of each of two panels with each step; any address, for it is not
    /// read, and one that is near already costs nothing.
    Two([*const u8; 2]),
    /// A line of a panel for each of the tile's own, and of two more.
    Each([*const u8; MAX_PANELS], [*const u8; 2]),
}

/// Asks for a cache line, from any address.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch faults at no address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a prefetch faults at no address.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) address,
            options(nostack, preserves_flags, readonly),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// Columns of a tile at most.
pub(crate) const MAX_COLUMNS: usize = MAX_PANELS * LANES;

/// Computes a tile of a fixed number of rows and panels.
///
/// # Safety
/// The processor has the kernel's instructions; `a` has `steps` steps in each
/// of the tile's rows; each of the tile's panels has `steps` steps; `acc` has
/// the rows and panels of the tile.
pub(crate) type TileFn = unsafe fn(&Tile);

/// The tiles of one instruction set and dtype.
#[derive(Clone, Copy)]
pub(crate) struct TileKernels {
    fns: &'static [[TileFn; MAX_PANELS]; MAX_ROWS],
    /// Rows and panels that the registers hold, where rows are few.
    pub(crate) few: (usize, usize),
    /// The same where they are more.
    many: (usize, usize),
    /// Whether bf16 panels meet input rows in f32, rounded to bf16 before.
    pub(crate) widens: bool,
}

impl TileKernels {
    pub(crate) fn select(isa: Isa, dtype: PanelDtype) -> Self {
        use PanelDtype::{Bf16, F32, Int8};
        match (isa, dtype) {
            (_, Int8) => int8::select(isa),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2 | Isa::AvxVnni, F32) => Self::new(&x86::AVX2_F32, (3, 2), (6, 1)),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2 | Isa::AvxVnni, Bf16) => {
                Self::new(&widened::AVX2, (3, 2), (6, 1)).widening()
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, F32) => {
                Self::new(&x86::AVX512_F32, (6, 4), (8, 3))
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512 | Isa::Avx512Vnni, Bf16) => {
                Self::new(&widened::AVX512, (6, 4), (8, 3)).widening()
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Bf16) => Self::new(&x86::DPBF16, (6, 4), (8, 3)),
            #[cfg(target_arch = "aarch64")]
            (Isa::Neon | Isa::NeonBf16, F32) => Self::new(&neon::F32, (3, 2), (6, 1)),
            #[cfg(target_arch = "aarch64")]
            (Isa::Neon, Bf16) => Self::new(&neon::BF16, (2, 2), (4, 1)),
            #[cfg(target_arch = "aarch64")]
            (Isa::NeonBf16, Bf16) => Self::new(&neon::BFDOT, (3, 2), (6, 1)),
            // No other processor detects these.
            (_, F32) => Self::new(&portable::F32, (2, 2), (2, 2)),
            (_, Bf16) => Self::new(&widened::PORTABLE, (2, 2), (2, 2)).widening(),
        }
    }

    const fn new(
        fns: &'static [[TileFn; MAX_PANELS]; MAX_ROWS],
        few: (usize, usize),
        many: (usize, usize),
    ) -> Self {
        Self { fns, few, many, widens: false }
    }

    const fn widening(self) -> Self {
        Self { widens: true, ..self }
    }

    /// Bytes of an input row that a step takes.
    pub(crate) const fn row_step(&self) -> usize {
        if self.widens { 8 } else { 4 }
    }

    /// Rows and panels of the tiles that suit so many input rows best.
    pub(crate) fn shape(&self, rows: usize) -> (usize, usize) {
        let (most, panels) = if rows <= self.few.0 { self.few } else { self.many };
        // Tiles of like height: one of few rows takes nearly as long as a full one.
        (rows.div_ceil(rows.div_ceil(most).max(1)), panels)
    }

    /// Computes a tile of `rows` and `panels`.
    ///
    /// # Safety
    /// As for [`TileFn`]; the kernels were selected for this processor.
    pub(crate) unsafe fn run(&self, rows: usize, panels: usize, tile: &Tile) {
        // SAFETY: passed on to the caller.
        unsafe { self.fns[rows - 1][panels - 1](tile) }
    }
}

/// All sizes of one kernel, as a table.
macro_rules! table {
    ($kernel:ident) => {
        [
            [$kernel::<1, 1>, $kernel::<1, 2>, $kernel::<1, 3>, $kernel::<1, 4>],
            [$kernel::<2, 1>, $kernel::<2, 2>, $kernel::<2, 3>, $kernel::<2, 4>],
            [$kernel::<3, 1>, $kernel::<3, 2>, $kernel::<3, 3>, $kernel::<3, 4>],
            [$kernel::<4, 1>, $kernel::<4, 2>, $kernel::<4, 3>, $kernel::<4, 4>],
            [$kernel::<5, 1>, $kernel::<5, 2>, $kernel::<5, 3>, $kernel::<5, 4>],
            [$kernel::<6, 1>, $kernel::<6, 2>, $kernel::<6, 3>, $kernel::<6, 4>],
            [$kernel::<7, 1>, $kernel::<7, 2>, $kernel::<7, 3>, $kernel::<7, 4>],
            [$kernel::<8, 1>, $kernel::<8, 2>, $kernel::<8, 3>, $kernel::<8, 4>],
        ]
    };
}

/// The loop around one step: accumulators in registers, one chain each.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! tile_loop {
    (@step $bytes:literal, $tile:ident, $index:ident,
     |$a:ident, $w:ident, $acc:ident| $step:block) => {{
        let mut $a: [*const f32; R] = [std::ptr::null(); R];
        let mut $w: [*const f32; P] = [std::ptr::null(); P];
        for r in 0..R {
            $a[r] = $tile.a.add(r * $tile.a_stride + $index * $bytes).cast();
        }
        for p in 0..P {
            $w[p] = $tile.panels[p].add($index * 64).cast();
        }
        $step
    }};
    (@of $bytes:literal, $tile:ident, $vector:ty, $vectors:literal, $zero:expr,
     $load:ident, $store:ident, |$a:ident, $w:ident, $acc:ident| $step:block) => {{
        const V: usize = $vectors;
        const WIDTH: usize = LANES / V;
        let mut $acc: [[[$vector; V]; P]; R] = [[[$zero; V]; P]; R];
        if $tile.resume {
            for r in 0..R {
                for p in 0..P {
                    for v in 0..V {
                        $acc[r][p][v] =
                            $load($tile.acc.add(r * $tile.acc_stride + p * LANES + v * WIDTH));
                    }
                }
            }
        }
        match $tile.prefetch {
            Prefetch::None => {
                for step in 0..$tile.steps {
                    tile_loop!(@step $bytes, $tile, step, |$a, $w, $acc| $step);
                }
            }
            Prefetch::Two(next) => {
                for step in 0..$tile.steps {
                    prefetch(next[0].wrapping_add(step * 64));
                    prefetch(next[1].wrapping_add(step * 64));
                    tile_loop!(@step $bytes, $tile, step, |$a, $w, $acc| $step);
                }
            }
            Prefetch::Each(panels, next) => {
                for step in 0..$tile.steps {
                    for p in 0..P {
                        prefetch(panels[p].wrapping_add(step * 64));
                    }
                    prefetch(next[0].wrapping_add(step * 64));
                    prefetch(next[1].wrapping_add(step * 64));
                    tile_loop!(@step $bytes, $tile, step, |$a, $w, $acc| $step);
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                for v in 0..V {
                    $store($tile.acc.add(r * $tile.acc_stride + p * LANES + v * WIDTH), $acc[r][p][v]);
                }
            }
        }
    }};
    // Four bytes a row (one f32, two bf16 or four int8), 64 a panel.
    ($tile:ident, $($rest:tt)*) => { tile_loop!(@of 4, $tile, $($rest)*) };
}

/// A row's part of a step: its broadcast, and a multiply-add for each vector of
/// weights. In one piece, for the compiler, left to itself, loads every row's
/// broadcast first, is then short of registers and keeps sums in memory, which
/// takes a third of the speed.
#[cfg(target_arch = "x86_64")]
macro_rules! row_step {
    ($class:ident $vector:ty, $broadcast:literal, $madd:literal, $from:expr, $at:literal,
     $($c:ident $n:ident: $acc:expr, $w:expr);+) => {{
        let _broadcast: $vector;
        std::arch::asm!(
            concat!($broadcast, " {a}, dword ptr [{from}", $at, "]"),
            $(concat!($madd, " {", stringify!($c), "}, {a}, {", stringify!($n), "}"),)+
            a = out($class) _broadcast,
            from = in(reg) $from,
            $($c = inout($class) $acc,)+
            $($n = in($class) $w,)+
            options(pure, readonly, nostack, preserves_flags),
        );
    }};
}

/// A row's part of a step over `P` panels of one vector each; `$at` is where the row's
/// number lies beyond `$from`.
#[cfg(target_arch = "x86_64")]
macro_rules! zmm_row {
    ($madd:literal, $from:expr, $acc:expr, $w:expr) => {
        zmm_row!($madd, $from, "", $acc, $w)
    };
    ($madd:literal, $from:expr, $at:literal, $acc:expr, $w:expr) => {
        match P {
            1 => zmm_row!(@$madd, $from, $at, c0 w0: $acc[0][0], $w[0]),
            2 => zmm_row!(@$madd, $from, $at, c0 w0: $acc[0][0], $w[0]; c1 w1: $acc[1][0], $w[1]),
            3 => zmm_row!(@$madd, $from, $at, c0 w0: $acc[0][0], $w[0];
                c1 w1: $acc[1][0], $w[1]; c2 w2: $acc[2][0], $w[2]),
            _ => zmm_row!(@$madd, $from, $at, c0 w0: $acc[0][0], $w[0];
                c1 w1: $acc[1][0], $w[1]; c2 w2: $acc[2][0], $w[2]; c3 w3: $acc[3][0], $w[3]),
        }
    };
    (@$madd:literal, $from:expr, $at:literal, $($sums:tt)*) => {
        row_step!(zmm_reg __m512, "vpbroadcastd", $madd, $from, $at, $($sums)*)
    };
}

/// A row's part of a step over a panel of two vectors.
#[cfg(target_arch = "x86_64")]
macro_rules! ymm_row {
    ($madd:literal, $from:expr, $acc:expr, $w:expr) => {
        ymm_row!($madd, $from, "", $acc, $w)
    };
    ($madd:literal, $from:expr, $at:literal, $acc:expr, $w:expr) => {
        row_step!(ymm_reg __m256, "vbroadcastss", $madd, $from, $at,
            c0 w0: $acc[0], $w[0]; c1 w1: $acc[1], $w[1])
    };
}

mod int8;
#[cfg(target_arch = "aarch64")]
mod neon;
mod widened;

mod portable {
    use super::{LANES, MAX_PANELS, MAX_ROWS, Tile, TileFn};

    pub(super) static F32: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(f32_tile);

    unsafe fn f32_tile<const R: usize, const P: usize>(tile: &Tile) {
        for r in 0..R {
            for p in 0..P {
                // SAFETY: the caller vouches for all rows, panels and the accumulator.
                let (a, panel, acc) = unsafe {
                    (
                        std::slice::from_raw_parts(
                            tile.a.add(r * tile.a_stride).cast::<f32>(),
                            tile.steps,
                        ),
                        std::slice::from_raw_parts(
                            tile.panels[p].cast::<[f32; LANES]>(),
                            tile.steps,
                        ),
                        &mut *tile.acc.add(r * tile.acc_stride + p * LANES).cast::<[f32; LANES]>(),
                    )
                };
                let mut sum = if tile.resume { *acc } else { [0.0; LANES] };
                for (&a, w) in a.iter().zip(panel) {
                    for (sum, &w) in sum.iter_mut().zip(w) {
                        *sum += a * w;
                    }
                }
                *acc = sum;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, MAX_PANELS, MAX_ROWS, Prefetch, Tile, TileFn, prefetch};

    pub(super) static AVX2_F32: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(avx2_f32);
    pub(super) static AVX512_F32: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(avx512_f32);
    pub(super) static DPBF16: [[TileFn; MAX_PANELS]; MAX_ROWS] = table!(dpbf16);

    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_f32<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            tile_loop!(
                tile,
                __m256,
                2,
                _mm256_setzero_ps(),
                _mm256_loadu_ps,
                _mm256_storeu_ps,
                |a, w, acc| {
                    for p in 0..P {
                        let w = [_mm256_loadu_ps(w[p]), _mm256_loadu_ps(w[p].add(8))];
                        for r in 0..R {
                            ymm_row!("vfmadd231ps", a[r], acc[r][p], w);
                        }
                    }
                }
            );
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    unsafe fn avx512_f32<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            tile_loop!(
                tile,
                __m512,
                1,
                _mm512_setzero_ps(),
                _mm512_loadu_ps,
                _mm512_storeu_ps,
                |a, w, acc| {
                    let mut ws = [_mm512_setzero_ps(); P];
                    for p in 0..P {
                        ws[p] = _mm512_loadu_ps(w[p]);
                    }
                    for r in 0..R {
                        zmm_row!("vfmadd231ps", a[r], acc[r], ws);
                    }
                }
            );
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn dpbf16<const R: usize, const P: usize>(tile: &Tile) {
        // SAFETY: the caller vouches for all rows, panels and the accumulator.
        unsafe {
            tile_loop!(
                tile,
                __m512,
                1,
                _mm512_setzero_ps(),
                _mm512_loadu_ps,
                _mm512_storeu_ps,
                |a, w, acc| {
                    let mut ws = [_mm512_setzero_si512(); P];
                    for p in 0..P {
                        ws[p] = _mm512_loadu_si512(w[p].cast());
                    }
                    for r in 0..R {
                        zmm_row!("vdpbf16ps", a[r], acc[r], ws);
                    }
                }
            );
        }
    }
}
