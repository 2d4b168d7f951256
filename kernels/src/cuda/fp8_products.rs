//! Products with weights in e4m3 for more than a few rows: widened for cuBLAS, which always
//! works, or with quantized rows on tensor cores that multiply e4m3.

use std::sync::PoisonError;

use super::{
    Choice, Cuda, DevicePointer, Driver, Fp8Matmul, Fp8Scaling, Launch, QuantizeRows, ScaleSums,
    WidenWeight,
    memory::{Fp8Scales, WeightKind},
    names::of_dtype,
    products::{FP8_ROWS, Operands},
    word,
};
use crate::{Dtype, KernelError};

/// Bytes of a part of a widened weight, or of a part of the sums that are scaled after they are
/// made: the rest takes turns.
const WIDE_BYTES: usize = 64 << 20;

/// What products work in, allocated when weights are.
pub(super) struct Fp8Room<M> {
    /// A part of a widened weight, or of unscaled sums.
    wide: Option<Memory<M>>,
    /// Rows in e4m3.
    rows: Option<Memory<M>>,
    /// Their scales.
    scales: Option<Memory<M>>,
}

struct Memory<M> {
    address: DevicePointer,
    bytes: usize,
    _memory: M,
}

impl<M> Default for Fp8Room<M> {
    fn default() -> Self {
        Self { wide: None, rows: None, scales: None }
    }
}

/// Has as many bytes at least. What had fewer is freed: nothing that was asked for uses it
/// later than what is asked for now.
fn ensure<D: Driver>(
    driver: &D,
    memory: &mut Option<Memory<D::Memory>>,
    bytes: usize,
) -> Result<(), KernelError> {
    if memory.as_ref().is_none_or(|known| known.bytes < bytes) {
        *memory = None;
        let new = driver.allocate(bytes, "products with weights in fp8")?;
        *memory = Some(Memory { address: driver.address(&new), bytes, _memory: new });
    }
    Ok(())
}

/// Where a part of the room is, and its bytes; none where there is no such part.
fn place<M>(part: Option<&Memory<M>>) -> Place {
    let nowhere = Place { address: DevicePointer::NULL, bytes: 0 };
    part.map_or(nowhere, |part| Place { address: part.address, bytes: part.bytes })
}

impl<D: Driver> Cuda<D> {
    /// Makes room for products with a weight of so many outputs and inputs.
    pub(super) fn make_fp8_room(&self, n: usize, k: usize) -> Result<(), KernelError> {
        let rows = self.max_rows;
        let quantizes = !self.driver.fp8_products().is_empty() && !self.is_deterministic;
        let sums = if quantizes { rows * n * size_of::<f32>() } else { 0 };
        let wide = (n * k * self.dtype.size()).max(sums).min(WIDE_BYTES);
        let mut room = self.fp8_room.lock().unwrap_or_else(PoisonError::into_inner);
        ensure(&self.driver, &mut room.wide, wide)?;
        if quantizes {
            ensure(&self.driver, &mut room.rows, rows * k)?;
            ensure(&self.driver, &mut room.scales, rows * size_of::<f32>())?;
        }
        Ok(())
    }

