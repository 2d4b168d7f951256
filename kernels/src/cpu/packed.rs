//! Weights in panels.
#![expect(unsafe_code, reason = "tasks write disjoint panels of one allocation")]

use candle_core::{DType, Tensor};
use half::{bf16, f16};

use super::{
    Isa,
    aligned::AlignedVec,
    int8::{self, Int8Panels, MAX_K},
    shared_mut::SharedMut,
    threads::ThreadPool,
    tile::LANES,
    vector::bf16_bits,
};
use crate::{KernelError, WeightDtype};

/// A weight `[n, k]` in panels of 16 output columns, as `tile` reads
/// them. `n` is padded to 16 and `k` to 2 in bf16 and 4 in int8, with zeros.
pub struct PackedMatrix {
    n: usize,
    k: usize,
    data: Panels,
}

enum Panels {
    F32(AlignedVec<f32>),
    Bf16(AlignedVec<u16>),
    Int8(Int8Panels),
}

/// What panels hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanelDtype {
    F32,
    Bf16,
    Int8,
}

impl PanelDtype {
    fn of(dtype: WeightDtype) -> Result<Self, KernelError> {
        match dtype {
            WeightDtype::F32 => Ok(Self::F32),
            WeightDtype::Bf16 => Ok(Self::Bf16),
            WeightDtype::Int8 => Ok(Self::Int8),
            WeightDtype::F16 => Err(KernelError::Unsupported {
                what: "dtype float16".to_owned(),
                device: "a CPU",
                accepted: "bfloat16 and float32 are",
            }),
            WeightDtype::Fp8E4m3 => Err(KernelError::Unsupported {
                what: "quantization to fp8".to_owned(),
                device: "a CPU",
                accepted: "int8 is",
            }),
        }
    }
}

impl PackedMatrix {
    /// Packs the parts, `[n_i, k]` each, on top of each other.
    pub(crate) fn pack(
        pool: &ThreadPool,
        isa: Isa,
        parts: &[Tensor],
        dtype: WeightDtype,
    ) -> Result<Self, KernelError> {
        let op = "matrix";
        let dtype = PanelDtype::of(dtype)?;
        let mut n = 0;
        let mut k = None;
        for part in parts {
            let (rows, cols) = part.dims2()?;
            if *k.get_or_insert(cols) != cols {
                return Err(KernelError::Shape {
                    op,
                    what: "columns of a part",
                    got: cols.to_string(),
                    expected: format!("{} as in the first part", k.unwrap_or(0)),
                });
            }
            n += rows;
        }
        let k = k.filter(|&k| k > 0 && n > 0).ok_or_else(|| KernelError::Shape {
            op,
            what: "the weight",
            got: format!("{} parts of {n} rows", parts.len()),
            expected: "at least one row and one column".to_owned(),
        })?;
        if dtype == PanelDtype::Int8 && k > MAX_K {
            return Err(KernelError::Shape {
                op,
                what: "columns of an int8 weight",
                got: k.to_string(),
                expected: format!("at most {MAX_K}, so that sums fit an i32"),
            });
        }
        let mut packed = Self::zeroed(n, k, dtype)?;
        let mut row = 0;
        for part in parts {
            let part = part.contiguous()?;
            let rows = part.dims2()?.0;
            packed.fill(pool, isa, row, &part)?;
            row += rows;
        }
        Ok(packed)
    }

    fn zeroed(n: usize, k: usize, dtype: PanelDtype) -> Result<Self, KernelError> {
        let what = format!("a weight [{n}, {k}]");
        let columns = n.div_ceil(LANES) * LANES;
        let data = match dtype {
            PanelDtype::F32 => Panels::F32(AlignedVec::zeroed_to_stream(columns * k, &what)?),
            PanelDtype::Bf16 => {
                Panels::Bf16(AlignedVec::zeroed_to_stream(columns * k.next_multiple_of(2), &what)?)
            }
            PanelDtype::Int8 => Panels::Int8(Int8Panels::zeroed(columns, k, &what)?),
        };
        Ok(Self { n, k, data })
    }

