//! How many KV-cache blocks there is room for.

use sconce_kernels::{
    Backend, ForwardBatch, KernelError, KvLayout, cuda::CudaLimits, ops::sampling::SampleRequest,
};
use sconce_models::{CausalLm, Workspace};

/// KV-cache memory on a CPU where none was asked for, at most.
const DEFAULT_CPU_BYTES: u64 = 4 << 30;
/// Share of the memory now available that the default may take.
const DEFAULT_CPU_SHARE: f64 = 0.4;

/// The number of blocks to allocate: what `asked` bytes hold, or by default
/// what is reasonable for this machine; never more than `useful_blocks`, which
/// all seats together could fill.
pub(crate) fn num_blocks(asked: Option<u64>, block_bytes: usize, useful_blocks: usize) -> usize {
    let bytes = asked.unwrap_or_else(default_bytes);
    let blocks = usize::try_from(bytes / block_bytes as u64).unwrap_or(usize::MAX);
    if asked.is_some() { blocks } else { blocks.min(useful_blocks) }
}

/// Bytes that a device with memory of its own has left for the KV cache, once
/// everything else that a step takes is allocated; `None` for other devices. To find
/// out, it computes a step as large as the limits allow.
pub(crate) fn left_for_cache<B: Backend>(
    backend: &mut B,
    model: &dyn CausalLm<B>,
    workspace: &mut Workspace<B>,
    (layout, limits): (KvLayout, CudaLimits),
    utilization: f64,
) -> Result<Option<u64>, KernelError> {
    if backend.memory_info()?.is_none() {
        return Ok(None);
    }
    let CudaLimits { max_num_batched_tokens, max_num_seqs, max_model_len } = limits;
    // All sequences write to the same blocks: nobody reads the result.
    let longest = max_model_len.min(max_num_batched_tokens);
    let blocks: Vec<u32> = (0..).take(longest.div_ceil(16)).collect();
    let tokens = vec![0; longest];
    let mut batch = ForwardBatch::default();
    let mut left = max_num_batched_tokens;
    while left > 0 && batch.num_seqs() < max_num_seqs {
        let len = left.min(longest);
        batch.push(&tokens[..len], 0, &blocks);
        left -= len;
    }
    let mut cache = backend.kv_cache(KvLayout { num_blocks: blocks.len(), ..layout })?;
    model.forward(backend, &batch, &mut cache, workspace)?;
    let num_rows = batch.num_tokens().min(max_num_seqs);
    let rows: Vec<u32> = (0..).take(num_rows).collect();
    model.logits(backend, &rows, workspace)?;
    let requests = vec![SampleRequest::default(); num_rows];
    backend.sample(&mut workspace.logits, &requests, &mut Vec::new())?;
    drop(cache);
    free_below(backend, utilization)
}

/// Bytes that a device with memory of its own has free, less the share of it that is to be
/// left to others; `None` for other devices.
pub(crate) fn free_below<B: Backend>(
    backend: &B,
    utilization: f64,
) -> Result<Option<u64>, KernelError> {
    Ok(backend.memory_info()?.map(|(free, total)| {
        let others = (total as f64 * (1.0 - utilization)) as u64;
        (free as u64).saturating_sub(others)
    }))
}

fn default_bytes() -> u64 {
    let available = available_bytes().unwrap_or(DEFAULT_CPU_BYTES);
    DEFAULT_CPU_BYTES.min((available as f64 * DEFAULT_CPU_SHARE) as u64)
}

/// What the kernel says could be had without swapping; Linux only.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::num_blocks;

    #[test]
    fn an_asked_size_is_taken_at_its_word_and_the_default_is_capped_by_use() {
        assert_eq!(num_blocks(Some(10_000), 1_000, 5), 10);
        assert_eq!(num_blocks(None, 1_000, 5), 5);
        assert_eq!(num_blocks(Some(999), 1_000, 5), 0);
    }
}
