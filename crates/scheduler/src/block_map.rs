//! Which tenant holds which block, for people to look at.

use sconce_types::TenantId;

use crate::Scheduler;

/// Codes of a block in [`Scheduler::map_blocks`].
pub struct BlockCode;

impl BlockCode {
    /// Free, and nothing finds what it holds.
    pub const FREE: u8 = 0;
    /// Free, and found by prompts that begin with what it holds.
    pub const CACHED: u8 = 1;
    /// The first tenant's; the others' codes follow.
    pub const FIRST_TENANT: u8 = 2;
    /// That of all tenants that there is no code of their own for.
    pub const LAST: u8 = u8::MAX;

    /// The code of blocks that a tenant holds.
    #[must_use]
    pub fn of(tenant: TenantId) -> u8 {
        u8::try_from(tenant.index() + usize::from(Self::FIRST_TENANT)).unwrap_or(Self::LAST)
    }
}

impl Scheduler {
    /// Writes a [`BlockCode`] for each block of the pool over `map`. No block is two tenants':
    /// they share no cached ones. Takes the time to read the pool once, and the tables of
    /// sequences that hold a slot.
    pub fn map_blocks(&self, map: &mut Vec<u8>) {
        map.clear();
        map.extend(self.pool.are_cached().map(u8::from));
        let running = self.running.iter().map(|running| running.id);
        for id in running.chain(self.leaving.iter().copied()) {
            let sequence = &self.sequences[&id];
            let code = BlockCode::of(sequence.tenant);
            sequence.table.blocks().for_each(|block| map[block.index()] = code);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sconce_types::{RequestId, SamplingParams, ScheduledBatch, StepResult};

    use super::*;
    use crate::{CacheGroups, PrefixKey, Request, SchedulerConfig, SchedulingPolicy};

    const CONFIG: SchedulerConfig = SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 256,
        max_model_len: 128,
        num_blocks: 12,
        max_queued: 4,
        groups: CacheGroups::ONE,
        depth: 1,
        prefix_cache: Some(PrefixKey([1, 2])),
        policy: SchedulingPolicy::Fair,
    };

    fn request(id: u64, tenant: u32, prompt_len: u32) -> Request {
        Request {
            id: RequestId(id),
            prompt: (0..prompt_len).map(|token| token + 100 * tenant).collect(),
            params: Arc::new(SamplingParams { max_tokens: 8, ..SamplingParams::default() }),
            tenant: TenantId(tenant),
            priority: 0,
            cache_salt: u64::from(tenant),
            is_constrained: false,
            not_ready: None,
        }
    }

    #[test]
    fn every_block_is_free_cached_or_its_tenants() {
        let mut scheduler = Scheduler::new(CONFIG).expect("the limits are sound");
        let (mut batch, mut map) = (ScheduledBatch::default(), vec![9; 99]);
        let count = |map: &[u8], code| map.iter().filter(|&&is| is == code).count();
        scheduler.map_blocks(&mut map);
        assert_eq!(map, [BlockCode::FREE; 12]);
        for (id, tenant, prompt_len) in [(0, 0, 40), (1, 1, 20), (2, 700, 10)] {
            scheduler.add(request(id, tenant, prompt_len)).expect("it fits");
        }
        scheduler.schedule(&mut batch);
        scheduler.map_blocks(&mut map);
        let codes = [0, BlockCode::of(TenantId(0)), BlockCode::of(TenantId(1)), BlockCode::LAST];
        assert_eq!(codes.map(|code| count(&map, code)), [6, 3, 2, 1]);
        let mut result = StepResult::default();
        result.clear(batch.step);
        batch.sequences.iter().for_each(|_| result.push_token(7));
        scheduler.commit(&batch, &mut result, &mut Vec::new());
        // Two full blocks of the first's prompt are kept to be found.
        scheduler.cancel(RequestId(0));
        scheduler.map_blocks(&mut map);
        assert_eq!(count(&map, BlockCode::CACHED), 2);
        assert_eq!(codes.map(|code| count(&map, code)), [7, 0, 2, 1]);
    }
}
