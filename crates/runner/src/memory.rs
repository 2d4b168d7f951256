//! How many KV-cache blocks there is room for.

use sconce_kernels::{
    Backend, ForwardBatch, KernelError, KvLayout, cuda::CudaLimits, ops::sampling::SampleRequest,
};

use crate::forward::Forward;

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

/// Computes a step, so that all that steps take is allocated, the KV cache apart: one as
/// large as the limits allow where the device has memory of its own, else one of a row.
/// Returns the bytes that such a device has left for the cache.
pub(crate) fn left_for_cache<B: Backend>(
    forward: &mut Forward<B>,
    (layout, limits): (KvLayout, CudaLimits),
    utilization: f64,
) -> Result<Option<u64>, KernelError> {
    let has_memory = forward.backend.memory_info()?.is_some();
    let one = CudaLimits { max_num_batched_tokens: 1, max_num_seqs: 1, max_model_len: 1 };
    let CudaLimits { max_num_batched_tokens, max_num_seqs, max_model_len } =
        if has_memory { limits } else { one };
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
    let layout = KvLayout { num_blocks: blocks.len(), ..layout };
    let mut cache = forward.backend.kv_cache(layout)?;
    let hidden = forward.hidden(&batch, &mut cache)?;
    let num_rows = batch.num_tokens().min(max_num_seqs);
    let rows: Vec<u32> = (0..).take(num_rows).collect();
    let logits = forward.logits(&batch, &mut cache, &hidden, &rows)?;
    let requests = vec![SampleRequest::default(); num_rows];
    forward.sample(logits, &requests, &mut Vec::new())?;
    forward.freeze();
    drop(cache);
    Ok(forward.backend.memory_info()?.map(|(free, total)| {
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
