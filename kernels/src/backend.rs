//! The contract of every operation of a forward step, whatever computes it.
//!
//! Activations are matrices `[rows, cols]` in a [`Backend::Buffer`], which has
//! room for a fixed number of rows and is allocated once; each operation is
//! told how many rows are in use. A step allocates nothing.
//!
//! **One order of summation.** Each output row depends on its own inputs only,
//! and is summed in an order that does not depend on the number of rows, on the
//! number of threads, or on what else is in the batch. One row or forty give
//! the same bits.

use std::time::Duration;

use candle_core::Tensor;

use crate::{
    ForwardBatch, KernelError,
    ops::sampling::{SampleRequest, Sampled},
};

/// The dtype a model computes in: of weights that are not quantized, and of the KV
/// cache unless that has one of its own. Sums are always in f32. On a CPU,
/// activations are f32 and an operation's input is rounded (to nearest, ties to
/// even) where it meets weights of fewer bits; on CUDA, activations between
/// operations are of this dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// What K and V are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheDtype {
    /// As [`Dtype::F32`].
    F32,
    /// As [`Dtype::F16`].
    F16,
    /// As [`Dtype::Bf16`].
    Bf16,
    /// 8-bit floats with four bits of exponent (Micikevicius et al., 2022), saturated
    /// at ±448.
    Fp8E4m3,
}

impl CacheDtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8E4m3 => 1,
        }
    }
}

impl From<Dtype> for CacheDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// What a packed weight's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// As [`Dtype::F32`].
    F32,
    /// As [`Dtype::F16`].
    F16,
    /// As [`Dtype::Bf16`].
    Bf16,
    /// 8-bit integers with one scale for each output (row of `[n, k]`),
    /// quantized when the weight is packed. An operation's input is quantized
    /// where it meets them, with one scale a row. Both are symmetric: the scale
    /// is the row's largest magnitude over 127, and numbers are rounded to
    /// nearest, ties to even. Products are summed in i32, which is exact, and
    /// scaled in f32.
    ///
    /// Before either is quantized, both rows are rotated by the same Hadamard
    /// matrix ([`crate::reference::rotate`]), which leaves their product what it
    /// is and spreads the few channels that would set a row's scale alone
    /// (QuaRot, Ashkboos et al., 2024).
    Int8,
}

impl WeightDtype {
    /// Bytes of one element, scales apart.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }
}

impl From<Dtype> for WeightDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// The shape of a paged KV cache: for each layer
/// `[num_blocks, 2 (K, V), num_kv_heads, 16, head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Transformer layers.
    pub num_layers: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: CacheDtype,
}

impl KvLayout {
    /// Bytes that one block takes over all layers.
    #[must_use]
    pub const fn block_bytes(&self) -> usize {
        self.num_layers * self.layer_block_bytes()
    }

    /// Bytes that one block takes in one layer.
    #[must_use]
    pub const fn layer_block_bytes(&self) -> usize {
        2 * self.num_kv_heads * 16 * self.head_dim * self.dtype.size()
    }
}

/// What attention computes beside its operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Heads of Q; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Factor on `q · k`, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A query sees only this many last positions, its own included.
    pub sliding_window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

/// A device that computes the operations. One thread owns it.
pub trait Backend: Send {
    /// Activations `[capacity, cols]`, in the dtype the backend computes in, or logits
    /// in f32.
    type Buffer: Send;
    /// A weight `[n, k]`, in the backend's own layout.
    type Matrix: Send + Sync;
    /// A weight `[n]`, f32.
    type Vector: Send + Sync;
    /// The keys and values of every layer; see [`KvLayout`].
    type KvCache: Send;

    /// What a person should know of the device: its name, instruction set, threads.
    fn describe(&self) -> String;

    /// Free and total bytes of the device's memory; `None` where it is the machine's.
    ///
    /// # Errors
    /// The device failed.
    fn memory_info(&self) -> Result<Option<(usize, usize)>, KernelError>;

    /// Allocates activations of `capacity` rows, zeroed.
    ///
    /// # Errors
    /// No memory.
    fn buffer(&self, capacity: usize, cols: usize) -> Result<Self::Buffer, KernelError>;

    /// Allocates logits of `capacity` rows, f32 on every backend.
    ///
    /// # Errors
    /// No memory.
    fn logits_buffer(
        &self,
        capacity: usize,
        vocab_size: usize,
    ) -> Result<Self::Buffer, KernelError>;

    /// Packs weights stored as `[n_i, k]` (a checkpoint's `weight`) into one
    /// matrix of `n = Σ n_i` rows, converting to `dtype`.
    ///
    /// # Errors
    /// Unequal `k`, a tensor that is not two-dimensional, a `k` whose sums
    /// could exceed i32 in int8, no memory.
    fn matrix(&self, parts: &[Tensor], dtype: WeightDtype) -> Result<Self::Matrix, KernelError>;

    /// Bytes that a weight takes in the device's memory, scales included.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize;

    /// A vector of the parts end to end, converted to f32.
    ///
    /// # Errors
    /// A tensor that is not one-dimensional, no memory.
    fn vector(&self, parts: &[Tensor]) -> Result<Self::Vector, KernelError>;

