//! What is said where a device's memory does not hold what it should: what was asked for,
//! what there is, and which flags would fit it.

use std::path::Path;

use sconce_kernels::{KernelError, cuda::CudaLimits};
use sconce_models::{ModelError, ModelShape};

use crate::LoadError;

/// How far loading was when memory ran out.
#[derive(Clone, Copy)]
pub(crate) enum Stage {
    /// What a device takes for itself, sized from the limits.
    #[cfg(feature = "cuda")]
    Device,
    /// The weights of a checkpoint of so many bytes.
    Weights { checkpoint_bytes: u64 },
    /// What a step computes in, where there are `room` bytes for it beside the KV cache.
    Step { room: u64, shape: ModelShape, limits: CudaLimits },
    /// The KV cache.
    Cache,
}

impl Stage {
    /// What the device was to hold.
    fn what(&self) -> &'static str {
        match self {
            #[cfg(feature = "cuda")]
            Self::Device => "everything",
            Self::Weights { .. } => "the weights and what follows",
            Self::Step { .. } => "what a step computes in and the KV cache",
            Self::Cache => "the KV cache",
        }
    }

    /// Which flags take less, as far as possible with values that fit `free` bytes.
    fn advice(&self, free: u64) -> String {
        match self {
            #[cfg(feature = "cuda")]
            Self::Device => "smaller --max-num-batched-tokens, --max-num-seqs or --max-model-len \
                             take less"
                .to_owned(),
            Self::Weights { checkpoint_bytes } => format!(
                "the weights are {checkpoint_bytes} bytes in all, which no limit makes less: a \
                 smaller model would fit, and --device cpu has the machine's memory"
            ),
            Self::Step { room, shape, limits } => match fitting_step(*room, shape, limits) {
                Some((tokens, seqs)) => {
                    format!("--max-num-batched-tokens {tokens} --max-num-seqs {seqs} should fit")
                }
                None => "no step fits beside these weights and one context: a smaller \
                         --max-model-len or --kv-cache-memory-bytes may, a smaller model would, \
                         and --device cpu has the machine's memory"
                    .to_owned(),
            },
            Self::Cache => format!(
                "--kv-cache-memory-bytes {}M would fit, and smaller --max-num-batched-tokens or \
                 --max-num-seqs leave more",
                // Memory is given out in pieces of up to 2 MiB.
                (free / 32 * 31) >> 20
            ),
        }
    }
}

/// An error, where the device had too little with what it had (free and total bytes) when
/// the stage began, and what would fit it.
pub(crate) fn explain(
    error: LoadError,
    memory: Option<(usize, usize)>,
    stage: &Stage,
) -> LoadError {
    match (error, memory) {
        (
            LoadError::Kernel(KernelError::OutOfMemory { what, bytes })
            | LoadError::Model(ModelError::Kernel(KernelError::OutOfMemory { what, bytes })),
            Some((free, total)),
        ) => LoadError::NoMemory {
            what,
            bytes,
            free,
            total,
            stage: stage.what(),
            advice: stage.advice(free as u64),
        },
        (error, _) => error,
    }
}

/// Bytes of a checkpoint's files; of what cannot be read, none.
pub(crate) fn checkpoint_bytes(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let weights = files.filter(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        name.starts_with("model") && name.ends_with(".safetensors")
    });
    // Through links: a cache's files are links to its blobs.
    weights.filter_map(|file| Some(std::fs::metadata(file.path()).ok()?.len())).sum()
}

/// The largest step, in tokens and sequences, of halves of the limits that fits the room.
fn fitting_step(room: u64, shape: &ModelShape, limits: &CudaLimits) -> Option<(usize, usize)> {
    let CudaLimits { max_num_batched_tokens, max_num_seqs, .. } = *limits;
    let halves = (1..usize::BITS)
        .map(|times| (max_num_batched_tokens >> times, (max_num_seqs >> times).max(1)));
    halves
        .take_while(|&(tokens, _)| tokens > 0)
        .find(|&(tokens, seqs)| step_bytes(shape, tokens, seqs) <= room)
}

/// About what a step computes in, in 16 bits: a quarter is for what grows with it otherwise.
fn step_bytes(shape: &ModelShape, tokens: usize, seqs: usize) -> u64 {
    let &ModelShape { hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, .. } =
        shape;
    // The residual stream, the same normed; Q, K and V, what was attended; gates, what they
    // gate, and both together.
    let of_token = 2 * hidden_size + 2 * (num_heads + num_kv_heads) * head_dim;
    let of_token = 2 * (of_token + 3 * intermediate_size);
    let of_seq = 2 * 2 * hidden_size + 4 * shape.vocab_size;
    (tokens * of_token + seqs * of_seq) as u64 / 4 * 5
}
