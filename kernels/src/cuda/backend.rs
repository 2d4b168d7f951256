//! The operations as launches.

use std::time::Duration;

use candle_core::Tensor;

use super::{
    AddBias, AttentionPlan, AttentionRoom, CudaBuffer, CudaKvCache, CudaMatrix, CudaVector,
    DevicePointer, Driver, EmbeddingGather, Gated, KernelParams, Launch, Matmul, PagedAttention,
    RmsNorm, RopeAndCache,
    memory::decode,
    names::{self, of_dtype},
    sampler::Sampler,
    staging::{Staging, room},
    step::Step,
    word,
};
use crate::{
    AttentionParams, Backend, Dtype, ForwardBatch, KernelError, KvLayout, WeightDtype,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
};

/// Bytes of attention's partial results, where more than two sequences could need them:
/// the longest are shared out among blocks then, the others are enough to fill the device.
const PARTIAL_BYTES: usize = 64 << 20;

/// A cache is refused when it is made if no kernel takes it.
const CHECKED: &str = "the cache was checked when it was made";

/// What a [`Cuda`] has room for; everything is sized from it.
#[derive(Clone, Copy, Debug)]
pub struct CudaLimits {
    /// Rows of a batch.
    pub max_num_batched_tokens: usize,
    /// Sequences of a batch.
    pub max_num_seqs: usize,
    /// Tokens of a sequence.
    pub max_model_len: usize,
}

/// A CUDA device as a [`Backend`].
pub struct Cuda<D: Driver> {
    driver: D,
    /// Of activations and weights.
    dtype: Dtype,
    limits: CudaLimits,
    step: Step<D::Memory>,
    sampler: Sampler<D::Memory>,
    /// Which rows get logits.
    gathered: Staging<D::Memory>,
    /// Gates and what they gate, before they meet; made when first needed.
    gate_up: Option<CudaBuffer<D::Memory>>,
    partials: Option<Partials<D::Memory>>,
}

/// Room for attention's partial results and the tickets of those who merge them.
struct Partials<M> {
    params: AttentionParams,
    max: usize,
    partials: DevicePointer,
    tickets: DevicePointer,
    _memory: [M; 2],
}

impl<D: Driver> Cuda<D> {
    /// A backend that computes in `dtype`.
    ///
    /// # Errors
    /// A dtype that tensor cores do not take, no memory.
    pub fn new(driver: D, dtype: Dtype, limits: CudaLimits) -> Result<Self, KernelError> {
        if dtype == Dtype::F32 {
            return Err(KernelError::Unsupported {
                what: "dtype float32".to_owned(),
                device: "CUDA",
                accepted: "bfloat16 and float16 are; float32 runs on the CPU",
            });
        }
        Ok(Self {
            step: Step::new(&driver, &limits)?,
            sampler: Sampler::new(&driver, &limits)?,
            gathered: Staging::new(&driver, room::<u32>(limits.max_num_batched_tokens), "rows")?,
            driver,
            dtype,
            limits,
            gate_up: None,
            partials: None,
        })
    }

