//! What every model is to its runner.

use std::{ops::Range, path::Path};

use sconce_kernels::{AttentionParams, Backend, KernelError, WeightDtype};

use crate::{
    ModelConfig, ModelError,
    llama::Llama,
    shards,
    weights::{Checker, Packer, Vocabulary},
};

/// The sizes that caches and workspaces follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Transformer layers.
    pub num_layers: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Elements between the feed-forward layer's projections.
    pub intermediate_size: usize,
    /// Heads of Q.
    pub num_heads: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
}

/// A causal language model on a backend.
pub trait CausalLm<B: Backend>: Send {
    /// Its sizes.
    fn shape(&self) -> &ModelShape;

    /// How its layers attend.
    fn attention(&self) -> &AttentionParams;

    /// Computes a staged step of so many rows: writes its keys and values into the cache, and leaves
    /// the hidden state of every row, before the final norm, in
    /// `workspace.hidden`.
    ///
    /// # Errors
    /// The backend failed, or the batch exceeds the workspace.
    fn forward(
        &self,
        backend: &mut B,
        step: &B::Step,
        rows: usize,
        cache: &mut B::KvCache,
        workspace: &mut Workspace<B>,
    ) -> Result<(), KernelError>;

    /// Logits of a range of the step's rows that get logits, after [`CausalLm::forward`],
    /// into `workspace.logits` `[range.len(), vocab_size]`.
    ///
    /// # Errors
    /// The backend failed, or there are more rows than the workspace holds.
    fn logits(
        &self,
        backend: &mut B,
        step: &B::Step,
        range: Range<usize>,
        workspace: &mut Workspace<B>,
    ) -> Result<(), KernelError>;
}

/// The buffers of a step, allocated once.
pub struct Workspace<B: Backend> {
    /// `[max_num_tokens, hidden_size]`: the residual stream.
    pub hidden: B::Buffer,
    /// `[max_num_tokens, hidden_size]`
    pub(crate) normed: B::Buffer,
    /// `[max_num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`
    pub(crate) qkv: B::Buffer,
    /// `[max_num_tokens, num_heads * head_dim]`
    pub(crate) attended: B::Buffer,
    /// `[max_num_tokens, intermediate_size]`
    pub(crate) activated: B::Buffer,
    /// `[max_num_tokens, 2 * intermediate_size]`, where the backend needs it.
    pub(crate) gate_up: Option<B::Buffer>,
    /// `[max_logit_rows, hidden_size]`
    pub(crate) last_hidden: B::Buffer,
    /// `[max_logit_rows, hidden_size]`
    pub(crate) last_normed: B::Buffer,
    /// `[max_logit_rows, vocab_size]`
    pub logits: B::Buffer,
}

impl<B: Backend> Workspace<B> {
    /// Buffers for steps of at most `max_num_tokens` rows, of which at most
    /// `max_logit_rows` at a time get logits.
    ///
    /// # Errors
    /// No memory.
    pub fn new(
        backend: &B,
        shape: &ModelShape,
        max_num_tokens: usize,
        max_logit_rows: usize,
    ) -> Result<Self, KernelError> {
        let ModelShape { hidden_size, intermediate_size, num_heads, num_kv_heads, .. } = *shape;
        let qkv = (num_heads + 2 * num_kv_heads) * shape.head_dim;
        let rows = |cols| backend.buffer(max_num_tokens, cols);
        let scratch = Some(backend.gated_scratch_cols(2 * intermediate_size));
        let last = |cols| backend.buffer(max_logit_rows, cols);
        Ok(Self {
            hidden: rows(hidden_size)?,
            normed: rows(hidden_size)?,
            qkv: rows(qkv)?,
            attended: rows(num_heads * shape.head_dim)?,
            activated: rows(intermediate_size)?,
            gate_up: scratch.filter(|&cols| cols > 0).map(rows).transpose()?,
            last_hidden: last(hidden_size)?,
            last_normed: last(hidden_size)?,
            logits: backend.logits_buffer(max_logit_rows, shape.vocab_size)?,
        })
    }
}

/// A model as [`load`] made it.
pub struct Loaded<B: Backend> {
    /// The model.
    pub model: Box<dyn CausalLm<B>>,
    /// Bytes of its matrices in the backend's layout; vectors are not counted.
    pub weight_bytes: usize,
    /// What a person should know of the checkpoint, a line each.
    pub warnings: Vec<String>,
}

/// Loads the model of a directory whose config.json was read, for contexts of
/// at most `max_positions`. Every matrix becomes one of `dtype`, the embedding
/// and output too. `progress` is told the tensors loaded and all of them.
///
/// # Errors
/// A checkpoint that is damaged or does not fit its configuration; everything
/// that is missing, misshapen or not used is named at once.
pub fn load<B: Backend + 'static>(
    dir: &Path,
    config: &ModelConfig,
    backend: &B,
    dtype: WeightDtype,
    max_positions: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Loaded<B>, ModelError> {
    let files = shards::open(dir)?;
    let vocabulary = Vocabulary::of(config, &files);
    let mut checker = Checker::new(&files);
    Llama::build(config, &vocabulary, max_positions, &mut checker)?;
    let (order, unused) = checker.finish(&vocabulary)?;
    let warnings = vocabulary.warning().into_iter().chain(unused).collect();
    let mut packer = Packer::new(files, order, backend, dtype, progress);
    let model = Llama::build(config, &vocabulary, max_positions, &mut packer)?;
    Ok(Loaded { model: Box::new(model), weight_bytes: packer.bytes(), warnings })
}
