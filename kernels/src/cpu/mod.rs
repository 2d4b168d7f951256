//! The CPU form of every operation.
//!
//! Weights and the KV cache lie in panels that one inner loop reads
//! (`tile`); everything else is elementwise (`vector`). Instruction
//! sets are chosen when the program runs.

mod aligned;
mod encoder;
mod int8;
mod isa;
mod kv_cache;
mod packed;
mod sampling;
mod shared_mut;
mod step;
mod threads;
mod tile;
mod vector;

use std::{
    convert::Infallible,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aligned::AlignedVec;
use candle_core::Tensor;
pub(crate) use encoder::{Head, gelu, layer_norm};
pub(crate) use int8::{dequantize, quantize_row, rotate};
pub use isa::Isa;
pub use kv_cache::CpuKvCache;
pub(crate) use kv_cache::{KeyOrValue, LayerCache};
pub use packed::PackedMatrix;
pub(crate) use packed::PanelDtype;
use sampling::RowSampler;
pub(crate) use shared_mut::SharedMut;
pub use step::CpuStep;
pub use threads::ThreadPool;
pub(crate) use tile::{
    LANES, MAX_COLUMNS, MAX_PANELS, MAX_ROWS, Prefetch, Tile, TileKernels, prefetch,
};
pub(crate) use vector::*;

pub use crate::ops::route::CpuRoutes;
use crate::{
    AttentionKind, AttentionParams, Device, KernelError, KvLayout, Ops, Sampler, StepLimits,
    StepPlan, WeightDtype,
    ops::{
        self, Activation, Routing, embedding, experts, gated, linear, paged_attention, rms_norm,
        rope_and_cache, route,
        sampling::{Logprobs, SampleRequest, Sampled},
        soft_cap,
    },
};

/// How a [`Cpu`] computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuConfig {
    /// Threads, the caller's included; one for each core if not given.
    pub threads: Option<usize>,
    /// Instructions; the best that the processor has if not given.
    pub isa: Option<Isa>,
}

/// A processor as a [`crate::Backend`].
pub struct Cpu {
    pub(crate) pool: ThreadPool,
    pub(crate) isa: Isa,
    /// One for each thread; a thread locks its own only.
    pub(crate) scratch: Vec<Mutex<Scratch>>,
    /// Inputs in bf16 or int8, `[rows, k]`, in words of four bytes as tiles read them.
    pub(crate) rounded: Vec<u32>,
    /// The scales of inputs in int8, `[rows]`.
    pub(crate) row_scales: Vec<f32>,
    /// How a product of experts is shared out.
    pub(crate) expert_tasks: Vec<experts::ExpertTasks>,
}

/// A thread's working memory. It grows to the largest need and stays.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) attention: paged_attention::Scratch,
    pub(crate) sampling: RowSampler,
    /// A row on its way to int8.
    pub(crate) rotated: Vec<f32>,
    /// Of experts, for one row.
    pub(crate) probabilities: Vec<f32>,
    /// A head's keys and values, or a row of a table.
    pub(crate) encoder: Vec<f32>,
}

/// Activations `[capacity, cols]` in f32.
pub struct CpuBuffer {
    data: AlignedVec<f32>,
    capacity: usize,
    cols: usize,
}

impl CpuBuffer {
    /// Rows that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Elements of a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The first `rows` rows.
    #[must_use]
    pub fn rows(&self, rows: usize) -> &[f32] {
        &self.data[..rows * self.cols]
    }

    /// The first `rows` rows.
    pub fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.data[..rows * self.cols]
    }

    /// One row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    /// Checks that the buffer has `rows` rows of `cols`.
    pub(crate) fn check(
        &self,
        op: &'static str,
        what: &'static str,
        rows: usize,
        cols: usize,
    ) -> Result<(), KernelError> {
        if self.cols == cols && rows <= self.capacity {
            return Ok(());
        }
        Err(KernelError::Shape {
            op,
            what,
            got: format!("[{}, {}]", self.capacity, self.cols),
            expected: format!("[at least {rows}, {cols}]"),
        })
    }
}

