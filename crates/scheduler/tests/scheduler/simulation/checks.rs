//! What must hold of every batch and of every output, and faults that show it.

use std::collections::{HashMap, HashSet};

use sconce_scheduler::{SchedulingPolicy, StepLimit, StepWork};
use sconce_types::{BLOCK_SIZE, BlockId, End, Input, Sample, ScheduledBatch};

use super::{Sabotage, Simulation};

impl Simulation {
    pub(super) fn check_batch(&mut self, batch: &ScheduledBatch) {
        assert!(batch.step > self.step, "steps are numbered upwards");
        self.step = batch.step;
        let total: usize = batch.sequences.iter().map(|s| s.input.len()).sum();
        assert_eq!(total, batch.num_tokens);
        assert!(
            total <= self.limits.max_num_batched_tokens,
            "{total} tokens exceed the budget of {}",
            self.limits.max_num_batched_tokens
        );
        assert!(batch.sequences.len() <= self.limits.max_num_seqs, "slots are bounded");
        if let Some(limit) = &self.step_limit {
            let mut decodes = StepWork::default();
            let (mut prefill, mut seconds) = (0, 0.0);
            for sequence in &batch.sequences {
                if sequence.input == Input::LastSampled {
                    decodes.decode += 1.0;
                    decodes.attended += sequence.num_computed_tokens as f64 + 1.0;
                } else {
                    let (len, context) = (sequence.input.len(), sequence.num_computed_tokens);
                    prefill += len;
                    seconds += limit.seconds_of_chunk(len as f64, context as f64);
                }
            }
            let may_take = limit.seconds_for_prefill(decodes);
            // Decodes that are preempted in this step, wait for blocks that are leaving, or are
            // deferred were counted.
            let gave_way = self.scheduler.stats().preemptions > self.preemptions
                || self.scheduler.stats().leaving > 0
                || (self.limits.policy == SchedulingPolicy::Fair && self.tenants.len() > 1);
            self.preemptions = self.scheduler.stats().preemptions;
            assert!(
                gave_way || prefill <= StepLimit::FLOOR || seconds <= may_take * (1.0 + 1e-9),
                "{prefill} prompt tokens take {seconds} s beside {decodes:?}, not {may_take} s"
            );
        }
        for sequence in &batch.sequences {
            if let Sample::Token { output_index, .. } = sequence.sample
                && let Some(expected) = self.live.get(&sequence.request)
            {
                let most = expected.tokens.len().max(1) + self.limits.depth - 1;
                assert!((output_index as usize) < most, "nothing is sampled after the end");
            }
        }
        for admitted in &batch.admitted {
            for group in 0..self.limits.groups.len() as u32 {
                self.tables.insert((admitted.slot, group), Vec::new());
            }
        }
        for edit in &batch.table_edits {
            let table = self.tables.entry((edit.slot, edit.group)).or_default();
            table.resize(table.len().max(edit.index as usize + 1), BlockId(u32::MAX));
            table[edit.index as usize] = edit.block;
        }
        self.check_blocks(batch);
    }

    /// What a step in flight writes is in no other place that any step in flight reads.
    fn check_blocks(&self, newest: &ScheduledBatch) {
        let in_flight = || self.flight.iter().chain([newest]);
        let mut written = HashMap::new();
        let mut slots = HashMap::new();
        for (step, batch) in in_flight().enumerate() {
            let mut of_step = HashSet::new();
            for sequence in &batch.sequences {
                let (slot, request) = (sequence.slot, sequence.request);
                assert!(of_step.insert(slot), "a slot has one row in a step");
                let owner = *slots.entry(slot).or_insert(request);
                assert_eq!(owner, request, "a slot is one request's while steps compute it");
                let from = sequence.num_computed_tokens / BLOCK_SIZE;
                let end =
                    (sequence.num_computed_tokens + sequence.input.len()).div_ceil(BLOCK_SIZE);
                for group in 0..self.limits.groups.len() as u32 {
                    for &block in &self.tables[&(slot, group)][from..end] {
                        let (writer, _) = *written.entry(block).or_insert((slot, step));
                        assert_eq!(writer, slot, "a block that is written to is shared");
                    }
                }
            }
        }
        for sequence in in_flight().flat_map(|batch| &batch.sequences) {
            let position = sequence.num_computed_tokens;
            for (group, span) in (0..).zip(self.limits.groups.spans()) {
                let read = span.first_needed(position) / BLOCK_SIZE..position / BLOCK_SIZE;
                for block in &self.tables[&(sequence.slot, group)][read] {
                    let writer = written.get(block).map(|&(writer, _)| writer);
                    assert!(
                        writer.is_none_or(|writer| writer == sequence.slot),
                        "a block that is read is written by another"
                    );
                }
            }
        }
    }

    pub(super) fn check_outputs(&mut self) {
        for output in self.outputs.drain(..) {
            let id = output.request;
            let expected = self.live.get_mut(&id).expect("outputs belong to live requests");
            if let Some(seen) = &mut expected.prompt_logprobs
                && !output.prompt_logprobs.is_empty()
            {
                assert_eq!(output.prompt_logprobs_start, *seen + 1, "each position once");
                *seen += output.prompt_logprobs.len();
            }
            if let Some(token) = output.token {
                assert!(!expected.non_finite);
                assert_eq!(token, expected.tokens[expected.got], "request {} goes wrong", id.0);
                expected.got += 1;
                let seen = expected.prompt_logprobs.unwrap_or(expected.prompt_len - 1);
                assert_eq!(seen, expected.prompt_len - 1, "the prompt is scored before a token");
            }
            let Some(finish) = output.finish else { continue };
            let expected = self.live.remove(&id).expect("it was live above");
            self.bills.end(id);
            match finish {
                End::NonFiniteLogits => assert!(expected.non_finite),
                End::Stop { .. } | End::Length => {
                    assert_eq!(expected.got, expected.tokens.len(), "it ends where it should");
                }
                other => panic!("a scheduler does not end requests with {other:?}"),
            }
        }
    }

    /// Plants the faults that are in what the executor is given.
    pub(super) fn tamper_with(&mut self, batch: &mut ScheduledBatch) {
        match self.sabotage {
            Sabotage::ShareABlock if batch.table_edits.len() > 1 => {
                batch.table_edits[1].block = batch.table_edits[0].block;
            }
            Sabotage::ShareASlot if batch.sequences.len() > 1 => {
                let slot = batch.sequences[0].slot;
                batch.sequences[1].slot = slot;
                batch.admitted.iter_mut().for_each(|admitted| admitted.slot = slot);
                batch.table_edits.iter_mut().for_each(|edit| edit.slot = slot);
            }
            Sabotage::LoseATableEdit if batch.step > 50 => {
                batch.table_edits.pop();
            }
            _ => {}
        }
    }
}
