//! A step's attention on random numbers, in memory of its own, for trials.

use super::{
    AttentionPlan, AttentionRoom, Cuda, DevicePointer, Driver, GroupTables, PagedAttention,
    attention::Attention,
    memory::{decode, encode},
    product_trials::{PERIOD, pattern},
    step::AttentionWork,
    word,
};
use crate::{AttentionParams, BLOCK_SIZE, CacheDtype, Dtype, KernelError, Mask, StepPlan};

/// Q heads of a KV head in trials.
pub(super) const GROUP: usize = 4;

/// What attention's launches of a step read and write.
pub(super) struct AttentionBatch<M> {
    pub(super) attention: Attention,
    pub(super) work: AttentionWork,
    out: M,
    out_bytes: usize,
    /// Keeps them where they are.
    _read: Vec<M>,
}

/// Attention of so many KV heads, with a scale that gives scores of a few units, so that some
/// tokens are clearly preferred.
pub(super) fn trial_params(num_kv_heads: usize, head_dim: usize) -> AttentionParams {
    AttentionParams {
        num_heads: num_kv_heads * GROUP,
        num_kv_heads,
        head_dim,
        scale: 3.0 / (head_dim as f32).sqrt(),
        mask: Mask::Causal,
        soft_cap: None,
    }
}

impl<D: Driver> Cuda<D> {
    /// Places a step whose sequences have the slots from 0 on, and these block tables, all of one
    /// length.
    pub(super) fn attention_batch(
        &self,
        params: &AttentionParams,
        cache_dtype: CacheDtype,
        step: &StepPlan,
        tables: &[Vec<u32>],
    ) -> Result<AttentionBatch<D::Memory>, KernelError> {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
        let room = AttentionRoom {
            multiprocessors: self.driver.multiprocessors(),
            max_partials: usize::MAX,
            max_decodes: usize::MAX,
        };
        let blocks_per_seq = tables.first().map_or(0, Vec::len);
        let mut plan = AttentionPlan::default();
        plan.plan(step, params, GroupTables { group: 0, first: 0, blocks_per_seq }, room);
        let size = self.dtype.size();
        let num_blocks = tables.iter().flatten().max().map_or(0, |&block| block as usize + 1);
        let cache_rows = num_blocks * 2 * num_kv_heads * BLOCK_SIZE;
        let numbers = encode(&pattern(4), self.dtype);
        // Of e4m3, numbers below 1.
        let numbers = if cache_dtype.size() == 1 {
            numbers.iter().map(|byte| byte & 0xb7).collect()
        } else {
            numbers
        };
        let rows = step.num_tokens();
        let place = |bytes: &[u8]| self.place(bytes);
        let queries = encode(&pattern(3), self.dtype);
        let q = self.place_over(&queries, rows * num_heads * head_dim * size)?;
        let cache = self.place_over(&numbers, cache_rows * head_dim * cache_dtype.size())?;
        let table = place(bytemuck::cast_slice(&tables.concat()))?;
        // Nothing is left of it where results are written.
        let nan = encode(&[f32::NAN], self.dtype);
        let out = place(&nan.repeat(rows * num_heads * head_dim))?;
        let partials = place(&vec![0; AttentionPlan::partial_bytes(head_dim, plan.num_partials)])?;
        let tickets = place(&vec![0; plan.num_tickets * size_of::<u32>()])?;
        let prompts = place(bytemuck::cast_slice(&plan.prompts))?;
        let prefixes = place(bytemuck::cast_slice(&plan.prefixes))?;
        let sharers = place(bytemuck::cast_slice(&plan.sharers))?;
        let decodes = place(bytemuck::cast_slice(&plan.decodes))?;
        let (scale, soft_cap) = AttentionPlan::score_factors(params, 1.0);
        let address = |memory: &D::Memory| self.driver.address(memory);
        let work = AttentionWork {
            prompts: (address(&prompts), plan.prompts.len()),
            prefixes: (address(&prefixes), plan.prefixes.len()),
            sharers: address(&sharers),
            decodes: (address(&decodes), plan.decodes.len()),
        };
        let params = PagedAttention {
            work: DevicePointer::NULL,
            q: address(&q),
            cache: address(&cache),
            out: address(&out),
            block_tables: address(&table),
            partials: address(&partials),
            tickets: address(&tickets),
            q_stride: word(num_heads * head_dim),
            num_kv_heads: word(num_kv_heads),
            group: word(GROUP),
            window: 0,
            scale,
            soft_cap,
            v_scale: 1.0,
            causal: 1,
        };
        let dtypes = (self.dtype, cache_dtype);
        Ok(AttentionBatch {
            attention: Attention { dtypes, head_dim, cache_rows, params },
            work,
            out,
            out_bytes: rows * num_heads * head_dim * size,
            _read: vec![q, cache, table, partials, tickets, prompts, prefixes, sharers, decodes],
        })
    }

    /// What its launches wrote.
    pub(super) fn attended(
        &self,
        batch: &AttentionBatch<D::Memory>,
    ) -> Result<Vec<f32>, KernelError> {
        let mut bytes = vec![0; batch.out_bytes];
        self.driver.download(&batch.out, &mut bytes)?;
        Ok(decode(&bytes, self.dtype))
    }
}

/// Elements of a trial's numbers that lie `index` heads from their start.
pub(super) fn head_of(numbers: &[f64], index: usize, head_dim: usize) -> Vec<f64> {
    (0..head_dim).map(|d| numbers[(index * head_dim + d) % PERIOD]).collect()
}

/// Random numbers as a dtype holds them.
pub(super) fn rounded(seed: u64, dtype: Dtype) -> Vec<f64> {
    decode(&encode(&pattern(seed), dtype), dtype).into_iter().map(f64::from).collect()
}