    /// The device.
    #[must_use]
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// The device, to time what it does.
    pub fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Launches a kernel, unless there is nothing for it to do.
    fn launch<P: KernelParams>(
        &mut self,
        launch: &Launch<'_>,
        params: &P,
    ) -> Result<(), KernelError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        self.driver.launch(launch, params)
    }

    /// An elementwise kernel over pieces of 16 bytes.
    fn elementwise(
        &self,
        file: &'static str,
        kernel: &'static str,
        pieces: usize,
    ) -> Launch<'static> {
        const THREADS: usize = 256;
        let most = 8 * self.driver.multiprocessors();
        let blocks = pieces.div_ceil(THREADS).clamp(1, most.max(1));
        Launch { file, kernel, grid: [word(blocks), 1], threads: THREADS as u32, shared_bytes: 0 }
    }

    fn product(
        &mut self,
        op: &'static str,
        (rows, accumulate): (usize, bool),
        x: &CudaBuffer<D::Memory>,
        w: &CudaMatrix<D::Memory>,
        bias: Option<&CudaVector<D::Memory>>,
        out: &mut CudaBuffer<D::Memory>,
    ) -> Result<(), KernelError> {
        x.check(op, "x", (rows, w.k), self.dtype)?;
        out.check(op, "out", (rows, w.n), out.dtype)?;
        if let Some(bias) = bias {
            bias.check(op, "bias", w.n)?;
            out.check(op, "out with a bias", (rows, w.n), self.dtype)?;
        }
        if rows == 0 {
            return Ok(());
        }
        self.driver.matmul(&Matmul {
            x: x.address,
            w: w.address,
            out: out.address,
            rows,
            n: w.n,
            k: w.k,
            dtype: self.dtype,
            out_dtype: out.dtype,
            accumulate,
        })?;
        let Some(bias) = bias else { return Ok(()) };
        let pieces = pieces(op, w.n)?;
        let params =
            AddBias { bias: bias.address, x: out.address, pieces: word(pieces), rows: word(rows) };
        let kernel = of_dtype!("add_bias", self.dtype);
        self.launch(&self.elementwise("add_bias", kernel, rows * pieces), &params)
    }

    /// Room for the partial results of the largest step, if it is not too much.
    fn partials(
        &mut self,
        params: &AttentionParams,
    ) -> Result<(AttentionRoom, [DevicePointer; 2]), KernelError> {
        let head_dim = params.head_dim;
        let CudaLimits { max_num_seqs, max_model_len, .. } = self.limits;
        let of_sequence = AttentionPlan::most_partials(params, max_model_len);
        let enough = PARTIAL_BYTES / AttentionPlan::partial_bytes(head_dim, 1);
        let max = (max_num_seqs * of_sequence).min(enough.max(2 * of_sequence));
        let fits = |known: &Partials<_>| {
            let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = known.params;
            (num_heads, num_kv_heads, head_dim)
                == (params.num_heads, params.num_kv_heads, params.head_dim)
        };
        if !self.partials.as_ref().is_some_and(fits) {
            let what = "attention's partial results";
            let memory = [
                self.driver.allocate(AttentionPlan::partial_bytes(head_dim, max), what)?,
                self.driver.allocate(
                    AttentionPlan::most_tickets(params, max_num_seqs) * size_of::<u32>(),
                    what,
                )?,
            ];
            let [partials, tickets] = [0, 1].map(|i| self.driver.address(&memory[i]));
            self.partials =
                Some(Partials { params: *params, max, partials, tickets, _memory: memory });
        }
        let partials = self.partials.as_ref().expect("they were made above");
        let room = AttentionRoom {
            max_partials: partials.max,
            multiprocessors: self.driver.multiprocessors(),
        };
        Ok((room, [partials.partials, partials.tickets]))
    }
}

impl<M> CudaVector<M> {
    fn check(&self, op: &'static str, what: &'static str, len: usize) -> Result<(), KernelError> {
        if self.len == len {
            return Ok(());
        }
        let (got, expected) = (format!("[{}]", self.len), format!("[{len}]"));
        Err(KernelError::Shape { op, what, got, expected })
    }
}

impl<D: Driver> Backend for Cuda<D> {
    type Buffer = CudaBuffer<D::Memory>;
    type Matrix = CudaMatrix<D::Memory>;
    type Vector = CudaVector<D::Memory>;
    type KvCache = CudaKvCache<D::Memory>;

    fn describe(&self) -> String {
        self.driver.describe()
    }

    fn memory_info(&self) -> Result<Option<(usize, usize)>, KernelError> {
        self.driver.memory_info().map(Some)
    }

    fn buffer(&self, capacity: usize, cols: usize) -> Result<Self::Buffer, KernelError> {
        CudaBuffer::new(&self.driver, capacity, cols, self.dtype)
    }

    fn logits_buffer(
        &self,
        capacity: usize,
        vocab_size: usize,
    ) -> Result<Self::Buffer, KernelError> {
        CudaBuffer::new(&self.driver, capacity, vocab_size, Dtype::F32)
    }

