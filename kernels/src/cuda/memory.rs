//! What lies in a device's memory: activations, weights, the KV cache.

use candle_core::{CpuStorage, Storage, Tensor};
use half::{bf16, f16};

use super::{DevicePointer, Driver, GroupTables};
use crate::{AttentionParams, Dtype, Fp8Weight, KernelError, KvLayer, KvLayout, StepLimits, fp8};

/// Activations or logits `[capacity, cols]`.
pub struct CudaBuffer<M> {
    pub(super) memory: M,
    pub(super) address: DevicePointer,
    pub(super) capacity: usize,
    pub(super) cols: usize,
    pub(super) dtype: Dtype,
}

impl<M> CudaBuffer<M> {
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        capacity: usize,
        cols: usize,
        dtype: Dtype,
    ) -> Result<Self, KernelError> {
        let what = format!("activations [{capacity}, {cols}]");
        let bytes = capacity.checked_mul(cols).and_then(|len| len.checked_mul(dtype.size()));
        let bytes = bytes
            .ok_or_else(|| KernelError::OutOfMemory { what: what.clone(), bytes: usize::MAX })?;
        let memory = driver.allocate(bytes, &what)?;
        Ok(Self { address: driver.address(&memory), memory, capacity, cols, dtype })
    }

    /// Elements of a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Checks that there are `rows` rows of `cols`, in `dtype`.
    pub(super) fn check(
        &self,
        op: &'static str,
        what: &'static str,
        (rows, cols): (usize, usize),
        dtype: Dtype,
    ) -> Result<(), KernelError> {
        if self.cols == cols && rows <= self.capacity && self.dtype == dtype {
            return Ok(());
        }
        Err(KernelError::Shape {
            op,
            what,
            got: format!("[{}, {}] of {:?}", self.capacity, self.cols, self.dtype),
            expected: format!("[at least {rows}, {cols}] of {dtype:?}"),
        })
    }
}

/// A weight `[n, k]`, row-major, in f16, bf16 or e4m3.
pub struct CudaMatrix<M> {
    pub(super) address: DevicePointer,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) bytes: usize,
    /// Of a weight in e4m3.
    pub(super) scales: Option<Fp8Scales>,
    /// Keep the weight and its scales where they are.
    _memory: (M, Option<M>),
}

/// What the numbers of a weight in e4m3 are multiplied with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fp8Scales {
    /// `[n, runs]`, f32
    pub(super) address: DevicePointer,
    /// Of a row; of more than one each is of [`fp8::RUN`] elements.
    pub(super) runs: usize,
}

/// What weights are, as far as the choice of a product's form depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum WeightKind {
    /// As activations.
    Plain,
    /// In e4m3 with a scale a row.
    Fp8,
    /// In e4m3 with several.
    Fp8Runs,
}

impl WeightKind {
    pub(super) fn of(scales: Option<Fp8Scales>) -> Self {
        match scales {
            None => Self::Plain,
            Some(Fp8Scales { runs: 1, .. }) => Self::Fp8,
            Some(_) => Self::Fp8Runs,
        }
    }
}