    fn fp8_room(&mut self) -> &Fp8Room<D::Memory> {
        self.fp8_room.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// By cuBLAS, of the weight's rows widened part by part.
    pub(super) fn by_widened(
        &mut self,
        accumulate: bool,
        operands: &Operands,
        scales: Fp8Scales,
    ) -> Result<(), KernelError> {
        let &Operands { w, out, out_dtype, n, k, .. } = operands;
        let wide = place(self.fp8_room().wide.as_ref());
        let at_a_time = (wide.bytes / (k * self.dtype.size())).min(n);
        if at_a_time == 0 {
            return Err(KernelError::OutOfMemory {
                what: format!("a row of a weight [{n}, {k}] that is widened"),
                bytes: k * self.dtype.size(),
            });
        }
        for first in (0..n).step_by(at_a_time) {
            let outputs = at_a_time.min(n - first);
            let pieces = k / 16;
            let params = WidenWeight {
                w: w.behind(first * k),
                scales: scales.address.behind(first * scales.runs * size_of::<f32>()),
                out: wide.address,
                pieces: word(pieces),
                rows: word(outputs),
                runs: word(scales.runs),
                padding: 0,
            };
            let kernel = of_dtype!("widen_weight", self.dtype);
            self.launch(&self.elementwise("fp8", kernel, outputs * pieces), &params)?;
            let part = Operands {
                w: wide.address,
                scales: None,
                out: out.behind(first * out_dtype.size()),
                n: outputs,
                ..*operands
            };
            self.by_library(accumulate, &part, n)?;
        }
        Ok(())
    }

    /// Whether a product of e4m3 with e4m3 could be computed.
    pub(super) fn has_fp8(
        &self,
        scaling: Fp8Scaling,
        (rows, n, k): (usize, usize, usize),
        kind: WeightKind,
    ) -> bool {
        let fits = n.is_multiple_of(16) && k.is_multiple_of(16);
        kind == WeightKind::Fp8
            && !self.is_deterministic
            && fits
            && rows <= self.max_rows
            && self.driver.fp8_products().contains(&scaling)
    }

    /// Whether cuBLASLt has an algorithm of that rank for it.
    pub(super) fn has_fp8_proposed(
        &mut self,
        (scaling, rank): (Fp8Scaling, u8),
        (rows, n, k): (usize, usize, usize),
        kind: WeightKind,
    ) -> Result<bool, KernelError> {
        let Some(choice) = self.choice(rank, rows) else { return Ok(false) };
        // Of so many rows any algorithm is near tensor cores' rate, and trials are long.
        if !self.has_fp8(scaling, (rows, n, k), kind) || (rank > 0 && rows >= FP8_ROWS) {
            return Ok(false);
        }
        let nowhere = DevicePointer::NULL;
        let is_scaled = scaling == Fp8Scaling::Library;
        let product = Fp8Matmul {
            x: nowhere,
            w: nowhere,
            scales: is_scaled.then_some([nowhere; 2]),
            out: nowhere,
            rows,
            n,
            k,
            out_dtype: if is_scaled { self.dtype } else { Dtype::F32 },
            accumulate: false,
            choice,
        };
        Ok(self.driver.fp8_choices(&product)? > rank)
    }

    /// By cuBLASLt, with rows in e4m3, if it can be; else false.
    pub(super) fn by_fp8(
        &mut self,
        (scaling, rank): (Fp8Scaling, u8),
        accumulate: bool,
        operands: &Operands,
    ) -> Result<bool, KernelError> {
        let &Operands { x, w, out, out_dtype, rows, n, k, .. } = operands;
        let kind = WeightKind::of(operands.scales);
        let Some(scales) = operands.scales.filter(|_| out_dtype == self.dtype) else {
            return Ok(false);
        };
        if !self.has_fp8(scaling, (rows, n, k), kind) {
            return Ok(false);
        }
        let Some(choice) = self.choice(rank, rows) else { return Ok(false) };
        let narrow = place(self.fp8_room().rows.as_ref());
        let row_scales = place(self.fp8_room().scales.as_ref());
        let wide = place(self.fp8_room().wide.as_ref());
        let size = size_of::<f32>();
        let at_a_time = (wide.bytes / (rows * size) / 16 * 16).min(n);
        if narrow.bytes < rows * k || row_scales.bytes < rows * size || at_a_time == 0 {
            return Ok(false);
        }
        let params = QuantizeRows {
            x,
            out: narrow.address,
            scales: row_scales.address,
            pieces: word(k / 8),
            rows: word(rows),
        };
        let kernel = of_dtype!("quantize_rows", self.dtype);
        let launch =
            Launch { file: "fp8", kernel, grid: [word(rows), 1], threads: 256, shared_bytes: 0 };
        self.launch(&launch, &params)?;
        let whole = Fp8Matmul {
            x: narrow.address,
            w,
            scales: Some([row_scales.address, scales.address]),
            out,
            rows,
            n,
            k,
            out_dtype,
            accumulate,
            choice,
        };
        if scaling == Fp8Scaling::Library {
            return self.by_choice(whole);
        }
        for first in (0..n).step_by(at_a_time) {
            let cols = at_a_time.min(n - first);
            let part = Fp8Matmul {
                w: w.behind(first * k),
                scales: None,
                out: wide.address,
                n: cols,
                out_dtype: Dtype::F32,
                accumulate: false,
                ..whole
            };
            if !self.by_choice(part)? {
                if first == 0 {
                    return Ok(false);
                }
                // What was added to the outputs before must not be added again.
                return Err(KernelError::Device {
                    op: "a product in fp8".to_owned(),
                    reason: format!("no algorithm for {rows} rows and {cols} outputs of {k}"),
                    sticky: false,
                });
            }
            let params = ScaleSums {
                sums: wide.address,
                row_scales: row_scales.address,
                col_scales: scales.address,
                out,
                rows: word(rows),
                cols: word(cols),
                first: word(first),
                n: word(n),
                adds: u32::from(accumulate),
                padding: 0,
            };
            let kernel = of_dtype!("scale_sums", self.dtype);
            self.launch(&self.elementwise("fp8", kernel, rows * cols / 8), &params)?;
        }
        Ok(true)
    }

    /// By the chosen algorithm, or the likeliest where that cannot compute so many rows; false,
    /// and nothing done, if neither can.
    fn by_choice(&mut self, product: Fp8Matmul) -> Result<bool, KernelError> {
        let likeliest = Choice { rank: 0, rows: product.rows };
        for choice in [product.choice, likeliest] {
            match self.driver.fp8_matmul(&Fp8Matmul { choice, ..product }) {
                // It was tried by another number of rows.
                Err(KernelError::Device { sticky: false, .. })
                    if product.choice.rows != product.rows => {}
                other => return other.map(|()| true),
            }
        }
        Ok(false)
    }
}

/// A part of the room.
#[derive(Clone, Copy)]
struct Place {
    address: DevicePointer,
    bytes: usize,
}