impl Cpu {
    /// A backend of this processor.
    ///
    /// # Panics
    /// If the configuration names instructions that the processor has not.
    #[must_use]
    pub fn new(config: CpuConfig) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let isa = config.isa.unwrap_or_else(Isa::detect);
        assert!(Isa::available().contains(&isa), "this processor has no {}", isa.name());
        let pool = ThreadPool::new(config.threads.unwrap_or_else(cores));
        let scratch = (0..pool.num_threads()).map(|_| Mutex::default()).collect();
        let (rounded, row_scales, expert_tasks) = Default::default();
        Self { pool, isa, scratch, rounded, row_scales, expert_tasks }
    }

    /// The instructions in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The processor in words, with the instructions that such weights take.
    #[must_use]
    pub fn describe_for(&self, weights: WeightDtype) -> String {
        format!("CPU, {} threads, {}", self.pool.num_threads(), self.isa.products(weights))
    }

    pub(crate) fn scratch(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        lock(&self.scratch[thread])
    }
}

/// A thread's own working memory.
pub(crate) fn lock(scratch: &Mutex<Scratch>) -> MutexGuard<'_, Scratch> {
    scratch.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device for Cpu {
    type Buffer = CpuBuffer;
    type Matrix = PackedMatrix;
    type Vector = Vec<f32>;
    type KvCache = CpuKvCache;
    type Step = CpuStep;
    type Routes = CpuRoutes;
    /// Nothing is recorded.
    type Graph = Infallible;

    fn describe(&self) -> String {
        format!("CPU, {} threads, {}", self.pool.num_threads(), self.isa.name())
    }

    fn memory_info(&self) -> Result<Option<(usize, usize)>, KernelError> {
        Ok(None)
    }

    fn buffer(&self, capacity: usize, cols: usize) -> Result<CpuBuffer, KernelError> {
        let what = format!("activations [{capacity}, {cols}]");
        let len = capacity.checked_mul(cols);
        let len =
            len.ok_or_else(|| KernelError::OutOfMemory { what: what.clone(), bytes: usize::MAX })?;
        Ok(CpuBuffer { data: AlignedVec::zeroed(len, &what)?, capacity, cols })
    }

    fn logits_buffer(&self, capacity: usize, vocab_size: usize) -> Result<CpuBuffer, KernelError> {
        self.buffer(capacity, vocab_size)
    }

    fn routes(&self, capacity: usize, routing: Routing) -> Result<CpuRoutes, KernelError> {
        CpuRoutes::new(capacity, routing)
    }

    fn matrix(&self, parts: &[Tensor], dtype: WeightDtype) -> Result<PackedMatrix, KernelError> {
        PackedMatrix::pack(&self.pool, self.isa, parts, dtype)
    }

    fn matrix_bytes(&self, matrix: &PackedMatrix) -> usize {
        matrix.bytes()
    }

    fn vector(&self, parts: &[Tensor]) -> Result<Vec<f32>, KernelError> {
        packed::read_vector(parts)
    }

    fn kv_cache(&self, layout: &KvLayout, limits: &StepLimits) -> Result<CpuKvCache, KernelError> {
        CpuKvCache::new(layout, limits)
    }

    fn step(
        &mut self,
        limits: &StepLimits,
        attention: &[AttentionKind],
    ) -> Result<CpuStep, KernelError> {
        Ok(CpuStep::new(limits, attention))
    }

    fn stage(
        &mut self,
        plan: &StepPlan,
        step: &mut CpuStep,
        cache: &mut CpuKvCache,
    ) -> Result<(), KernelError> {
        step.stage(plan, cache)
    }

    fn records(&self, _: &CpuStep) -> bool {
        false
    }

    fn capture<T>(
        &mut self,
        _: &CpuStep,
        _: impl FnOnce(&mut Self) -> Result<T, KernelError>,
    ) -> Result<(Infallible, T), KernelError> {
        Err(step::records_nothing())
    }

    fn replay(&mut self, graph: &Infallible, _: &CpuStep) -> Result<(), KernelError> {
        match *graph {}
    }

    fn read(&mut self, buffer: &CpuBuffer, rows: usize) -> Result<Vec<f32>, KernelError> {
        buffer.check("read", "the buffer", rows, buffer.cols)?;
        Ok(buffer.rows(rows).to_vec())
    }
}

