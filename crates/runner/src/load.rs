//! From a model directory to a ready runner.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sconce_kernels::{
    Backend, Dtype, KernelError, KvLayout, WeightDtype,
    cpu::{Cpu, CpuConfig},
};
use sconce_models::{Loaded, ModelConfig, ModelError, Workspace};

use crate::{ModelRunner, memory};

/// What weights become when they are loaded, other than their dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8-bit integers with one scale for each output, in every matrix, the
    /// embedding and output included; inputs are quantized token by token
    /// ([`WeightDtype::Int8`]).
    Int8,
}

/// What to load, and the limits that everything is sized for.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// A directory in Hugging Face's form.
    pub dir: PathBuf,
    /// The dtype of weights and KV cache; bf16 if not given.
    pub dtype: Option<Dtype>,
    /// How weights are quantized; if not given, they are not. The KV cache is
    /// of `dtype` either way.
    pub quantization: Option<Quantization>,
    /// Tokens of prompt and output; the model's own limit if not given.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens computed in one step.
    pub max_num_batched_tokens: usize,
    /// KV-cache memory in bytes; a default for the machine if not given.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Threads that compute; one a core if not given.
    pub threads: Option<usize>,
}

/// Why a model did not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The backend refused, usually for memory.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// More context asked for than the model has.
    #[error("max_model_len is {asked}, but the model's context holds {limit} tokens")]
    MaxModelLen {
        /// What was asked for.
        asked: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// The cache would not hold a single sequence.
    #[error(
        "the KV cache has room for {tokens} tokens, but max_model_len is {max_model_len}; give it \
         at least {needed_bytes} bytes (--kv-cache-memory-bytes) or lower --max-model-len"
    )]
    NoRoom {
        /// Tokens it would hold.
        tokens: usize,
        /// The context's size.
        max_model_len: usize,
        /// Bytes that one full context takes.
        needed_bytes: usize,
    },
    /// A limit that nothing could run under.
    #[error("{name} is 0, but must be at least 1")]
    ZeroLimit {
        /// The limit.
        name: &'static str,
    },
}

/// A model that is ready to run, and what a person should know of it.
pub struct LoadedModel {
    /// The executor.
    pub runner: ModelRunner<Cpu>,
    /// The device, in words.
    pub device: String,
    /// The architecture's name.
    pub architecture: String,
    /// The dtype of the cache, and of weights that are not quantized.
    pub dtype: Dtype,
    /// How weights are quantized, if they are.
    pub quantization: Option<Quantization>,
    /// Bytes of the matrices among the weights.
    pub weight_bytes: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Tokens of prompt and output.
    pub max_model_len: usize,
    /// Blocks in the KV cache.
    pub num_blocks: usize,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: usize,
    /// How long loading took.
    pub load_time: Duration,
}

/// Loads a model onto the CPU and allocates all it will ever need.
///
/// `progress` is told the tensors loaded and their number.
///
/// # Errors
/// A checkpoint that cannot be used, limits that do not fit it, no memory.
pub fn load(
    options: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LoadedModel, LoadError> {
    let started = Instant::now();
    for (name, limit) in [
        ("max_model_len", options.max_model_len.unwrap_or(1)),
        ("max_num_seqs", options.max_num_seqs),
        ("max_num_batched_tokens", options.max_num_batched_tokens),
    ] {
        if limit == 0 {
            return Err(LoadError::ZeroLimit { name });
        }
    }
    let config = ModelConfig::read(&options.dir)?;
    let limit = config.max_position_embeddings;
    let max_model_len = options.max_model_len.unwrap_or(limit);
    if max_model_len > limit {
        return Err(LoadError::MaxModelLen { asked: max_model_len, limit });
    }
    let dtype = options.dtype.unwrap_or(Dtype::Bf16);
    let backend = Cpu::new(CpuConfig { threads: options.threads, ..CpuConfig::default() });
    let weight_dtype = match options.quantization {
        None => dtype.into(),
        Some(Quantization::Int8) => WeightDtype::Int8,
    };
    let Loaded { model, weight_bytes } = sconce_models::load(
        &options.dir,
        &config,
        &backend,
        weight_dtype,
        max_model_len,
        progress,
    )?;
    let shape = model.shape();

    let mut layout = KvLayout {
        num_layers: shape.num_layers,
        num_blocks: 0,
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        dtype,
    };
    let blocks_per_seq = max_model_len.div_ceil(16);
    layout.num_blocks = memory::num_blocks(
        options.kv_cache_memory_bytes,
        layout.block_bytes(),
        blocks_per_seq.saturating_mul(options.max_num_seqs),
    );
    if layout.num_blocks < blocks_per_seq {
        return Err(LoadError::NoRoom {
            tokens: layout.num_blocks * 16,
            max_model_len,
            needed_bytes: blocks_per_seq * layout.block_bytes(),
        });
    }
    let cache = backend.kv_cache(layout)?;
    let workspace =
        Workspace::new(&backend, shape, options.max_num_batched_tokens, options.max_num_seqs)?;
    Ok(LoadedModel {
        device: backend.describe(),
        architecture: config.architecture.clone(),
        dtype,
        quantization: options.quantization,
        weight_bytes,
        vocab_size: shape.vocab_size,
        max_model_len,
        num_blocks: layout.num_blocks,
        kv_cache_bytes: layout.num_blocks * layout.block_bytes(),
        runner: ModelRunner::new(backend, model, cache, workspace, options.max_num_seqs),
        load_time: started.elapsed(),
    })
}