    /// Writes a part's rows from `first_row` on.
    fn fill(
        &mut self,
        pool: &ThreadPool,
        isa: Isa,
        first_row: usize,
        part: &Tensor,
    ) -> Result<(), KernelError> {
        use candle_core::{CpuStorage, Storage};
        let (storage, layout) = part.storage_and_layout();
        let offset = layout.start_offset();
        let Storage::Cpu(storage) = &*storage else {
            return Err(
                candle_core::Error::Msg("weights are packed from CPU tensors".into()).into()
            );
        };
        let len = part.elem_count();
        match storage {
            CpuStorage::F32(x) => self.fill_from(pool, isa, first_row, &x[offset..offset + len]),
            CpuStorage::BF16(x) => self.fill_from(pool, isa, first_row, &x[offset..offset + len]),
            CpuStorage::F16(x) => self.fill_from(pool, isa, first_row, &x[offset..offset + len]),
            _ => {
                return Err(KernelError::Dtype { op: "matrix", got: part.dtype() });
            }
        }
        Ok(())
    }

    fn fill_from<T: Element>(
        &mut self,
        pool: &ThreadPool,
        isa: Isa,
        first_row: usize,
        source: &[T],
    ) {
        let k = self.k;
        let rows = source.len() / k;
        let first_panel = first_row / LANES;
        let num_panels = (first_row + rows).div_ceil(LANES) - first_panel;
        let part = Part { source, k, first_row, rows };
        match &mut self.data {
            Panels::F32(data) => {
                let len = k * LANES;
                let data = SharedMut::new(data);
                pool.run(num_panels, &|_, task| {
                    let panel = first_panel + task;
                    // SAFETY: each panel belongs to one task.
                    let out = unsafe { data.slice(panel * len, len) };
                    part.write(panel, 1, out, T::to_f32);
                });
            }
            Panels::Bf16(data) => {
                let len = k.div_ceil(2) * 2 * LANES;
                let data = SharedMut::new(data);
                pool.run(num_panels, &|_, task| {
                    let panel = first_panel + task;
                    // SAFETY: each panel belongs to one task.
                    let out = unsafe { data.slice(panel * len, len) };
                    part.write(panel, 2, out, T::to_bf16_bits);
                });
            }
            Panels::Int8(panels) => {
                let len = k.next_multiple_of(4) * LANES;
                let data = SharedMut::new(&mut panels.data);
                let columns = SharedMut::new(&mut panels.columns);
                pool.run(num_panels, &|_, task| {
                    let panel = first_panel + task;
                    // SAFETY: each panel belongs to one task.
                    let data = unsafe { data.slice(panel * len, len) };
                    // SAFETY: as above.
                    let columns = unsafe { &mut columns.slice(panel, 1)[0] };
                    let (mut values, mut bytes) = (vec![0.0; k], vec![0; k]);
                    for (lane, row) in part.rows_of(panel) {
                        values.iter_mut().zip(row).for_each(|(out, &x)| *out = x.to_f32());
                        int8::write_row(isa, &mut values, &mut bytes, lane, data, columns);
                    }
                });
            }
        }
    }

    /// Output columns: rows of the checkpoint's weight.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The element type.
    pub(crate) fn dtype(&self) -> PanelDtype {
        match self.data {
            Panels::F32(_) => PanelDtype::F32,
            Panels::Bf16(_) => PanelDtype::Bf16,
            Panels::Int8(_) => PanelDtype::Int8,
        }
    }

