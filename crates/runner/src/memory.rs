//! How many KV-cache blocks there is room for.

use sconce_kernels::{
    BLOCK_SIZE, Backend, KernelError, KvLayout, StepLimits, StepPlan, ops::sampling::SampleRequest,
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
    step: &mut B::Step,
    (layout, limits): (&KvLayout, &StepLimits),
    utilization: f64,
) -> Result<Option<u64>, KernelError> {
    if backend.memory_info()?.is_none() {
        return Ok(None);
    }
    let StepLimits { max_num_batched_tokens, max_num_seqs, max_model_len } = *limits;
    // All sequences write to the same blocks: the results are not used.
    let longest = max_model_len.min(max_num_batched_tokens);
    let blocks: Vec<u32> = (0..).take(longest.div_ceil(BLOCK_SIZE)).collect();
    let tokens = vec![0; longest];
    let mut plan = StepPlan::new(layout.num_groups);
    let mut left = max_num_batched_tokens;
    for slot in (0..).take(max_num_seqs) {
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
    let mut cache = backend.kv_cache(&layout, limits)?;
    backend.stage(&plan, step, &mut cache)?;
    model.forward(backend, step, plan.num_tokens(), &mut cache, workspace)?;
    model.logits(backend, step, 0..num_rows, workspace)?;
    let requests = vec![SampleRequest::default(); num_rows];
    backend.sample(&mut workspace.logits, &requests, &mut Vec::new())?;
    drop(cache);
    Ok(backend.memory_info()?.map(|(free, total)| {
        let others = (total as f64 * (1.0 - utilization)) as u64;
        (free as u64).saturating_sub(others + table_bytes)
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
