//! What must hold of a scheduler between calls.

use std::{cmp::Reverse, collections::BTreeMap};

use sconce_types::{BLOCK_SIZE, TenantId};

use crate::{
    Scheduler,
    fair_queue::Held,
    scheduler::Running,
    sequence::{Sequence, State},
};

impl Scheduler {
    /// Checks everything that must hold between calls.
    ///
    /// # Panics
    /// Naming the invariant that is broken.
    pub fn check_invariants(&self) {
        self.pool.check_invariants(self.sequences.values().flat_map(|s| s.table.blocks()));
        assert_eq!(
            self.running.len()
                + self.leaving.len()
                + self.queue.num_waiting()
                + self.queue.num_blocked(),
            self.sequences.len(),
            "every request runs, waits, is blocked or leaves"
        );
        let mut taken: Vec<u32> = self.free_slots.iter().map(|&Reverse(slot)| slot).collect();
        for Running { id, tenant } in &self.running {
            let sequence = &self.sequences[id];
            assert_eq!(sequence.state, State::Running);
            assert_eq!(sequence.tenant, *tenant, "a running sequence's tenant is its own");
            assert!(sequence.num_pending() > 0, "a running sequence has something to compute");
        }
        for id in &self.leaving {
            let sequence = &self.sequences[id];
            assert!(matches!(sequence.state, State::Leaving(_)), "what leaves says so");
            assert!(sequence.steps_in_flight > 0, "what no step computes has left");
        }
        let claimed: usize = self.sequences.values().map(|sequence| sequence.claim).sum();
        assert_eq!(claimed, self.claimed, "claims are summed");
        assert!(claimed <= self.pool.num_free(), "claimed blocks are free");
        let mut held: BTreeMap<TenantId, Held> = BTreeMap::new();
        for sequence in self.sequences.values() {
            let held = held.entry(sequence.tenant).or_default();
            held.running += usize::from(sequence.slot.is_some());
            held.waiting += usize::from(sequence.state == State::Waiting);
            held.blocked += usize::from(matches!(sequence.state, State::Blocked(_)));
            held.blocks += sequence.table.num_held();
            taken.extend(sequence.slot.map(|slot| slot.0));
            self.check_sequence(sequence);
        }
        taken.sort_unstable();
        assert!(
            taken.iter().copied().eq(0..self.config.max_num_seqs as u32),
            "every slot is free or taken, once"
        );
        self.queue.check_invariants(&held);
    }

    fn check_sequence(&self, sequence: &Sequence) {
        let Sequence { id, params, table, .. } = sequence;
        assert!(
            sequence.has_ended()
                || sequence.tokens.len() < sequence.prompt_len + params.max_tokens as usize,
            "request {} goes on only below max_tokens",
            id.0
        );
        assert!(
            sequence.num_output_tokens() <= params.max_tokens as usize,
            "request {} samples at most max_tokens",
            id.0
        );
        assert!(sequence.num_computed <= sequence.num_scheduled, "what is computed was scheduled");
        assert!(sequence.steps_in_flight as usize <= self.config.depth, "steps are bounded");
        if matches!(sequence.state, State::Waiting | State::Blocked(_)) {
            assert_eq!(table.num_held(), 0, "a waiting request holds no block");
            assert_eq!(sequence.num_scheduled, 0, "a waiting request starts anew");
            return;
        }
        for (group, span) in self.config.groups.spans().iter().enumerate() {
            let needed = span.first_needed(sequence.num_computed) / BLOCK_SIZE;
            assert!(
                table.first(group) <= needed
                    && table.len(group) * BLOCK_SIZE >= sequence.num_scheduled,
                "the table of request {} in group {group} covers what its steps read and write",
                id.0
            );
        }
    }
}
