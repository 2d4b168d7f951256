//! The contract of every operation of a forward pass, whatever computes it; one file an
//! operation has its operands' checks and its CPU form, the `.cu` file of the same stem its
//! CUDA form.
//!
//! Activations are matrices `[rows, cols]` in a [`Device::Buffer`], which has
//! room for a fixed number of rows and is allocated once; each operation is
//! told how many rows are in use, or has them from the step. An operation allocates
//! nothing.
//!
//! **One order of summation.** Each output row depends on its own inputs only,
//! and is summed in an order that does not depend on the number of rows, on the
//! number of threads, or on what else is in the batch. One row or forty give
//! the same bits. Two forms of an operation, fused and composed, agree within the rounding
//! of what lies between, not to the bit: which is used is chosen when a model is loaded.

pub(crate) mod embedding;
pub mod encoder;
pub(crate) mod experts;
pub(crate) mod gated;
pub(crate) mod linear;
pub(crate) mod paged_attention;
pub(crate) mod rms_norm;
pub(crate) mod rope_and_cache;
pub(crate) mod route;
pub mod sampling;
pub(crate) mod soft_cap;

use std::ops::Range;

use crate::{AttentionParams, Device, KernelError};

/// The activation of a gated unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU (Hendrycks and Gimpel, 2016) in its tanh form:
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))`.
    GeluTanh,
}

/// How rows choose their experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// Experts to choose from.
    pub num_experts: usize,
    /// Experts that a row goes to.
    pub top_k: usize,
    /// Whether what they count for is made to sum to 1.
    pub normalise: bool,
}

impl Routing {
    /// # Errors
    /// More choices than experts, or none.
    pub(crate) fn check(self) -> Result<(), KernelError> {
        let Self { num_experts, top_k, .. } = self;
        let expected = || format!("from 1 to {num_experts}, as many as there are experts");
        let fits = (1..=num_experts).contains(&top_k);
        ensure(fits, "route", "top_k", || top_k.to_string(), expected)
    }
}

/// A device that computes the operations.
pub trait Ops: Device {
    /// `out[r] = scale * table[token_ids[r]]` for every row of the step.
    ///
    /// `table [vocab_size, hidden]`, `out [num_tokens, hidden]`. `scale` is rounded to the
    /// table's dtype where that is bf16 or f16, as models that scale were trained.
    ///
    /// # Errors
    /// Shapes that do not fit, a token outside the table.
    fn embedding_gather(
        &mut self,
        step: &Self::Step,
        table: &Self::Matrix,
        scale: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// Copies rows that get logits: `out[i] = x[logit_rows[range.start + i]]`, with the
    /// plan's [`crate::StepPlan::logit_rows`].
    ///
    /// # Errors
    /// Shapes that do not fit, a range beyond the list.
    fn gather_rows(
        &mut self,
        step: &Self::Step,
        range: Range<usize>,
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

    /// `out[r] += x[r] / sqrt(mean(x[r]²) + eps) * weight`: [`Ops::rms_norm`] of what is
    /// then added to a residual.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn rms_norm_add(
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
    /// quantized to int8 ([`crate::WeightDtype::Int8`]); products are summed in f32,
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

    /// `out[r] += w · x[r] + bias`: [`Ops::linear`] that adds to a residual. Every device
    /// has it: products add to what is there at no cost.
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

    /// A gated unit (Shazeer, 2020): `out[r] = act(gate) * up`, where `gate` and `up` are
    /// the first and the second half of `x[r]`.
    ///
    /// `x [rows, 2 * intermediate]`, `out [rows, intermediate]`; `intermediate` is a
    /// multiple of 16.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn gated(
        &mut self,
        rows: usize,
        activation: Activation,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// [`Ops::gated`] of `w · x[r] + bias`.
    ///
    /// `x [rows, k]`, `w [2 * intermediate, k]`, `bias [2 * intermediate]`,
    /// `out [rows, intermediate]`. `scratch` has [`Ops::gated_scratch_cols`] columns, and
    /// is `None` where those are 0.
    ///
    /// # Errors
    /// Shapes that do not fit, no scratch where some is needed.
    #[expect(clippy::too_many_arguments, reason = "an operation's operands are its contract")]
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
        let scratch = gated::needed_scratch(scratch)?;
        self.linear(rows, x, w, bias, scratch)?;
        self.gated(rows, activation, scratch, out)
    }

    /// [`Ops::linear`], or with an activation [`Ops::linear_gated`], of rows that
    /// [`Ops::rms_norm`] norms first, by `norm [k]` and epsilon, in one operation. False, and
    /// nothing done, where the device has none for so many rows and this weight.
    ///
    /// # Errors
    /// Shapes that do not fit.
    #[expect(clippy::too_many_arguments, reason = "an operation's operands are its contract")]
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
        let _ = (rows, x, norm, w, bias, activation, out);
        Ok(false)
    }

    /// Columns of the scratch of [`Ops::linear_gated`] with a weight of `n` rows: 0 where
    /// the device fuses it.
    fn gated_scratch_cols(&self, n: usize) -> usize {
        n
    }

    /// Routes rows to experts (Shazeer et al., 2017), by the routes' [`Routing`]: of the
    /// softmax of a row's scores the `top_k` largest, of equal ones those of the lowest
    /// experts, and with `normalise` their share of what is chosen.
    ///
    /// `scores [rows, num_experts]`, f32 ([`Device::logits_buffer`]).
    ///
    /// # Errors
    /// Shapes that do not fit, more rows than the routes have room for.
    fn route(
        &mut self,
        rows: usize,
        scores: &Self::Buffer,
        routes: &mut Self::Routes,
    ) -> Result<(), KernelError>;

    /// [`Ops::gated`] of `w[e] · x[r]` for each expert `e` that row `r` goes to. Weights of
    /// experts that no row goes to are not read.
    ///
    /// `x [rows, k]`, `w [num_experts * 2 * intermediate, k]`: each expert's gates and what
    /// they gate on top of each other; `intermediate` is a multiple of 16.
    /// `out [rows, top_k * intermediate]`: a vector for each choice, in the order of experts
    /// and not of rows, which is for [`Ops::experts_add`] to know.
    ///
    /// # Errors
    /// Shapes that do not fit, routes of another number of rows.
    fn experts_gated(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        routes: &Self::Routes,
        w: &Self::Matrix,
        activation: Activation,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// `out[r] += Σ weight * w[e] · x`, over the experts `e` that row `r` goes to and what
    /// each counts for, in the order of the row's choices, the likeliest first.
    ///
    /// `x [rows, top_k * k]` as [`Ops::experts_gated`] left it, `w [num_experts * n, k]`,
    /// `scratch [rows, top_k * n]`, `out [rows, n]`; `n` is a multiple of 16.
    ///
    /// # Errors
    /// Shapes that do not fit, routes of another number of rows.
    fn experts_add(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        routes: &Self::Routes,
        w: &Self::Matrix,
        scratch: &mut Self::Buffer,
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
        step: &Self::Step,
        params: &AttentionParams,
        rope: &Self::Vector,
        qk_norm: Option<(&Self::Vector, &Self::Vector, f32)>,
        layer: usize,
        qkv: &mut Self::Buffer,
        cache: &mut Self::KvCache,
    ) -> Result<(), KernelError>;

    /// [`Ops::rope_and_cache`], without norms of heads, of the outputs of [`Ops::linear_of_normed`]
    /// of the step's rows by `w` and its bias, in one operation: Q is in `qkv`, K and V are in the
    /// cache only. False, and nothing done, where the device has none for so many rows and this
    /// weight.
    ///
    /// # Errors
    /// Shapes that do not fit, a position beyond the table.
    #[expect(clippy::too_many_arguments, reason = "an operation's operands are its contract")]
    fn rope_of_normed(
        &mut self,
        step: &Self::Step,
        params: &AttentionParams,
        x: &Self::Buffer,
        norm: (&Self::Vector, f32),
        w: (&Self::Matrix, Option<&Self::Vector>),
        rope: &Self::Vector,
        layer: usize,
        qkv: &mut Self::Buffer,
        cache: &mut Self::KvCache,
    ) -> Result<bool, KernelError> {
        let _ = (step, params, x, norm, w, rope, layer, qkv, cache);
        Ok(false)
    }

    /// Attention over the paged cache (Kwon et al., 2023) for a mixed batch of prefill
    /// chunks and decodes; every row sees what [`crate::Mask`] says. Head `h` of Q reads
    /// head `h / (num_heads / num_kv_heads)` of K and V (GQA, Ainslie et al., 2023). A
    /// block that lies wholly below what a sequence's first row sees is not read, whatever
    /// the block table has there: it may be another sequence's by now.
    ///
    /// `qkv` as [`Ops::rope_and_cache`] or [`Ops::rope_of_normed`] left it (only Q is read),
    /// `out [num_tokens, num_heads * head_dim]`. `params` and the layer's group are an
    /// [`crate::AttentionKind`] that the step was made for.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn paged_attention(
        &mut self,
        step: &Self::Step,
        params: &AttentionParams,
        layer: usize,
        qkv: &Self::Buffer,
        cache: &Self::KvCache,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// `logits[r] = cap * tanh(logits[r] / cap)`, in place; `logits [rows, vocab_size]` of
    /// [`Device::logits_buffer`].
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn soft_cap(
        &mut self,
        rows: usize,
        cap: f32,
        logits: &mut Self::Buffer,
    ) -> Result<(), KernelError>;
}

/// A shape error, unless `ok`.
fn ensure(
    ok: bool,
    op: &'static str,
    what: &'static str,
    got: impl FnOnce() -> String,
    expected: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    if ok { Ok(()) } else { Err(KernelError::Shape { op, what, got: got(), expected: expected() }) }
}

/// The error of layers that attend in no way that the step was made for.
pub(crate) fn unknown_kind(
    op: &'static str,
    params: &AttentionParams,
    group: usize,
) -> KernelError {
    KernelError::Shape {
        op,
        what: "the layer's way to attend",
        got: format!("{params:?} in group {group}"),
        expected: "one that the step was made for".to_owned(),
    }
}
