//! Weights in e4m3 (Micikevicius et al., 2022) with scales: what checkpoints hold, and what
//! weights become of other dtypes.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};

use crate::KernelError;

/// The largest number.
const LARGEST: f32 = 448.0;
/// Rows of no larger numbers are zeros: what scales them would have no inverse.
const SMALLEST: f32 = 1e-30;
/// Elements of a row that have one scale, where a row has several.
pub const RUN: usize = 128;

/// The nearest number, the even one of two, at most ±448; NaN stays what it is.
#[must_use]
pub fn narrow(x: f32) -> u8 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    // Below 2^-6 steps are of 2^-9, the last bit of numbers as large as 2^14.
    const STEPS: f32 = 16_384.0;
    let small = (f32::from_bits(magnitude) + STEPS).to_bits().wrapping_sub(STEPS.to_bits());
    // Three bits of mantissa; the exponents' biases are 127 and 7.
    let even = magnitude >> 20 & 1;
    let large = (magnitude + 0x7_ffff + even).wrapping_sub(120 << 23) >> 20;
    let rounded = if magnitude < 121 << 23 { small } else { large.min(0x7e) };
    let is_nan = magnitude > 0x7f80_0000;
    sign | if is_nan { 0x7f } else { rounded as u8 }
}

/// The number that these bits are.
#[must_use]
pub fn widen(bits: u8) -> f32 {
    let sign = u32::from(bits & 0x80) << 24;
    let magnitude = u32::from(bits & 0x7f);
    let size = if magnitude == 0x7f {
        f32::NAN
    } else {
        // As if the exponent were f32's, which is exact: 2^120 times smaller.
        f32::from_bits(magnitude << 20) * f32::from_bits((120 + 127) << 23)
    };
    f32::from_bits(size.to_bits() | sign)
}

/// Quantizes a row: `x[i]` is nearly `scale * widen(out[i])`. The scale is the largest magnitude
/// over 448; 1, and all is zero, where there is nothing; NaN where a number is not finite.
pub fn quantize_row(x: &[f32], out: &mut [u8]) -> f32 {
    // Magnitudes are in the order of their bits, with ∞ and NaN above all numbers.
    let largest = x.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        out.fill(0x7f);
        return f32::NAN;
    }
    let scale = if largest <= SMALLEST { 1.0 } else { largest / LARGEST };
    out.iter_mut().zip(x).for_each(|(out, x)| *out = narrow(x / scale));
    scale
}

/// A weight `[n, k]` in e4m3, with scales, which is what a number stands for over what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Fp8Weight {
    /// `[n, k]`
    pub bits: Vec<u8>,
    /// Rows, outputs.
    pub n: usize,
    /// Columns, inputs.
    pub k: usize,
    /// `[n, runs]`: one for each row, or one for each [`RUN`] of a row's elements.
    pub scales: Vec<f32>,
}

impl Fp8Weight {
    /// Of a tensor in e4m3 and the scales of its blocks `[⌈n / rows⌉, ⌈k / cols⌉]`.
    ///
    /// # Errors
    /// Tensors that are no matrices in these dtypes, blocks of other columns than all or
    /// [`RUN`].
    pub fn of_blocks(
        weight: &Tensor,
        scales: &[f32],
        (rows, cols): (usize, usize),
    ) -> Result<Self, KernelError> {
        let (n, k) = weight.dims2()?;
        let runs = k.div_ceil(cols.max(1));
        if rows == 0 || scales.len() != n.div_ceil(rows) * runs || (cols < k && cols != RUN) {
            return Err(KernelError::Shape {
                op: "a weight in e4m3",
                what: "its scales",
                got: format!("{} for blocks of {rows} x {cols} of {n} x {k}", scales.len()),
                expected: format!("one a block, which has all columns or {RUN}"),
            });
        }
        let bits = bits_of(weight)?;
        let scales = (0..n).flat_map(|row| &scales[row / rows * runs..][..runs]).copied().collect();
        Ok(Self { bits, n, k, scales })
    }

