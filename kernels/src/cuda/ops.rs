//! The operations as launches.

use std::ops::Range;

use super::{
    AttentionPlan, Cuda, CudaBuffer, CudaKvCache, CudaStep, CudaVector, DevicePointer, Driver,
    EmbeddingGather, Gated, KernelParams, Launch, PagedAttention, RmsNorm, RopeAndCache, RopeEnd,
    SoftCap,
    attention::{Attention, CHECKED},
    backend::Partials,
    names::{self, of_dtype},
    products::Outcome,
    word,
};
use crate::{
    Activation, AttentionParams, BLOCK_SIZE, CacheDtype, Dtype, KernelError, Mask, Ops,
    ops::{embedding::check_logit_rows, gated::needed_scratch, unknown_kind},
};

impl<D: Driver> Cuda<D> {
    /// Rotates rows of Q, K and V, with norms of heads' weights and their epsilon where there are
    /// some.
    pub(super) fn rotate(
        &mut self,
        (rows, qkv): (usize, DevicePointer),
        end: &RopeEnd,
        norms: Option<(DevicePointer, DevicePointer, f32)>,
        cache: CacheDtype,
    ) -> Result<(), KernelError> {
        let (q_norm, k_norm, eps) =
            norms.unwrap_or((DevicePointer::NULL, DevicePointer::NULL, 0.0));
        let params = RopeAndCache {
            qkv,
            rope: end.table,
            positions: end.positions,
            slot_mapping: end.slot_mapping,
            q_norm,
            k_norm,
            cache: end.cache,
            num_heads: end.num_heads,
            num_kv_heads: end.num_kv_heads,
            head_dim: end.head_dim,
            eps,
            k_scale: end.k_scale,
            v_scale: end.v_scale,
        };
        let heads = end.num_heads + 2 * end.num_kv_heads;
        let launch = Launch {
            file: "rope_and_cache",
            kernel: names::rope_and_cache((self.dtype, cache)).expect(CHECKED),
            grid: RopeAndCache::grid(word(rows), heads, end.head_dim),
            threads: RopeAndCache::THREADS,
            shared_bytes: 0,
        };
        self.launch(&launch, &params)
    }

