//! How many blocks a sequence needs, and whether it can have them.
//!
//! A sequence that is admitted holds the blocks of all its tokens at once, in groups that keep
//! everything; of a window it holds what its next chunk needs, and claims what it will hold at
//! most. Claimed blocks are free, but no other sequence takes them, until the whole prompt is
//! scheduled.

use sconce_types::RequestId;

use crate::{Scheduler, SchedulerConfig, Span, preemption::Lack, sequence::Sequence};

impl Scheduler {
    /// Blocks that a waiting sequence needs for all its tokens beside those that it shares.
    pub(crate) fn missing_to_admit(&self, sequence: &Sequence) -> usize {
        let SchedulerConfig { groups, max_num_batched_tokens, depth, .. } = &self.config;
        let all = SchedulerConfig::blocks_for(sequence.len());
        let missing = groups.spans().iter().enumerate().map(|(group, span)| {
            let held = sequence.table.first(group)..sequence.table.len(group);
            let own = match span {
                Span::All => held.len(),
                // A block that others share too is not free once the window has left it.
                Span::Window(_) => held
                    .filter(|&index| self.pool.ref_count(sequence.table.block(group, index)) == 1)
                    .count(),
            };
            span.peak_blocks(all, max_num_batched_tokens * depth).saturating_sub(own)
        });
        missing.sum()
    }

    /// Extends a sequence's block tables to cover so many tokens more, in groups that keep
    /// everything and in those that keep a window; or leaves them as they are where there are
    /// too few blocks, and says how many are missing.
    pub(crate) fn grow_table(
        &mut self,
        id: RequestId,
        tokens: usize,
        window_tokens: usize,
    ) -> Result<(), (Lack, usize)> {
        let sequence = self.sequences.get_mut(&id).expect("only known sequences are scheduled");
        let spans = self.config.groups.spans();
        let start = sequence.num_scheduled;
        let needed = |span: Span| {
            let tokens = if span == Span::All { tokens } else { window_tokens };
            SchedulerConfig::blocks_for(start + tokens)
        };
        let missing =
            |(group, &span): (usize, &Span)| needed(span).saturating_sub(sequence.table.len(group));
        let missing: usize = spans.iter().enumerate().map(missing).sum();
        if missing > 0 {
            let tenant = self.queue.tenant(sequence.tenant);
            if !tenant.may_hold(missing, tenant.running) {
                return Err((Lack::TenantBlocks, missing));
            }
            let free = self.pool.num_free() - (self.claimed - sequence.claim);
            if missing > free {
                return Err((Lack::Blocks, missing - free));
            }
            for (group, &span) in spans.iter().enumerate() {
                for index in sequence.table.len(group)..needed(span) {
                    let block = self.pool.allocate().expect("the free blocks were counted above");
                    sequence.table.push(group, index, block);
                }
            }
            self.queue.hold(sequence.tenant, missing);
        }
        if sequence.claim > 0 {
            // Once the whole prompt is scheduled it claims nothing more.
            let is_last = start + window_tokens >= sequence.claims_until;
            let taken = if is_last { sequence.claim } else { missing.min(sequence.claim) };
            sequence.claim -= taken;
            self.claimed -= taken;
        }
        Ok(())
    }
}