impl<M> CudaMatrix<M> {
    /// Puts the parts, `[n_i, k]` each, on top of each other.
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        parts: &[Tensor],
        dtype: Dtype,
    ) -> Result<Self, KernelError> {
        let shapes: Vec<_> = parts.iter().map(Tensor::dims2).collect::<Result<_, _>>()?;
        let n = shapes.iter().map(|(rows, _)| rows).sum();
        let k = shapes.first().map_or(0, |&(_, k)| k);
        if n == 0 || k == 0 || !k.is_multiple_of(8) || shapes.iter().any(|&(_, cols)| cols != k) {
            return Err(KernelError::Shape {
                op: "matrix",
                what: "the weight",
                got: format!("parts of {shapes:?}"),
                expected: "parts of as many columns, a multiple of 8".to_owned(),
            });
        }
        let bytes = n * k * dtype.size();
        let mut memory = driver.allocate(bytes, &format!("a weight [{n}, {k}]"))?;
        let mut at = 0;
        for part in parts {
            encoded(part, dtype, |bytes| {
                driver.upload(&mut memory, at, bytes)?;
                at += bytes.len();
                Ok(())
            })?;
        }
        let address = driver.address(&memory);
        Ok(Self { address, n, k, bytes, scales: None, _memory: (memory, None) })
    }

    /// Puts parts in e4m3 on top of each other.
    pub(super) fn fp8<D: Driver<Memory = M>>(
        driver: &D,
        parts: &[Fp8Weight],
    ) -> Result<Self, KernelError> {
        let n = parts.iter().map(|part| part.n).sum();
        let k = parts.first().map_or(0, |part| part.k);
        let runs = parts.iter().map(Fp8Weight::runs).max().unwrap_or(1);
        let fits =
            |part: &Fp8Weight| part.k == k && (part.runs() == 1 || runs == k.div_ceil(fp8::RUN));
        if n == 0 || k == 0 || !k.is_multiple_of(16) || !parts.iter().all(fits) {
            let shapes: Vec<_> = parts.iter().map(|part| (part.n, part.k, part.runs())).collect();
            return Err(KernelError::Shape {
                op: "matrix",
                what: "a weight in fp8",
                got: format!("parts of {shapes:?} rows, columns and scales of a row"),
                expected: "parts of as many columns, a multiple of 16".to_owned(),
            });
        }
        let what = format!("a weight [{n}, {k}] in fp8");
        let (bytes, scale_bytes) = (n * k, n * runs * size_of::<f32>());
        let mut memory = driver.allocate(bytes, &what)?;
        let mut of_scales = driver.allocate(scale_bytes, &what)?;
        let (mut at, mut scale_at) = (0, 0);
        for part in parts {
            driver.upload(&mut memory, at, &part.bits)?;
            at += part.bits.len();
            let scales = part.clone_scales(runs);
            let scales: &[u8] = bytemuck::cast_slice(&scales);
            driver.upload(&mut of_scales, scale_at, scales)?;
            scale_at += scales.len();
        }
        let scales = Fp8Scales { address: driver.address(&of_scales), runs };
        Ok(Self {
            address: driver.address(&memory),
            n,
            k,
            bytes: bytes + scale_bytes,
            scales: Some(scales),
            _memory: (memory, Some(of_scales)),
        })
    }

    /// Refuses a weight in e4m3, which the operation does not take.
    pub(super) fn check_plain(&self, op: &'static str) -> Result<(), KernelError> {
        if self.scales.is_none() {
            return Ok(());
        }
        Err(KernelError::Shape {
            op,
            what: "the weight",
            got: "in fp8".to_owned(),
            expected: "in the dtype of activations".to_owned(),
        })
    }
}

/// A weight `[n]`, f32.
pub struct CudaVector<M> {
    pub(super) address: DevicePointer,
    pub(super) len: usize,
    /// Keeps the weight where it is.
    _memory: M,
}

impl<M> CudaVector<M> {
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        parts: &[Tensor],
    ) -> Result<Self, KernelError> {
        let mut bytes = Vec::new();
        for part in parts {
            part.dims1()?;
            encoded(part, Dtype::F32, |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })?;
        }
        let mut memory = driver.allocate(bytes.len(), "a vector")?;
        driver.upload(&mut memory, 0, &bytes)?;
        Ok(Self { address: driver.address(&memory), len: bytes.len() / 4, _memory: memory })
    }
}

/// The keys and values of every layer, and the block tables of every slot. A layer's pages
/// are `[2, num_kv_heads, BLOCK_SIZE, head_dim]`.
pub struct CudaKvCache<M> {
    pub(super) layout: KvLayout,
    pub(super) limits: StepLimits,
    /// Where each layer's region starts.
    starts: Vec<DevicePointer>,
    /// `[num_groups, max_num_seqs, blocks_per_seq]`
    pub(super) tables: DevicePointer,
    /// What a stored key, and a stored value, is multiplied with.
    pub(super) scales: (f32, f32),
    /// Keeps the cache and the tables where they are.
    _memory: [M; 2],
}

