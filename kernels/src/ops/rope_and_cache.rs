//! Rotary embedding of Q and K, and the write of K and V into the cache.
#![expect(
    unsafe_code,
    reason = "tasks write disjoint heads of rows and of blocks"
)]

use super::ensure;
use crate::{
    AttentionParams, ForwardBatch, KernelError,
    cpu::{self, Cpu, CpuBuffer, CpuKvCache, SharedMut},
};

/// Heads of this many floats at most are normed on the stack.
const MAX_HEAD_DIM: usize = 512;

#[expect(
    clippy::too_many_arguments,
    reason = "an operation's operands are its contract"
)]
pub(crate) fn rope_and_cache(
    cpu: &Cpu,
    batch: &ForwardBatch,
    params: &AttentionParams,
    rope: &[f32],
    qk_norm: Option<(&[f32], &[f32], f32)>,
    layer: usize,
    qkv: &mut CpuBuffer,
    cache: &mut CpuKvCache,
) -> Result<(), KernelError> {
    const OP: &str = "rope_and_cache";
    let AttentionParams {
        num_heads,
        num_kv_heads,
        head_dim,
        ..
    } = *params;
    let rows = batch.num_tokens();
    let cols = (num_heads + 2 * num_kv_heads) * head_dim;
    qkv.check(OP, "qkv", rows, cols)?;
    super::paged_attention::check_cache(OP, params, layer, cache)?;
    let max_positions = rope.len() / head_dim;
    let position = batch.positions.iter().copied().max().unwrap_or(0) as usize;
    ensure(
        position < max_positions.max(usize::from(rows == 0)),
        OP,
        "a position",
        || position.to_string(),
        || format!("below the table's {max_positions}"),
    )?;
    let num_slots = cache.layout().num_blocks * cpu::LANES;
    let slot = batch.slot_mapping.iter().copied().max().unwrap_or(0) as usize;
    ensure(
        slot < num_slots,
        OP,
        "a slot",
        || slot.to_string(),
        || format!("below the cache's {num_slots}"),
    )?;
    if let Some((q, k, _)) = qk_norm {
        let fits = q.len() == head_dim && k.len() == head_dim && head_dim <= MAX_HEAD_DIM;
        let got = || format!("[{}] and [{}]", q.len(), k.len());
        ensure(fits, OP, "qk_norm", got, || {
            format!("[{head_dim}], at most {MAX_HEAD_DIM}")
        })?;
    }
    let writer = cache.writer();
    let qkv = SharedMut::new(qkv.rows_mut(rows));
    // A task has a KV head of every row: rows that share a block stay together.
    let group = num_heads / num_kv_heads;
    cpu.pool.run(num_kv_heads, &|_, kv_head| {
        for row in 0..rows {
            let table = &rope[batch.positions[row] as usize * head_dim..][..head_dim];
            let (cos, sin) = table.split_at(head_dim / 2);
            let turn = |head: &mut [f32], weight: Option<(&[f32], f32)>| {
                if let Some((weight, eps)) = weight {
                    let mut normed = [0.0; MAX_HEAD_DIM];
                    cpu::rms_norm(cpu.isa, head, weight, eps, &mut normed[..head_dim]);
                    head.copy_from_slice(&normed[..head_dim]);
                }
                cpu::rotate_half(cpu.isa, head, cos, sin);
            };
            let start = row * cols;
            for head in kv_head * group..(kv_head + 1) * group {
                // SAFETY: each Q head belongs to one task.
                let q = unsafe { qkv.slice(start + head * head_dim, head_dim) };
                turn(q, qk_norm.map(|(weight, _, eps)| (weight, eps)));
            }
            let k_start = start + (num_heads + kv_head) * head_dim;
            let v_start = k_start + num_kv_heads * head_dim;
            // SAFETY: each K and V head belongs to one task.
            let (k, v) = unsafe { (qkv.slice(k_start, head_dim), qkv.slice(v_start, head_dim)) };
            turn(k, qk_norm.map(|(_, weight, eps)| (weight, eps)));
            // SAFETY: each KV head of the cache belongs to one task.
            unsafe { writer.write(layer, batch.slot_mapping[row] as usize, kv_head, k, v) };
        }
    });
    Ok(())
}
