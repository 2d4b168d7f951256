//! How many KV-cache blocks there is room for.

use sconce_kernels::{
    BLOCK_SIZE, Backend, KernelError, KvLayout, StepLimits, StepPlan, ops::sampling::SampleRequest,
};

use crate::forward::Forward;

/// KV-cache memory on a CPU where none was asked for, at most.
const DEFAULT_CPU_BYTES: u64 = 4 << 30;
/// Share of the memory now available that the default may take.
const DEFAULT_CPU_SHARE: f64 = 0.4;

/// The number of blocks to allocate: what `asked` bytes hold, or by default
/// what is reasonable for this machine; never more than `useful_blocks`, which
/// all slots together could fill.
pub(crate) fn num_blocks(asked: Option<u64>, block_bytes: usize, useful_blocks: usize) -> usize {
    let bytes = asked.unwrap_or_else(default_bytes);
    let blocks = usize::try_from(bytes / block_bytes as u64).unwrap_or(usize::MAX);
    if asked.is_some() { blocks } else { blocks.min(useful_blocks) }
}

/// Computes a step, so that all that steps take is allocated, the KV cache apart: one as
/// large as the limits allow where the device has memory of its own, else one of a row.
/// Returns the bytes that such a device has left for the cache.
pub(crate) fn profile_kv_memory<B: Backend>(
    forward: &mut Forward<B>,
    (layout, limits): (&KvLayout, &StepLimits),
    utilization: f64,
) -> Result<Option<u64>, KernelError> {
    let has_memory = forward.backend.memory_info()?.is_some();
    let StepLimits { max_num_batched_tokens, max_num_seqs, max_model_len } = *limits;
    let (mut left, max_seqs) =
        if has_memory { (max_num_batched_tokens, max_num_seqs) } else { (1, 1) };
    // All sequences write to the same blocks: the results are not used.
    let longest = max_model_len.min(left);
    let blocks: Vec<u32> = (0..).take(longest.div_ceil(BLOCK_SIZE)).collect();
    let tokens = vec![0; longest];
    let mut plan = StepPlan::new(layout.num_groups);
    for slot in (0..).take(max_seqs) {
        let len = left.min(longest);
        if len == 0 {
            break;
        }
        for group in (0..).take(layout.num_groups) {
            plan.edit_table(group, slot, 0, &blocks);
        }
        plan.push(slot, &tokens[..len], 0, &vec![&blocks[..]; layout.num_groups]);
        left -= len;
    }
    let num_rows = plan.num_tokens().min(max_num_seqs);
    plan.logit_rows.extend((0..).take(num_rows));
    let table_bytes = layout.table_bytes(limits) as u64;
    let layout = KvLayout { num_blocks: blocks.len(), ..layout.clone() };
    let mut cache = forward.backend.kv_cache(&layout, limits)?;
    let hidden = forward.hidden(&mut plan, &mut cache)?;
    let logits = forward.logits(&mut cache, &hidden, 0..num_rows)?;
    let requests = vec![SampleRequest::default(); num_rows];
    forward.sample(logits, &requests, &mut Vec::new())?;
    forward.freeze();
    drop(cache);
    let free = free_below(&forward.backend, utilization)?;
    Ok(free.map(|free| free.saturating_sub(table_bytes)))
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
