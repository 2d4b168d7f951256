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

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::Arc,
    };

    use sconce_types::{CacheGroups, RequestId, SamplingParams, ScheduledBatch, Span};

    use crate::{
        Request, Scheduler, SchedulerConfig, SchedulingPolicy,
        sequence::{Leave, State},
    };

    /// Two sequences, of which the first is in the middle of its prompt: it claims the blocks
    /// of its window that it has yet to get, and a step in flight computes both.
    fn scheduler() -> Scheduler {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            max_num_seqs: 4,
            max_num_batched_tokens: 40,
            max_model_len: 256,
            num_blocks: 40,
            groups: CacheGroups::new(&[Span::All, Span::Window(100)]),
            depth: 2,
            max_queued: 8,
            prefix_cache: None,
            policy: SchedulingPolicy::Fcfs,
        })
        .expect("the limits are valid");
        let params = Arc::new(SamplingParams { max_tokens: 4, ..SamplingParams::default() });
        for (id, prompt_len) in [(1, 8), (2, 120)] {
            let request = Request::new(RequestId(id), vec![1; prompt_len], Arc::clone(&params));
            scheduler.add(request).expect("it is taken");
        }
        scheduler.schedule(&mut ScheduledBatch::default());
        scheduler.check_invariants();
        assert!(scheduler.claimed > 0, "the second claims blocks");
        scheduler
    }

    /// What is done wrong, and what is said of it.
    type Fault = (&'static str, fn(&mut Scheduler));

    const FAULTS: [Fault; 9] = [
        ("claims are summed", |s| s.claimed += 1),
        ("claims are summed", |s| s.sequence(2).claim = 0),
        ("claimed blocks are free", |s| {
            s.sequence(2).claim += 40;
            s.claimed += 40;
        }),
        ("every slot is free or taken, once", |s| {
            let _ = s.free_slots.pop();
        }),
        ("every request runs, waits, is blocked or leaves", |s| {
            let _ = s.running.pop();
        }),
        ("what no step computes has left", |s| {
            s.running.pop();
            s.leave(RequestId(2), Leave::Ended);
            s.sequence(2).steps_in_flight = 0;
        }),
        ("counted as often", |s| {
            let table = s.sequence(1).table.clone();
            s.sequence(2).table = table;
        }),
        ("covers what its steps read and write", |s| {
            // A window's block is released before the tokens that need it are computed.
            let Scheduler { sequences, pool, queue, claimed, .. } = s;
            let sequence = sequences.get_mut(&RequestId(2)).expect("it runs");
            let (left, _) = sequence.table.leave_behind(1, Span::Window(1), 31, pool);
            queue.release(sequence.tenant, left);
            assert!(left > 0 && *claimed > 0);
        }),
        ("samples at most max_tokens", |s| s.sequence(1).num_sampling = 5),
    ];

    impl Scheduler {
        fn sequence(&mut self, id: u64) -> &mut crate::sequence::Sequence {
            self.sequences.get_mut(&RequestId(id)).expect("it runs")
        }
    }

    #[test]
    fn each_invariant_fires() {
        for (said, break_it) in FAULTS {
            let mut scheduler = scheduler();
            break_it(&mut scheduler);
            let check = AssertUnwindSafe(|| scheduler.check_invariants());
            let cause = catch_unwind(check).expect_err(said);
            let message = message_of(cause.as_ref());
            assert!(message.contains(said), "{said}: {message}");
        }
        assert_eq!(scheduler().sequence(1).state, State::Running);
    }

    fn message_of(cause: &(dyn std::any::Any + Send)) -> String {
        let text = cause.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_default()
    }
}