    fn matrix(&self, parts: &[Tensor], dtype: WeightDtype) -> Result<Self::Matrix, KernelError> {
        if dtype != self.dtype.into() {
            return Err(KernelError::Unsupported {
                what: format!("weights of {dtype:?}"),
                device: "CUDA",
                accepted: "weights of the dtype it computes in are",
            });
        }
        CudaMatrix::new(&self.driver, parts, self.dtype)
    }

    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize {
        matrix.bytes
    }

    fn vector(&self, parts: &[Tensor]) -> Result<Self::Vector, KernelError> {
        CudaVector::new(&self.driver, parts)
    }

    fn kv_cache(&self, layout: KvLayout) -> Result<Self::KvCache, KernelError> {
        if names::rope_and_cache((self.dtype, layout.dtype)).is_none() {
            return Err(KernelError::Unsupported {
                what: format!("a KV cache of {:?} beside {:?}", layout.dtype, self.dtype),
                device: "CUDA",
                accepted: "one of the dtype it computes in, or of fp8_e4m3, is",
            });
        }
        if names::paged_attention((self.dtype, layout.dtype), layout.head_dim).is_none() {
            return Err(KernelError::Unsupported {
                what: format!("head_dim {}", layout.head_dim),
                device: "CUDA",
                accepted: "64, 80, 96, 128 and 256 are",
            });
        }
        CudaKvCache::new(&self.driver, layout)
    }

    fn read(&mut self, buffer: &Self::Buffer, rows: usize) -> Result<Vec<f32>, KernelError> {
        buffer.check("read", "the buffer", (rows, buffer.cols), buffer.dtype)?;
        let mut bytes = vec![0; rows * buffer.cols * buffer.dtype.size()];
        self.driver.download(&buffer.memory, &mut bytes)?;
        Ok(decode(&bytes, buffer.dtype))
    }

    fn begin(&mut self, batch: &ForwardBatch) -> Result<(), KernelError> {
        self.driver.begin_step()?;
        self.step.begin(&self.driver, batch)
    }

    fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
        self.driver.finish()
    }

    fn embedding_gather(
        &mut self,
        batch: &ForwardBatch,
        table: &Self::Matrix,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "embedding_gather";
        self.step.check(OP, batch)?;
        let rows = batch.num_tokens();
        out.check(OP, "out", (rows, table.k), self.dtype)?;
        below(OP, "a token id", self.step.largest_token, table.n, rows)?;
        let params = EmbeddingGather {
            token_ids: self.step.on_device.token_ids,
            table: table.address,
            out: out.address,
            pieces: word(pieces(OP, table.k)?),
            padding: 0,
        };
        self.launch(&row_launch(OP, OP, rows), &params)
    }

    fn gather_rows(
        &mut self,
        rows: &[u32],
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "gather_rows";
        out.check(OP, "out", (rows.len(), x.cols), self.dtype)?;
        let largest = rows.iter().copied().max().unwrap_or(0);
        below(OP, "a row", largest, x.capacity, rows.len())?;
        self.gathered.clear();
        let params = EmbeddingGather {
            token_ids: self.gathered.push(rows)?,
            table: x.address,
            out: out.address,
            pieces: word(pieces(OP, x.cols)?),
            padding: 0,
        };
        self.gathered.send(&self.driver)?;
        let name = "embedding_gather";
        self.launch(&row_launch(name, name, rows.len()), &params)
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "rms_norm";
        // What the registers of a block hold.
        const MAX_HIDDEN: usize = 8 * 8 * 256;
        let hidden = x.cols;
        x.check(OP, "x", (rows, hidden), self.dtype)?;
        out.check(OP, "out", (rows, hidden), self.dtype)?;
        weight.check(OP, "weight", hidden)?;
        pieces(OP, hidden)?;
        if hidden > MAX_HIDDEN {
            return Err(KernelError::Unsupported {
                what: format!("hidden_size {hidden}"),
                device: "CUDA",
                accepted: "up to 16384 is",
            });
        }
        let params = RmsNorm {
            x: x.address,
            residual: DevicePointer::NULL,
            weight: weight.address,
            out: out.address,
            hidden: word(hidden),
            eps,
        };
        let kernel = if hidden <= RmsNorm::NARROW {
            of_dtype!("rms_norm", self.dtype)
        } else {
            of_dtype!("rms_norm_wide", self.dtype)
        };
        self.launch(&row_launch(OP, kernel, rows), &params)
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        self.product("linear", (rows, false), x, w, bias, out)
    }

    fn linear_add(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        self.product("linear_add", (rows, true), x, w, bias, out)
    }

    fn linear_silu_mul(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "linear_silu_mul";
        out.check(OP, "out", (rows, w.n / 2), self.dtype)?;
        let pieces = pieces(OP, w.n / 2)?;
        let mut gate_up = match self.gate_up.take() {
            Some(buffer) if buffer.cols == w.n => buffer,
            _ => self.buffer(self.limits.max_num_batched_tokens, w.n)?,
        };
        let product = self.product(OP, (rows, false), x, w, bias, &mut gate_up);
        let params =
            Gated { x: gate_up.address, out: out.address, pieces: word(pieces), rows: word(rows) };
        self.gate_up = Some(gate_up);
        product?;
        let kernel = of_dtype!("silu_mul", self.dtype);
        self.launch(&self.elementwise("gated", kernel, rows * pieces), &params)
    }

    fn rope_and_cache(
        &mut self,
        batch: &ForwardBatch,
        params: &AttentionParams,
        rope: &Self::Vector,
        qk_norm: Option<(&Self::Vector, &Self::Vector, f32)>,
        layer: usize,
        qkv: &mut Self::Buffer,
        cache: &mut Self::KvCache,
    ) -> Result<(), KernelError> {
        const OP: &str = "rope_and_cache";
        self.step.check(OP, batch)?;
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
        let rows = batch.num_tokens();
        let heads = num_heads + 2 * num_kv_heads;
        qkv.check(OP, "qkv", (rows, heads * head_dim), self.dtype)?;
        below(OP, "a position", self.step.largest_position, rope.len / head_dim, rows)?;
        if let Some((q, k, _)) = qk_norm {
            q.check(OP, "Q's norm", head_dim)?;
            k.check(OP, "K's norm", head_dim)?;
        }
        let norm = |of: fn(&(&CudaVector<_>, &CudaVector<_>, f32)) -> DevicePointer| {
            qk_norm.as_ref().map_or(DevicePointer::NULL, of)
        };
        let (k_scale, v_scale) = cache.scales;
        let launch_params = RopeAndCache {
            qkv: qkv.address,
            rope: rope.address,
            positions: self.step.on_device.positions,
            slot_mapping: self.step.on_device.slot_mapping,
            q_norm: norm(|(q, ..)| q.address),
            k_norm: norm(|(_, k, _)| k.address),
            cache: cache.layer(OP, layer, params)?,
            num_heads: word(num_heads),
            num_kv_heads: word(num_kv_heads),
            head_dim: word(head_dim),
            eps: qk_norm.map_or(0.0, |(.., eps)| eps),
            k_scale,
            v_scale,
        };
        let kernel = names::rope_and_cache((self.dtype, cache.layout.dtype));
        let launch = Launch {
            file: OP,
            kernel: kernel.expect(CHECKED),
            grid: RopeAndCache::grid(word(rows), word(heads), word(head_dim)),
            threads: RopeAndCache::THREADS,
            shared_bytes: 0,
        };
        self.launch(&launch, &launch_params)
    }

    fn paged_attention(
        &mut self,
        batch: &ForwardBatch,
        params: &AttentionParams,
        layer: usize,
        qkv: &Self::Buffer,
        cache: &Self::KvCache,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "paged_attention";
        self.step.check(OP, batch)?;
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
        let rows = batch.num_tokens();
        let q_stride = (num_heads + 2 * num_kv_heads) * head_dim;
        qkv.check(OP, "qkv", (rows, q_stride), self.dtype)?;
        out.check(OP, "out", (rows, num_heads * head_dim), self.dtype)?;
        let group = num_heads / num_kv_heads;
        let (room, [partials, tickets]) = self.partials(params)?;
        let work = self.step.work(&self.driver, batch, params, room)?;
        let (k_scale, v_scale) = cache.scales;
        let (scale, soft_cap) = AttentionPlan::score_factors(params, k_scale);
        let mut launch_params = PagedAttention {
            work: work.prompts.0,
            q: qkv.address,
            cache: cache.layer(OP, layer, params)?,
            out: out.address,
            block_tables: self.step.on_device.block_tables,
            partials,
            tickets,
            q_stride: word(q_stride),
            num_kv_heads: word(num_kv_heads),
            group: word(group),
            window: word(params.sliding_window.unwrap_or(0)),
            scale,
            soft_cap,
            v_scale,
            padding: 0,
        };
        let dtype = cache.layout.dtype;
        let dtypes = (self.dtype, dtype);
        let prompts = Launch {
            file: OP,
            kernel: names::paged_attention(dtypes, head_dim).expect(CHECKED),
            grid: [word(num_kv_heads), word(work.prompts.1)],
            threads: 256,
            shared_bytes: AttentionPlan::prompt_shared_bytes(head_dim, dtype.size()),
        };
        self.launch(&prompts, &launch_params)?;
        launch_params.work = work.decodes.0;
        let columns = AttentionPlan::decode_columns(group);
        let decodes = Launch {
            file: "decode_attention",
            kernel: names::decode_attention(dtypes, head_dim, columns).expect(CHECKED),
            grid: [word(num_kv_heads), word(work.decodes.1)],
            threads: 128,
            shared_bytes: AttentionPlan::decode_shared_bytes(head_dim, dtype.size(), columns),
        };
        self.launch(&decodes, &launch_params)
    }

    fn sample(
        &mut self,
        logits: &mut Self::Buffer,
        requests: &[SampleRequest<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), KernelError> {
        let vocab_size = logits.cols;
        logits.check("sample", "logits", (requests.len(), vocab_size), Dtype::F32)?;
        self.sampler.sample(&mut self.driver, logits.address, vocab_size, requests, out)
    }

    fn logprobs(
        &mut self,
        logits: &Self::Buffer,
        tokens: &[u32],
        num_top: &[u32],
        out: &mut Vec<Logprobs>,
    ) -> Result<(), KernelError> {
        const OP: &str = "logprobs";
        let vocab_size = logits.cols;
        logits.check(OP, "logits", (tokens.len(), vocab_size), Dtype::F32)?;
        if tokens.len() != num_top.len() {
            return Err(KernelError::Shape {
                op: OP,
                what: "num_top",
                got: num_top.len().to_string(),
                expected: format!("{} as tokens", tokens.len()),
            });
        }
        let largest = tokens.iter().copied().max().unwrap_or(0);
        below(OP, "a token id", largest, vocab_size, tokens.len())?;
        let address = logits.address;
        self.sampler.logprobs(&mut self.driver, address, vocab_size, tokens, num_top, out)
    }
}

/// A launch of a block for each row.
fn row_launch(file: &'static str, kernel: &'static str, rows: usize) -> Launch<'static> {
    Launch { file, kernel, grid: [word(rows), 1], threads: 256, shared_bytes: 0 }
}

/// Pieces of 16 bytes of a row of `cols` elements of two bytes.
fn pieces(op: &'static str, cols: usize) -> Result<usize, KernelError> {
    if cols.is_multiple_of(8) {
        return Ok(cols / 8);
    }
    Err(KernelError::Shape {
        op,
        what: "columns",
        got: cols.to_string(),
        expected: "a multiple of 8".to_owned(),
    })
}

/// An error unless the largest of `count` numbers is below `limit`.
fn below(
    op: &'static str,
    what: &'static str,
    largest: u32,
    limit: usize,
    count: usize,
) -> Result<(), KernelError> {
    if count == 0 || (largest as usize) < limit {
        return Ok(());
    }
    Err(KernelError::Shape {
        op,
        what,
        got: largest.to_string(),
        expected: format!("below {limit}"),
    })
}
