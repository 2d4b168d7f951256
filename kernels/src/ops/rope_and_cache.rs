//! Rotary embedding of Q and K, and the write of K and V into the cache.
#![expect(unsafe_code, reason = "tasks write disjoint rows, and disjoint heads of blocks")]

use super::ensure;
use crate::{
    AttentionParams, KernelError,
    cpu::{self, Cpu, CpuBuffer, CpuKvCache, CpuStep, KeyOrValue, SharedMut},
};

/// Heads of this many floats at most are normed on the stack.
const MAX_HEAD_DIM: usize = 512;
/// Fewer rows than this are not worth another task.
const MIN_ROWS: usize = 4;

#[expect(clippy::too_many_arguments, reason = "an operation's operands are its contract")]
pub(crate) fn rope_and_cache(
    cpu: &Cpu,
    step: &CpuStep,
    params: &AttentionParams,
    rope: &[f32],
    qk_norm: Option<(&[f32], &[f32], f32)>,
    layer: usize,
    qkv: &mut CpuBuffer,
    cache: &mut CpuKvCache,
) -> Result<(), KernelError> {
    const OP: &str = "rope_and_cache";
    let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
    let rows = step.sizes.num_tokens;
    let cols = (num_heads + 2 * num_kv_heads) * head_dim;
    qkv.check(OP, "qkv", rows, cols)?;
    let group = super::paged_attention::fitting_layer(OP, params, layer, cache)?.shape().group;
    step.sizes.check_positions(OP, rope.len() / head_dim)?;
    let kv_slots = &step.plan.kv_slots[group];
    if let Some((q, k, _)) = qk_norm {
        let fits = q.len() == head_dim && k.len() == head_dim && head_dim <= MAX_HEAD_DIM;
        let got = || format!("[{}] and [{}]", q.len(), k.len());
        ensure(fits, OP, "qk_norm", got, || format!("[{head_dim}], at most {MAX_HEAD_DIM}"))?;
    }
    let group_rows = rows.div_ceil(cpu.pool.num_threads() * 2).max(MIN_ROWS);
    {
        let qkv = SharedMut::new(qkv.rows_mut(rows));
        cpu.pool.run(rows.div_ceil(group_rows), &|_, task| {
            for row in task * group_rows..((task + 1) * group_rows).min(rows) {
                let table = &rope[step.plan.positions[row] as usize * head_dim..][..head_dim];
                // SAFETY: each row belongs to one task.
                let heads = unsafe { qkv.slice(row * cols, (num_heads + num_kv_heads) * head_dim) };
                let (q, k) = heads.split_at_mut(num_heads * head_dim);
                apply_rope(cpu, q, table, qk_norm.map(|(weight, _, eps)| (weight, eps)));
                apply_rope(cpu, k, table, qk_norm.map(|(_, weight, eps)| (weight, eps)));
            }
        });
    }
    // A task has K or V of one head, of all rows: rows that share a block stay
    // together.
    let writer = cache.writer(layer);
    let parts = 2 * num_kv_heads;
    let parts_per_task = if rows > MIN_ROWS { 1 } else { parts };
    cpu.pool.run(parts.div_ceil(parts_per_task), &|_, task| {
        for part in task * parts_per_task..(task + 1) * parts_per_task {
            let start = (num_heads + part) * head_dim;
            let (which, head) = match part.checked_sub(num_kv_heads) {
                None => (KeyOrValue::Key, part),
                Some(head) => (KeyOrValue::Value, head),
            };
            for (row, &slot) in kv_slots.iter().enumerate() {
                let x = &qkv.row(row)[start..start + head_dim];
                // SAFETY: each head's K, and V, belongs to one task.
                unsafe { writer.write(slot as usize, which, head, x) };
            }
        }
    });
    Ok(())
}

/// Norms, where there is a weight and an epsilon, and rotates heads of one row.
fn apply_rope(cpu: &Cpu, heads: &mut [f32], table: &[f32], norm: Option<(&[f32], f32)>) {
    let (cos, sin) = table.split_at(table.len() / 2);
    for head in heads.chunks_exact_mut(table.len()) {
        if let Some((weight, eps)) = norm {
            let mut normed = [0.0; MAX_HEAD_DIM];
            let normed = &mut normed[..head.len()];
            cpu::rms_norm(cpu.isa, head, weight, eps, normed);
            head.copy_from_slice(normed);
        }
        cpu::rotate_half(cpu.isa, head, cos, sin);
    }
}