    /// Quantizes a weight, with a scale for each row.
    ///
    /// # Errors
    /// A tensor that is no matrix of f32, f16 or bf16.
    pub fn quantize(weight: &Tensor) -> Result<Self, KernelError> {
        let (n, k) = weight.dims2()?;
        let weight = weight.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let range = layout.start_offset()..layout.start_offset() + n * k;
        let (bits, scales) = match &*storage {
            Storage::Cpu(CpuStorage::BF16(x)) => quantize_rows(&x[range], k, |x| x.to_f32()),
            Storage::Cpu(CpuStorage::F16(x)) => quantize_rows(&x[range], k, |x| x.to_f32()),
            Storage::Cpu(CpuStorage::F32(x)) => quantize_rows(&x[range], k, |x| x),
            _ => return Err(KernelError::Dtype { op: "weights", got: weight.dtype() }),
        };
        Ok(Self { bits, n, k, scales })
    }

    /// Scales of a row.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.scales.len() / self.n.max(1)
    }

    /// The scales, of `runs` of each row where rows have one.
    pub(crate) fn clone_scales(&self, runs: usize) -> Vec<f32> {
        let times = if self.runs() == 1 { runs } else { 1 };
        self.scales.iter().flat_map(|&scale| std::iter::repeat_n(scale, times)).collect()
    }

    /// What it stands for, in one of f32, f16 and bf16.
    ///
    /// # Errors
    /// Another dtype.
    pub fn to_tensor(&self, dtype: DType) -> Result<Tensor, KernelError> {
        let runs = self.runs();
        let of_run = if runs == 1 { self.k } else { RUN };
        let number = |(i, bits): (usize, &u8)| {
            widen(*bits) * self.scales[i / self.k * runs + i % self.k / of_run]
        };
        let numbers = self.bits.iter().enumerate().map(number);
        let (shape, device) = ((self.n, self.k), &Device::Cpu);
        Ok(match dtype {
            DType::F32 => Tensor::from_vec(numbers.collect(), shape, device)?,
            DType::F16 => Tensor::from_vec(numbers.map(f16::from_f32).collect(), shape, device)?,
            DType::BF16 => Tensor::from_vec(numbers.map(bf16::from_f32).collect(), shape, device)?,
            got => return Err(KernelError::Dtype { op: "a weight in e4m3", got }),
        })
    }
}

/// The bits of a tensor in e4m3.
fn bits_of(tensor: &Tensor) -> Result<Vec<u8>, KernelError> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    match &*storage {
        Storage::Cpu(CpuStorage::F8E4M3(x)) => Ok(x[range].iter().map(|x| x.to_bits()).collect()),
        _ => Err(KernelError::Dtype { op: "a weight in e4m3", got: tensor.dtype() }),
    }
}

