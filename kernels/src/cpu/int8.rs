//! Rows and weights in int8; [`crate::WeightDtype::Int8`] says what they mean.
//!
//! `vpdpbusd` multiplies unsigned bytes with signed ones. So an input's bytes
//! are held with 128 added, and a weight knows 128 times the sum of each of its
//! columns, which is taken off again. All sums wrap around, so they are exact
//! wherever `Σ x w` itself fits an i32.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "calls into functions compiled for detected instructions")
)]

use bytemuck::{Pod, Zeroable, allocation::try_zeroed_vec};

use super::{Isa, aligned::AlignedVec, tile::LANES, vector::multiversion};
use crate::KernelError;

/// The largest magnitude of a quantized number. -128 is not used, so that the
/// numbers are symmetric.
const LARGEST: f32 = 127.0;
/// What is added to an input's numbers to make them unsigned.
const OFFSET: i32 = 128;
/// Columns of a weight at most: so many products of two numbers of magnitude
/// 127 sum to less than 2^31.
pub(crate) const MAX_K: usize = i32::MAX as usize / (127 * 127);
/// Consecutive k of a column that lie together.
const GROUP: usize = 4;

multiversion! {
    /// Spreads what stands out over the row: its Walsh–Hadamard transform along
    /// the leading bits of the index, in place and not normalized. Applied twice
    /// it multiplies by [`rotation_norm`].
    pub(crate) fn rotate(x: &mut [f32]) = rotate_body
}

#[inline(always)]
fn rotate_body<const FMA: bool>(x: &mut [f32]) {
    for stage in 0..rotation_stages(x.len()) {
        let half = x.len() >> (stage + 1);
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
    }
}

/// How often a row is halved: as long as the halves are whole and at least
/// eight numbers, which fill a vector.
fn rotation_stages(len: usize) -> u32 {
    len.trailing_zeros().min((len / 8).checked_ilog2().unwrap_or(0))
}

/// What [`rotate`] multiplies inner products with; a power of two.
fn rotation_norm(len: usize) -> f32 {
    (1_u64 << rotation_stages(len)) as f32
}

multiversion! {
    /// Quantizes a row: `x[i]` is nearly `scale * (out[i] - 128)`. Returns the
    /// scale, which is NaN if any number is not finite.
    pub(crate) fn quantize_row(x: &[f32], out: &mut [u8]) -> f32 = quantize_row_body
}

#[inline(always)]
fn quantize_row_body<const FMA: bool>(x: &[f32], out: &mut [u8]) -> f32 {
    // Magnitudes are in the order of their bits, with ∞ and NaN above all
    // numbers. The largest of them is the same in any order of comparison.
    let magnitude = |x: f32| (x.to_bits() & 0x7fff_ffff).cast_signed();
    let largest = x.iter().fold(0, |largest, &x| largest.max(magnitude(x)));
    let scale = f32::from_bits(largest.cast_unsigned()) / LARGEST;
    // A smaller scale has no finite inverse; such a row is as good as zero.
    if !(scale.is_finite() && scale >= f32::MIN_POSITIVE) {
        out.fill(OFFSET as u8);
        return if scale.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = 1.0 / scale;
    // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, which then
    // is the sum's low bits. Not fused, so that every instruction set agrees.
    const ROUND: f32 = 12_582_912.0;
    for (out, &x) in out.iter_mut().zip(x) {
        *out = (x * inverse + ROUND).to_bits() as u8 ^ OFFSET as u8;
    }
    scale
}

multiversion! {
    /// Turns the sums of one row of a tile, in place, from i32 into f32: takes
    /// the columns' offsets off and multiplies with both scales.
    pub(crate) fn dequantize(sums: &mut [u32], columns: &[Columns], scale: f32) = dequantize_body
}

#[inline(always)]
fn dequantize_body<const FMA: bool>(sums: &mut [u32], columns: &[Columns], scale: f32) {
    for (sums, columns) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(columns) {
        let factors = columns.offsets.iter().zip(&columns.scales);
        for (sum, (&offset, &column_scale)) in sums.iter_mut().zip(factors) {
            let exact = sum.cast_signed().wrapping_sub(offset);
            *sum = (exact as f32 * scale * column_scale).to_bits();
        }
    }
}

/// What turns a panel's sums into numbers.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Columns {
    /// 128 times the sum of each column's numbers, modulo 2^32.
    offsets: [i32; LANES],
    scales: [f32; LANES],
}

/// A weight in panels `[k / 4][16][4]`.
pub(crate) struct Int8Panels {
    pub(super) data: AlignedVec<i8>,
    pub(super) columns: Vec<Columns>,
}

impl Int8Panels {
    pub(super) fn zeroed(n: usize, k: usize, what: &str) -> Result<Self, KernelError> {
        let num_panels = n.div_ceil(LANES);
        let out_of_memory = |()| KernelError::OutOfMemory {
            what: format!("the scales of {what}"),
            bytes: num_panels * size_of::<Columns>(),
        };
        Ok(Self {
            data: AlignedVec::zeroed_to_stream(
                num_panels * LANES * k.next_multiple_of(GROUP),
                what,
            )?,
            columns: try_zeroed_vec(num_panels).map_err(out_of_memory)?,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        self.data.len() + size_of_val(self.columns.as_slice())
    }

    /// The columns of some panels.
    pub(crate) fn columns(&self, first_panel: usize, panels: usize) -> &[Columns] {
        &self.columns[first_panel..first_panel + panels]
    }

    /// Reads row `row` of the weight back: `out [k]`.
    pub(super) fn read_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / LANES, row % LANES);
        let len = out.len().next_multiple_of(GROUP) * LANES;
        let scale = self.columns[panel].scales[lane];
        let steps = self.data[panel * len..][..len].chunks_exact(GROUP * LANES);
        for (out, step) in out.chunks_mut(GROUP).zip(steps) {
            for (out, &x) in out.iter_mut().zip(&step[lane * GROUP..]) {
                *out = f32::from(x) * scale;
            }
        }
        rotate(isa, out);
    }
}

/// Rotates a weight's row and quantizes it into lane `lane` of a panel. `bytes`
/// is scratch of the row's length.
pub(super) fn write_row(
    isa: Isa,
    row: &mut [f32],
    bytes: &mut [u8],
    lane: usize,
    panel: &mut [i8],
    columns: &mut Columns,
) {
    rotate(isa, row);
    columns.scales[lane] = quantize_row(isa, row, bytes) / rotation_norm(row.len());
    let mut sum = 0;
    for (step, group) in panel.chunks_exact_mut(GROUP * LANES).zip(bytes.chunks(GROUP)) {
        for (out, &byte) in step[lane * GROUP..].iter_mut().zip(group) {
            *out = (byte ^ OFFSET as u8).cast_signed();
            sum += i32::from(*out);
        }
    }
    columns.offsets[lane] = OFFSET.wrapping_mul(sum);
}