impl Ops for Cpu {
    fn embedding_gather(
        &mut self,
        step: &CpuStep,
        table: &PackedMatrix,
        scale: f32,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        embedding::embedding_gather(self, step, table, scale, out)
    }

    fn gather_rows(
        &mut self,
        step: &CpuStep,
        range: Range<usize>,
        x: &CpuBuffer,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        embedding::gather_rows(step, range, x, out)
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &CpuBuffer,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        rms_norm::rms_norm(self, rows, x, weight, eps, false, out)
    }

    fn rms_norm_add(
        &mut self,
        rows: usize,
        x: &CpuBuffer,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        rms_norm::rms_norm(self, rows, x, weight, eps, true, out)
    }

    fn linear(
        &mut self,
        rows: usize,
        x: &CpuBuffer,
        w: &PackedMatrix,
        bias: Option<&Vec<f32>>,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        linear::linear(self, rows, x, w, bias.map(Vec::as_slice), false, out)
    }

    fn linear_add(
        &mut self,
        rows: usize,
        x: &CpuBuffer,
        w: &PackedMatrix,
        bias: Option<&Vec<f32>>,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        linear::linear(self, rows, x, w, bias.map(Vec::as_slice), true, out)
    }

    fn gated(
        &mut self,
        rows: usize,
        activation: Activation,
        x: &CpuBuffer,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        gated::gated(self, rows, activation, x, out)
    }

    fn linear_gated(
        &mut self,
        rows: usize,
        x: &CpuBuffer,
        w: &PackedMatrix,
        bias: Option<&Vec<f32>>,
        activation: Activation,
        _scratch: Option<&mut CpuBuffer>,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        linear::linear_gated(self, rows, x, w, bias.map(Vec::as_slice), activation, out)
    }

    fn gated_scratch_cols(&self, _n: usize) -> usize {
        0
    }

    fn route(
        &mut self,
        rows: usize,
        scores: &CpuBuffer,
        routes: &mut CpuRoutes,
    ) -> Result<(), KernelError> {
        route::route(self, rows, scores, routes)
    }

    fn experts_gated(
        &mut self,
        rows: usize,
        x: &CpuBuffer,
        routes: &CpuRoutes,
        w: &PackedMatrix,
        activation: Activation,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        experts::experts_gated(self, rows, x, routes, w, activation, out)
    }

    fn experts_add(
        &mut self,
        rows: usize,
        x: &CpuBuffer,
        routes: &CpuRoutes,
        w: &PackedMatrix,
        scratch: &mut CpuBuffer,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        experts::experts_add(self, rows, x, routes, w, scratch, out)
    }

    fn rope_and_cache(
        &mut self,
        step: &CpuStep,
        params: &AttentionParams,
        rope: &Vec<f32>,
        qk_norm: Option<(&Vec<f32>, &Vec<f32>, f32)>,
        layer: usize,
        qkv: &mut CpuBuffer,
        cache: &mut CpuKvCache,
    ) -> Result<(), KernelError> {
        let qk_norm = qk_norm.map(|(q, k, eps)| (q.as_slice(), k.as_slice(), eps));
        rope_and_cache::rope_and_cache(self, step, params, rope, qk_norm, layer, qkv, cache)
    }

    fn paged_attention(
        &mut self,
        step: &CpuStep,
        params: &AttentionParams,
        layer: usize,
        qkv: &CpuBuffer,
        cache: &CpuKvCache,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        paged_attention::paged_attention(self, step, params, layer, qkv, cache, out)
    }

    fn soft_cap(
        &mut self,
        rows: usize,
        cap: f32,
        logits: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        soft_cap::soft_cap(self, rows, cap, logits)
    }
}

impl Sampler for Cpu {
    fn sample(
        &mut self,
        logits: &mut CpuBuffer,
        requests: &[SampleRequest<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), KernelError> {
        ops::sampling::sample(self, logits, requests, out)
    }

    fn logprobs(
        &mut self,
        logits: &CpuBuffer,
        tokens: &[u32],
        num_top: &[u32],
        out: &mut Vec<Logprobs>,
    ) -> Result<(), KernelError> {
        ops::sampling::logprobs(self, logits, tokens, num_top, out)
    }
}