    /// Bytes that the panels take, scales included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.data {
            Panels::F32(data) => data.len() * 4,
            Panels::Bf16(data) => data.len() * 2,
            Panels::Int8(panels) => panels.bytes(),
        }
    }

    /// Steps of a tile over k.
    pub(crate) fn steps(&self) -> usize {
        match self.dtype() {
            PanelDtype::F32 => self.k,
            PanelDtype::Bf16 => self.k.div_ceil(2),
            PanelDtype::Int8 => self.k.div_ceil(4),
        }
    }

    pub(crate) fn num_panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Where a panel starts; a step of it is 64 bytes.
    pub(crate) fn panel(&self, panel: usize) -> *const u8 {
        let start = panel * self.steps() * LANES;
        match &self.data {
            Panels::F32(data) => data[start..].as_ptr().cast(),
            Panels::Bf16(data) => data[start * 2..].as_ptr().cast(),
            Panels::Int8(panels) => panels.data[start * 4..].as_ptr().cast(),
        }
    }

    /// What turns an int8 weight's sums into numbers; `None` for other weights.
    pub(crate) fn int8(&self) -> Option<&Int8Panels> {
        match &self.data {
            Panels::Int8(panels) => Some(panels),
            Panels::F32(_) | Panels::Bf16(_) => None,
        }
    }

    /// Reads row `row` of the weight back: `out [k]`.
    pub(crate) fn read_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / LANES, row % LANES);
        match &self.data {
            Panels::F32(data) => {
                let panel = &data[panel * self.k * LANES..][..self.k * LANES];
                for (out, step) in out.iter_mut().zip(panel.chunks_exact(LANES)) {
                    *out = step[lane];
                }
            }
            Panels::Bf16(data) => {
                let len = self.steps() * 2 * LANES;
                let panel = &data[panel * len..][..len];
                for (out, step) in out.chunks_mut(2).zip(panel.chunks_exact(2 * LANES)) {
                    for (out, &bits) in out.iter_mut().zip(&step[lane * 2..]) {
                        *out = f32::from_bits(u32::from(bits) << 16);
                    }
                }
            }
            Panels::Int8(panels) => panels.read_row(isa, row, out),
        }
    }
}

/// One part of a weight: rows of a checkpoint's tensor.
struct Part<'a, T> {
    source: &'a [T],
    k: usize,
    first_row: usize,
    rows: usize,
}

impl<T: Element> Part<'_, T> {
    /// The part's rows of one panel, with their lanes.
    fn rows_of(&self, panel: usize) -> impl Iterator<Item = (usize, &[T])> {
        let from = (panel * LANES).max(self.first_row);
        let to = ((panel + 1) * LANES).min(self.first_row + self.rows);
        (from..to)
            .map(|row| (row % LANES, &self.source[(row - self.first_row) * self.k..][..self.k]))
    }

    /// Writes the part's rows of one panel; `pair` steps of k are interleaved.
    fn write<U>(&self, panel: usize, pair: usize, out: &mut [U], convert: impl Fn(T) -> U) {
        for (lane, values) in self.rows_of(panel) {
            let steps = out.chunks_exact_mut(pair * LANES);
            for (step, values) in steps.zip(values.chunks(pair)) {
                let lane = &mut step[lane * pair..][..values.len()];
                for (out, &value) in lane.iter_mut().zip(values) {
                    *out = convert(value);
                }
            }
        }
    }
}

/// An element of a checkpoint's tensor.
trait Element: Copy + Sync {
    fn to_f32(self) -> f32;

    fn to_bf16_bits(self) -> u16 {
        bf16_bits(self.to_f32())
    }
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for f16 {
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        Self::to_f32(self)
    }

    fn to_bf16_bits(self) -> u16 {
        self.to_bits()
    }
}

/// A vector's parts end to end, in f32.
pub(crate) fn read_vector(parts: &[Tensor]) -> Result<Vec<f32>, KernelError> {
    let mut out = Vec::new();
    for part in parts {
        part.dims1()?;
        out.extend(part.to_dtype(DType::F32)?.to_vec1::<f32>()?);
    }
    Ok(out)
}