impl<M> CudaKvCache<M> {
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        layout: &KvLayout,
        limits: &StepLimits,
    ) -> Result<Self, KernelError> {
        let page_lens = layout.page_lens()?;
        let what = format!("a KV cache of {} blocks", layout.num_blocks);
        let bytes = layout
            .num_blocks
            .checked_mul(layout.block_bytes())
            .ok_or_else(|| KernelError::OutOfMemory { what: what.clone(), bytes: usize::MAX })?;
        let memory = driver.allocate(bytes, &what)?;
        let address = driver.address(&memory);
        let start = |layer: &KvLayer| {
            let before: usize = page_lens[..layer.region].iter().sum();
            let bytes = layout.num_blocks * before * layout.dtype.size();
            address.behind(bytes)
        };
        let tables = driver.allocate(layout.table_bytes(limits), "block tables")?;
        Ok(Self {
            starts: layout.layers.iter().map(start).collect(),
            layout: layout.clone(),
            limits: *limits,
            tables: driver.address(&tables),
            scales: (1.0, 1.0),
            _memory: [memory, tables],
        })
    }

    /// Sets the factors on stored keys and values; they are 1 at first. Only a cache
    /// of [`crate::CacheDtype::Fp8E4m3`] has use for them.
    pub fn set_scales(&mut self, keys: f32, values: f32) {
        self.scales = (keys, values);
    }

    /// Where a group's block tables lie.
    pub(super) fn group_tables(&self, group: usize) -> GroupTables {
        let blocks_per_seq = self.limits.blocks_per_seq();
        let first = group * self.limits.max_num_seqs * blocks_per_seq;
        GroupTables { group, first, blocks_per_seq }
    }

    /// Where a layer starts, and its group.
    pub(super) fn layer(
        &self,
        op: &'static str,
        layer: usize,
        params: &AttentionParams,
    ) -> Result<(DevicePointer, usize), KernelError> {
        let heads = (params.num_kv_heads, params.head_dim);
        match self.layout.layers.get(layer) {
            Some(own) if (own.num_kv_heads, own.head_dim) == heads => {
                Ok((self.starts[layer], own.group))
            }
            own => Err(KernelError::Shape {
                op,
                what: "the layer",
                got: format!("{layer}, of {} heads of {}", heads.0, heads.1),
                expected: own.map_or_else(
                    || format!("below {}", self.layout.layers.len()),
                    |own| format!("of {} heads of {}", own.num_kv_heads, own.head_dim),
                ),
            }),
        }
    }
}

/// Gives a CPU tensor's elements in a dtype, in the order of its rows, to `take`: without a
/// copy where they have that dtype.
fn encoded(
    tensor: &Tensor,
    dtype: Dtype,
    take: impl FnOnce(&[u8]) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(candle_core::Error::Msg("weights come from CPU tensors".into()).into());
    };
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    match (storage, dtype) {
        (CpuStorage::BF16(x), Dtype::Bf16) => take(bytemuck::cast_slice(&x[range])),
        (CpuStorage::F16(x), Dtype::F16) => take(bytemuck::cast_slice(&x[range])),
        (CpuStorage::F32(x), _) => take(&encode(&x[range], dtype)),
        (CpuStorage::BF16(x), _) => take(&convert(&x[range], dtype, bf16::to_f32)),
        (CpuStorage::F16(x), _) => take(&convert(&x[range], dtype, f16::to_f32)),
        _ => Err(KernelError::Dtype { op: "weights", got: tensor.dtype() }),
    }
}

/// Numbers as they are stored in a dtype.
pub(super) fn encode(x: &[f32], dtype: Dtype) -> Vec<u8> {
    convert(x, dtype, |x| x)
}

fn convert<T: Copy>(x: &[T], dtype: Dtype, to_f32: impl Fn(T) -> f32) -> Vec<u8> {
    let x = x.iter().map(|&x| to_f32(x));
    match dtype {
        Dtype::F32 => x.flat_map(f32::to_le_bytes).collect(),
        Dtype::F16 => x.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::Bf16 => x.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// Floats out of bytes that hold a dtype.
pub(super) fn decode(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => bytemuck::pod_collect_to_vec(bytes),
        Dtype::F16 => pairs().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        Dtype::Bf16 => pairs().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
    }
}
