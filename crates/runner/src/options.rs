//! What to load and where, and why it may not be done.

use std::path::PathBuf;

use sconce_kernels::{CacheDtype, Dtype, KernelError, cpu::Isa};
use sconce_models::ModelError;

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device, if this build has CUDA and there is one; else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The first CUDA device.
    Cuda,
}

/// What weights become when they are loaded, other than their dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 8-bit integers with one scale for each output, in every matrix, the
    /// embedding and output included; inputs are quantized token by token
    /// ([`sconce_kernels::WeightDtype::Int8`]). On CPUs.
    Int8,
    /// 8-bit floats with one scale for each output, in the matrices of layers
    /// ([`sconce_kernels::WeightDtype::Fp8E4m3`]); the embedding, the output over the
    /// vocabulary and the choice of experts are left as they are. On CUDA devices.
    Fp8,
}

/// What to load, and the limits that everything is sized for.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// A directory in Hugging Face's form.
    pub dir: PathBuf,
    /// Where it runs.
    pub device: DeviceChoice,
    /// The dtype it computes in; bf16 if not given.
    pub dtype: Option<Dtype>,
    /// How weights are quantized; if not given, they are not.
    pub quantization: Option<Quantization>,
    /// The dtype of the KV cache; `dtype` if not given.
    pub kv_cache_dtype: Option<CacheDtype>,
    /// Tokens of prompt and output; the model's own limit if not given.
    pub max_model_len: Option<usize>,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens computed in one step; 512 on a CPU and 2,048 on a GPU if not given.
    pub max_num_batched_tokens: Option<usize>,
    /// KV-cache memory in bytes; a default for the machine if not given.
    pub kv_cache_memory_bytes: Option<u64>,
    /// The share of a GPU's memory that everything together may take.
    pub gpu_memory_utilization: f64,
    /// Whether no steps are recorded as CUDA graphs on a GPU.
    pub enforce_eager: bool,
    /// Whether the first tokens that decodes have in common in the prefix cache are read once for
    /// all of them, where a GPU gains by it.
    pub cascade_attn: bool,
    /// The sequences of the decode steps that are recorded; if not given 1, 2, 4, 8 and every
    /// eighth up to `max_num_seqs`, at most 256. A step of fewer is padded to the next.
    pub cuda_graph_sizes: Option<Vec<usize>>,
    /// Whether a step is launched on a GPU before the one before it is read back, which hides
    /// what the host does between steps. On a CPU there is one step at a time.
    pub async_scheduling: bool,
    /// Threads that compute on a CPU; one a core if not given.
    pub threads: Option<usize>,
    /// The highest level of a CPU's instructions to use; all that it has if not given.
    pub cpu_isa: Option<Isa>,
    /// Whether no token's numbers may depend on what is computed beside it, on a GPU at the
    /// cost of speed; on a CPU they never do.
    pub deterministic: bool,
    /// Where it is kept which forms of operations a GPU computes right, and fastest; without it
    /// none are tried.
    pub forms_dir: Option<PathBuf>,
}

impl LoadOptions {
    /// The defaults for a model's directory.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            device: DeviceChoice::Auto,
            dtype: None,
            quantization: None,
            kv_cache_dtype: None,
            max_model_len: None,
            max_num_seqs: 256,
            max_num_batched_tokens: None,
            kv_cache_memory_bytes: None,
            gpu_memory_utilization: 0.9,
            enforce_eager: false,
            cascade_attn: true,
            cuda_graph_sizes: None,
            async_scheduling: true,
            threads: None,
            cpu_isa: None,
            deterministic: false,
            forms_dir: None,
        }
    }

    /// Refuses limits that nothing could run under.
    pub(crate) fn check(&self) -> Result<(), LoadError> {
        for (name, limit) in [
            ("max_model_len", self.max_model_len.unwrap_or(1)),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens.unwrap_or(1)),
        ] {
            if limit == 0 {
                return Err(LoadError::ZeroLimit { name });
            }
        }
        let share = self.gpu_memory_utilization;
        if !(share > 0.0 && share <= 1.0) {
            return Err(LoadError::MemoryUtilization { asked: share });
        }
        Ok(())
    }
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
    /// There is no such device here.
    #[error("no CUDA device can be used: {reason}; --device cpu runs without one")]
    NoDevice {
        /// What stands in the way.
        reason: String,
    },
    /// There is a device, but it cannot be used.
    #[error("the CUDA device cannot be used: {error}; --device cpu runs without it")]
    Device {
        /// What stands in the way.
        error: KernelError,
    },
    /// The device's memory does not hold what the model and its limits take.
    #[error(
        "out of memory: of the device's {total} bytes {free} were free for {stage}, where {what} \
         of {bytes} bytes had no more room; {advice}; other processes that are ended leave more \
         (nvidia-smi shows them)"
    )]
    NoMemory {
        /// What was to be allocated.
        what: String,
        /// Its size.
        bytes: usize,
        /// Bytes that were free for the stage of loading.
        free: usize,
        /// Bytes that the device has.
        total: usize,
        /// What the stage was to place.
        stage: &'static str,
        /// Which flags would fit it.
        advice: String,
    },
    /// Layers whose keys and values are of different sizes.
    #[error(
        "a layer's keys and values have {} heads of {}, and another's {} of {}: models are served \
         whose layers are alike in that", first.0, first.1, other.0, other.1
    )]
    UnlikeCacheLayers {
        /// Heads of K and V of the first layer, and elements of a head.
        first: (usize, usize),
        /// Those of the other.
        other: (usize, usize),
    },
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
        "the KV cache has room for {tokens} tokens, but max_model_len is \
         {max_model_len}{}; that context takes {needed_bytes} bytes (--kv-cache-memory-bytes, or on \
         a GPU a larger --gpu-memory-utilization, or smaller --max-num-batched-tokens and \
         --max-num-seqs beside it)", shorter_context(*tokens)
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
    /// A recorded step that no step could be.
    #[error(
        "cuda_graph_sizes has {size}, but a step has 1 to {most} sequences (max_num_seqs and \
         max_num_batched_tokens)"
    )]
    GraphSize {
        /// What was asked for.
        size: usize,
        /// Sequences of the largest step.
        most: usize,
    },
    /// A device that records steps did not record one.
    #[error("the decode steps were not recorded: {error}; --enforce-eager runs without that")]
    Graphs {
        /// Why.
        error: KernelError,
    },
    /// No share of memory.
    #[error("gpu_memory_utilization is {asked}, but must be above 0 and at most 1")]
    MemoryUtilization {
        /// What was asked for.
        asked: f64,
    },
}

/// A context that there is room for, if there is one: a token of prompt and one of output.
fn shorter_context(tokens: usize) -> String {
    if tokens < 2 { String::new() } else { format!("; --max-model-len {tokens} would fit") }
}