    /// Launches a kernel, unless there is nothing for it to do.
    pub(super) fn launch<P: KernelParams>(
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
    pub(super) fn elementwise(
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

    /// Launches the one of two kernels, for narrow rows and for wide ones.
    fn norm(
        &mut self,
        [narrow, wide]: [&'static str; 2],
        rows: usize,
        x: &CudaBuffer<D::Memory>,
        weight: &CudaVector<D::Memory>,
        eps: f32,
        out: &mut CudaBuffer<D::Memory>,
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
            weight: weight.address,
            out: out.address,
            hidden: word(hidden),
            eps,
            rows: word(rows),
            padding: 0,
        };
        let kernel = if hidden <= RmsNorm::NARROW { narrow } else { wide };
        let blocks = RmsNorm::grid(rows, hidden, self.driver.multiprocessors());
        self.launch(&row_launch(OP, kernel, blocks), &params)
    }
}

impl<M> CudaVector<M> {
    pub(super) fn check(
        &self,
        op: &'static str,
        what: &'static str,
        len: usize,
    ) -> Result<(), KernelError> {
        if self.len == len {
            return Ok(());
        }
        let (got, expected) = (format!("[{}]", self.len), format!("[{len}]"));
        Err(KernelError::Shape { op, what, got, expected })
    }
}

impl Mask {
    /// The kernels' `window`.
    fn window(self) -> u32 {
        match self {
            Self::None | Self::Causal => 0,
            Self::Sliding(window) => word(window),
        }
    }
}

impl<D: Driver> Ops for Cuda<D> {
    fn embedding_gather(
        &mut self,
        step: &Self::Step,
        table: &Self::Matrix,
        scale: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "embedding_gather";
        let rows = step.sizes.num_tokens;
        table.check_plain(OP)?;
        out.check(OP, "out", (rows, table.k), self.dtype)?;
        step.sizes.check_tokens(OP, table.n)?;
        let params = EmbeddingGather {
            token_ids: step.token_ids,
            table: table.address,
            out: out.address,
            last_sampled: self.sampling.last_sampled,
            pieces: word(pieces(OP, table.k)?),
            scale,
        };
        let scaled = of_dtype!("embedding_scaled", self.dtype);
        let kernel = if scale == 1.0 { OP } else { scaled };
        self.launch(&row_launch(OP, kernel, rows), &params)
    }

    fn gather_rows(
        &mut self,
        step: &Self::Step,
        range: Range<usize>,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "gather_rows";
        let (list, len) = step.logit_rows;
        check_logit_rows(len, &range)?;
        x.check(OP, "x", (step.sizes.num_tokens, x.cols), self.dtype)?;
        out.check(OP, "out", (range.len(), x.cols), self.dtype)?;
        let params = EmbeddingGather {
            token_ids: list.behind(range.start * size_of::<u32>()),
            table: x.address,
            out: out.address,
            last_sampled: DevicePointer::NULL,
            pieces: word(pieces(OP, x.cols)?),
            scale: 1.0,
        };
        let name = "embedding_gather";
        self.launch(&row_launch(name, name, range.len()), &params)
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        let kernels = [of_dtype!("rms_norm", self.dtype), of_dtype!("rms_norm_wide", self.dtype)];
        self.norm(kernels, rows, x, weight, eps, out)
    }

    fn rms_norm_add(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        let kernels =
            [of_dtype!("rms_norm_add", self.dtype), of_dtype!("rms_norm_add_wide", self.dtype)];
        self.norm(kernels, rows, x, weight, eps, out)
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        self.product("linear", (rows, Outcome::Store), x, w, bias, out)
    }

    fn linear_add(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        self.product("linear_add", (rows, Outcome::Add), x, w, bias, out)
    }

    fn gated(
        &mut self,
        rows: usize,
        activation: Activation,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "gated";
        let intermediate = out.cols;
        x.check(OP, "x", (rows, 2 * intermediate), self.dtype)?;
        out.check(OP, "out", (rows, intermediate), self.dtype)?;
        let pieces = pieces(OP, intermediate)?;
        let params =
            Gated { x: x.address, out: out.address, pieces: word(pieces), rows: word(rows) };
        let kernel = match activation {
            Activation::Silu => of_dtype!("silu_mul", self.dtype),
            Activation::GeluTanh => of_dtype!("gelu_mul", self.dtype),
        };
        self.launch(&self.elementwise(OP, kernel, rows * pieces), &params)
    }

    fn linear_gated(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        activation: Activation,
        scratch: Option<&mut Self::Buffer>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        if self.gated_product((rows, activation), x, w, bias, out)? {
            return Ok(());
        }
        let scratch = needed_scratch(scratch)?;
        self.linear(rows, x, w, bias, scratch)?;
        self.gated(rows, activation, scratch, out)
    }

    fn linear_of_normed(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        norm: (&Self::Vector, f32),
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        activation: Option<Activation>,
        out: &mut Self::Buffer,
    ) -> Result<bool, KernelError> {
        let outcome = activation.map_or(Outcome::Store, Outcome::Gate);
        self.product_of_normed((rows, outcome), x, norm, w, bias, out)
    }

    fn route(
        &mut self,
        rows: usize,
        scores: &Self::Buffer,
        routes: &mut Self::Routes,
    ) -> Result<(), KernelError> {
        self.route_rows(rows, scores, routes)
    }

    fn experts_gated(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        routes: &Self::Routes,
        w: &Self::Matrix,
        activation: Activation,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        self.experts_gated_rows(rows, x, routes, w, activation, out)
    }

    fn experts_add(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        routes: &Self::Routes,
        w: &Self::Matrix,
        scratch: &mut Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        self.experts_add_rows(rows, x, routes, w, scratch, out)
    }

    fn rope_and_cache(
        &mut self,
        step: &Self::Step,
        params: &AttentionParams,
        rope: &Self::Vector,
        qk_norm: Option<(&Self::Vector, &Self::Vector, f32)>,
        layer: usize,
        qkv: &mut Self::Buffer,
        cache: &mut Self::KvCache,
    ) -> Result<(), KernelError> {
        const OP: &str = "rope_and_cache";
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
        let heads = num_heads + 2 * num_kv_heads;
        let rows = step.sizes.num_tokens;
        qkv.check(OP, "qkv", (rows, heads * head_dim), self.dtype)?;
        let end = rope_end(OP, step, params, rope, (layer, cache))?;
        if let Some((q, k, _)) = qk_norm {
            q.check(OP, "Q's norm", head_dim)?;
            k.check(OP, "K's norm", head_dim)?;
        }
        let norms = qk_norm.map(|(q, k, eps)| (q.address, k.address, eps));
        self.rotate((rows, qkv.address), &end, norms, cache.layout.dtype)
    }

    fn rope_of_normed(
        &mut self,
        step: &Self::Step,
        params: &AttentionParams,
        x: &Self::Buffer,
        norm: (&Self::Vector, f32),
        (w, bias): (&Self::Matrix, Option<&Self::Vector>),
        rope: &Self::Vector,
        layer: usize,
        qkv: &mut Self::Buffer,
        cache: &mut Self::KvCache,
    ) -> Result<bool, KernelError> {
        const OP: &str = "rope_of_normed";
        if !self.rotates_in_product((params.head_dim, cache.layout.dtype)) {
            return Ok(false);
        }
        let end = rope_end(OP, step, params, rope, (layer, cache))?;
        let heads = params.num_heads + 2 * params.num_kv_heads;
        let rows = step.sizes.num_tokens;
        qkv.check(OP, "qkv", (rows, heads * params.head_dim), self.dtype)?;
        self.product_of_normed((rows, Outcome::Rope(end)), x, norm, w, bias, qkv)
    }

    fn paged_attention(
        &mut self,
        step: &Self::Step,
        params: &AttentionParams,
        layer: usize,
        qkv: &Self::Buffer,
        cache: &Self::KvCache,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "paged_attention";
        step.check_cache(OP, cache)?;
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
        let rows = step.sizes.num_tokens;
        let q_stride = (num_heads + 2 * num_kv_heads) * head_dim;
        qkv.check(OP, "qkv", (rows, q_stride), self.dtype)?;
        out.check(OP, "out", (rows, num_heads * head_dim), self.dtype)?;
        let (layer, cache_group) = cache.layer(OP, layer, params)?;
        let work = step.work(OP, params, cache_group)?;
        let Some(Partials { partials, tickets, .. }) = self.partials else {
            return Err(unknown_kind(OP, params, cache_group));
        };
        let (k_scale, v_scale) = cache.scales;
        let (scale, soft_cap) = AttentionPlan::score_factors(params, k_scale);
        let attention = Attention {
            dtypes: (self.dtype, cache.layout.dtype),
            head_dim,
            cache_rows: cache.layout.num_blocks * 2 * num_kv_heads * BLOCK_SIZE,
            params: PagedAttention {
                work: DevicePointer::NULL,
                q: qkv.address,
                cache: layer,
                out: out.address,
                block_tables: cache.tables,
                partials,
                tickets,
                q_stride: word(q_stride),
                num_kv_heads: word(num_kv_heads),
                group: word(num_heads / num_kv_heads),
                window: params.mask.window(),
                scale,
                soft_cap,
                v_scale,
                causal: u32::from(params.mask != Mask::None),
            },
        };
        let form = self.prompt_form(attention.dtypes, head_dim);
        self.launch_attention(form, &attention, &work)
    }

    fn soft_cap(
        &mut self,
        rows: usize,
        cap: f32,
        logits: &mut Self::Buffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "soft_cap";
        logits.check(OP, "logits", (rows, logits.cols), Dtype::F32)?;
        let elements = rows * logits.cols;
        if elements == 0 {
            return Ok(());
        }
        let params = SoftCap { x: logits.address, elements: word(elements), cap };
        self.launch(&self.elementwise(OP, OP, elements.div_ceil(4)), &params)
    }
}

/// What rotates Q, K and V, and where these go, in a layer of the cache that the step was staged for.
fn rope_end<M>(
    op: &'static str,
    step: &CudaStep<M>,
    params: &AttentionParams,
    rope: &CudaVector<M>,
    (layer, cache): (usize, &CudaKvCache<M>),
) -> Result<RopeEnd, KernelError> {
    step.check_cache(op, cache)?;
    let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
    step.sizes.check_positions(op, rope.len / head_dim)?;
    let (k_scale, v_scale) = cache.scales;
    let (layer, group) = cache.layer(op, layer, params)?;
    Ok(RopeEnd {
        table: rope.address,
        positions: step.positions,
        slot_mapping: step.kv_slots[group],
        cache: layer,
        num_heads: word(num_heads),
        num_kv_heads: word(num_kv_heads),
        head_dim: word(head_dim),
        is_e4m3: u32::from(cache.layout.dtype == CacheDtype::Fp8E4m3),
        k_scale,
        v_scale,
    })
}

/// A launch of a block for each row.
fn row_launch(file: &'static str, kernel: &'static str, rows: usize) -> Launch<'static> {
    Launch { file, kernel, grid: [word(rows), 1], threads: 256, shared_bytes: 0 }
}

/// Pieces of 16 bytes of a row of `cols` elements of two bytes.
pub(super) fn pieces(op: &'static str, cols: usize) -> Result<usize, KernelError> {
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
