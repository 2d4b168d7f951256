//! The table that the CUDA kernels' machine code is held against says what launches ask for.

use sconce_kernels::cuda::{AttentionPlan, SAMPLE_SHARED_BYTES};

const BOUNDS: &str = include_str!("../../cuda/bounds");

/// Whether a name is of a pattern, in which `*` is any text.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            (0..=name.len()).any(|at| name.get(at..).is_some_and(|end| matches(rest, end)))
        }),
    }
}

/// A launch's dynamic shared memory by the table: of the lines that match, the last counts.
fn dynamic_shared(kernel: &str) -> Option<usize> {
    let lines = BOUNDS.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut of_kernel = lines.filter_map(|words| match words[..] {
        [pattern, "*", "dynamic_shared", "=", bytes] if matches(pattern, kernel) => {
            bytes.parse().ok()
        }
        _ => None,
    });
    of_kernel.next_back()
}

#[test]
fn the_shared_memory_of_attention_is_what_its_plan_asks_for() {
    for head_dim in [64, 80, 96, 128, 256] {
        for (cache, cache_bytes) in [("bf16", 2), ("f16", 2), ("bf16_e4m3", 1), ("f16_e4m3", 1)] {
            let bytes = AttentionPlan::prompt_shared_bytes(head_dim, cache_bytes);
            for stem in ["prefill_attention", "prefix_attention"] {
                let kernel = format!("{stem}_{cache}_d{head_dim}");
                assert_eq!(dynamic_shared(&kernel), Some(bytes), "{kernel}");
            }
            for columns in [8, 16] {
                let kernel = format!("decode_attention_{cache}_d{head_dim}_r{columns}");
                let bytes = AttentionPlan::decode_shared_bytes(head_dim, cache_bytes, columns);
                assert_eq!(dynamic_shared(&kernel), Some(bytes), "{kernel}");
            }
        }
    }
    for head_dim in [64, 128, 256] {
        for stem in ["prefill_groups", "prefill_bulk"] {
            let kernel = format!("{stem}_bf16_d{head_dim}");
            let bytes = AttentionPlan::groups_shared_bytes(head_dim);
            assert_eq!(dynamic_shared(&kernel), Some(bytes), "{kernel}");
        }
    }
    assert_eq!(dynamic_shared("rms_norm_bf16"), None);
}

#[test]
fn the_shared_memory_of_sampling_is_what_its_launches_ask_for() {
    for kernel in ["sampling", "sampling_rest", "token_logprobs", "token_logprobs_rest"] {
        assert_eq!(dynamic_shared(kernel), Some(SAMPLE_SHARED_BYTES), "{kernel}");
    }
}