    /// Allocates a KV cache.
    ///
    /// # Errors
    /// No memory.
    fn kv_cache(&self, layout: KvLayout) -> Result<Self::KvCache, KernelError>;

    /// A buffer's first `rows` rows, for tests and for reading results:
    /// `[rows * cols]`.
    ///
    /// # Errors
    /// The device failed.
    fn read(&mut self, buffer: &Self::Buffer, rows: usize) -> Result<Vec<f32>, KernelError>;

    /// Starts a step: operations that are given a batch are given this one until the
    /// next call, so that a device has to be told of it once.
    ///
    /// # Errors
    /// The device failed, or the batch exceeds what it has room for.
    fn begin(&mut self, batch: &ForwardBatch) -> Result<(), KernelError>;

    /// Waits until all of the step is computed, and says what the device took for it, if it
    /// measures that.
    ///
    /// # Errors
    /// The device failed, perhaps at something that it was asked for earlier.
    fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
        Ok(None)
    }

    /// `out[r] = table[batch.token_ids[r]]` for every row of the batch.
    ///
    /// `table [vocab_size, hidden]`, `out [num_tokens, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit, a token outside the table.
    fn embedding_gather(
        &mut self,
        batch: &ForwardBatch,
        table: &Self::Matrix,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// Copies rows: `out[i] = x[rows[i]]`.
    ///
    /// # Errors
    /// Shapes that do not fit, a row out of range.
    fn gather_rows(
        &mut self,
        rows: &[u32],
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// RMSNorm (Zhang and Sennrich, 2019):
    /// `out[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight`.
    ///
    /// `x`, `out [rows, hidden]`, `weight [hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// `out[r] = w · x[r] + bias`.
    ///
    /// `x [rows, k]`, `w [n, k]`, `bias [n]`, `out [rows, n]`. With bf16
    /// weights `x` is rounded to bf16 first, with int8 weights each row is
    /// quantized to int8 ([`WeightDtype::Int8`]); products are summed in f32,
    /// those of int8 exactly in i32. With int8 weights a row or an output whose
    /// numbers are not all finite becomes NaN as a whole.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn linear(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// `out[r] += w · x[r] + bias`: [`Backend::linear`] that adds a residual.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn linear_add(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// SwiGLU (Shazeer, 2020): `out[r] = silu(gate) * up`, where `gate` and `up`
    /// are the first and the second half of `w · x[r] + bias`.
    ///
    /// `x [rows, k]`, `w [2 * intermediate, k]`, `bias [2 * intermediate]`,
    /// `out [rows, intermediate]`; `intermediate` is a multiple of 16.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn linear_silu_mul(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        w: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// Norms Q and K where a model does (`qk_norm`: weights `[head_dim]` for Q
    /// and K, and epsilon), rotates them (RoPE, Su et al., 2021, in the
    /// half-split form of Hugging Face's `rotate_half`), and writes K and V of
    /// every row to its place in layer `layer` of the cache.
    ///
    /// `qkv [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`: Q, K and V
    /// end to end; Q is rotated in place. `rope [max_positions, head_dim]`: for
    /// each position `head_dim / 2` cosines, then as many sines.
    ///
    /// # Errors
    /// Shapes that do not fit, a position beyond the table.
    #[expect(clippy::too_many_arguments, reason = "an operation's operands are its contract")]
    fn rope_and_cache(
        &mut self,
        batch: &ForwardBatch,
        params: &AttentionParams,
        rope: &Self::Vector,
        qk_norm: Option<(&Self::Vector, &Self::Vector, f32)>,
        layer: usize,
        qkv: &mut Self::Buffer,
        cache: &mut Self::KvCache,
    ) -> Result<(), KernelError>;

    /// Causal attention over the paged cache (Kwon et al., 2023) for a mixed
    /// batch of prefill chunks and decodes; every row sees the cached positions
    /// up to its own. Head `h` of Q reads head `h / (num_heads / num_kv_heads)`
    /// of K and V (GQA, Ainslie et al., 2023).
    ///
    /// `qkv` as [`Backend::rope_and_cache`] left it (only Q is read),
    /// `out [num_tokens, num_heads * head_dim]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn paged_attention(
        &mut self,
        batch: &ForwardBatch,
        params: &AttentionParams,
        layer: usize,
        qkv: &Self::Buffer,
        cache: &Self::KvCache,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// Samples one token from each row of `logits [requests.len(), vocab_size]`;
    /// see [`crate::ops::sampling`] for what a request may ask. Results are
    /// appended to `out` in order. The logits are scratch afterwards.
    ///
    /// # Errors
    /// Shapes that do not fit. Logits that are not finite are no error of the
    /// step: they are that row's result.
    fn sample(
        &mut self,
        logits: &mut Self::Buffer,
        requests: &[SampleRequest<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), KernelError>;

    /// The log-probability of `tokens[i]` at row `i` of `logits`, with the
    /// `num_top[i]` likeliest tokens, appended to `out`; for prompts and scoring.
    ///
    /// # Errors
    /// Shapes that do not fit, a token outside the vocabulary.
    fn logprobs(
        &mut self,
        logits: &Self::Buffer,
        tokens: &[u32],
        num_top: &[u32],
        out: &mut Vec<crate::ops::sampling::Logprobs>,
    ) -> Result<(), KernelError>;
}