/// Quantizes rows of `k`, side by side on all cores where there are many.
fn quantize_rows<T: Copy + Sync>(
    x: &[T],
    k: usize,
    to_f32: impl Fn(T) -> f32 + Copy + Sync,
) -> (Vec<u8>, Vec<f32>) {
    /// Elements that are worth a thread.
    const OF_THREAD: usize = 1 << 18;
    let n = x.len() / k.max(1);
    let (mut bits, mut scales) = (vec![0; n * k], vec![0.0; n]);
    if n == 0 {
        return (bits, scales);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let rows = n.div_ceil(cores).max(OF_THREAD.div_ceil(k)).min(n);
    let some = |x: &[T], bits: &mut [u8], scales: &mut [f32]| {
        let mut row = vec![0.0; k];
        for ((x, bits), scale) in x.chunks(k).zip(bits.chunks_mut(k)).zip(scales) {
            row.iter_mut().zip(x).for_each(|(to, x)| *to = to_f32(*x));
            *scale = quantize_row(&row, bits);
        }
    };
    std::thread::scope(|scope| {
        let parts = bits.chunks_mut(rows * k).zip(scales.chunks_mut(rows));
        for (x, (bits, scales)) in x.chunks(rows * k).zip(parts) {
            scope.spawn(move || some(x, bits, scales));
        }
    });
    (bits, scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: four bits of exponent, bias 7, no infinities.
    fn defined(bits: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
        let magnitude = match (exponent, bits & 7) {
            (15, 7) => f64::NAN,
            (0, _) => mantissa * 2_f64.powi(-9),
            _ => (8.0 + mantissa) * 2_f64.powi(exponent - 10),
        };
        if bits & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn all_numbers_are_what_the_definition_says_and_stay_what_they_are() {
        for bits in 0..=u8::MAX {
            let x = widen(bits);
            if defined(bits).is_nan() {
                assert!(x.is_nan() && narrow(x) & 0x7f == 0x7f, "{bits:#x}");
            } else {
                assert_eq!((f64::from(x), narrow(x)), (defined(bits), bits), "{bits:#x}");
            }
        }
    }

    #[test]
    fn the_nearest_number_is_taken_the_even_one_of_two() {
        for bits in 0..0x7e_u8 {
            let (low, high) = (widen(bits), widen(bits + 1));
            let middle = (low + high) / 2.0;
            let even = bits + (bits & 1);
            let (below, above) = (middle - middle * 1e-6, middle + middle * 1e-6);
            assert_eq!([narrow(below), narrow(middle), narrow(above)], [bits, even, bits + 1]);
            assert_eq!(narrow(-middle), even | 0x80);
        }
        for large in [449.0, 464.0, 465.0, 1e30, f32::INFINITY] {
            assert_eq!([narrow(large), narrow(-large)], [0x7e, 0xfe], "{large}");
        }
        assert_eq!([narrow(1e-30), narrow(-0.0)], [0, 0x80]);
    }

    #[test]
    fn a_row_has_the_scale_of_its_largest_number() {
        let mut out = [0; 4];
        assert_eq!(quantize_row(&[0.5, -2.0, 0.0, 1.0], &mut out), 2.0 / 448.0);
        assert_eq!(out.map(widen), [112.0, -448.0, 0.0, 224.0]);
        assert_eq!((quantize_row(&[0.0; 4], &mut out), out), (1.0, [0; 4]));
        assert!(quantize_row(&[1.0, f32::NAN, 0.0, 0.0], &mut out).is_nan());
    }

    #[test]
    fn blocks_become_scales_of_runs_or_rows() {
        let x = Tensor::new(&[1.0_f32; 3 * 200], &Device::Cpu).unwrap();
        let x = x.reshape((3, 200)).unwrap().to_dtype(DType::F8E4M3).unwrap();
        let of_blocks = Fp8Weight::of_blocks(&x, &[2.0, 3.0, 5.0, 7.0], (2, 128)).unwrap();
        assert_eq!(
            (of_blocks.runs(), &of_blocks.scales[..]),
            (2, &[2.0, 3.0, 2.0, 3.0, 5.0, 7.0][..])
        );
        let numbers = of_blocks.to_tensor(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!([numbers[1][127], numbers[1][128], numbers[2][199]], [2.0, 3.0, 7.0]);
        let of_tensor = Fp8Weight::of_blocks(&x, &[2.0], (3, 200)).unwrap();
        assert_eq!(of_tensor.scales, [2.0; 3]);
        assert_eq!(of_tensor.clone_scales(2), [2.0; 6]);
        assert_eq!(of_blocks.clone_scales(2), of_blocks.scales);
        assert!(Fp8Weight::of_blocks(&x, &[2.0; 12], (1, 64)).is_err());
        assert!(Fp8Weight::of_blocks(&x, &[2.0; 2], (1, 200)).is_err());
    }

    #[test]
    fn rows_are_quantized_alike_on_all_cores() {
        let numbers: Vec<f32> =
            (0..700_i16 * 13).flat_map(|i| [f32::from(i % 91) - 45.0; 61]).collect();
        let x = Tensor::from_vec(numbers.clone(), (700 * 61, 13), &Device::Cpu).unwrap();
        let weight = Fp8Weight::quantize(&x).unwrap();
        let mut bits = [0; 13];
        for (row, x) in numbers.chunks(13).enumerate() {
            assert_eq!(weight.scales[row], quantize_row(x, &mut bits));
            assert_eq!(weight.bits[row * 13..][..13], bits);
        }
        assert!(Fp8Weight::quantize(&x.to_dtype(DType::U8).unwrap()).is_err());
    }
}
