//! Computes scheduled batches on a backend.

use std::{collections::VecDeque, time::Duration};

use sconce_kernels::{
    Backend, KernelError, StepPlan, TableEdit,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
    range,
};
use sconce_models::Buf;
use sconce_types::{
    BLOCK_SIZE, CacheGroups, Executor, ExecutorError, Input, RowResult, Sample, SampleOutcome,
    ScheduledBatch, Slot, StepResult, TokenId, TokenLogprobs, TokenMask, TokenMasks,
};

use crate::{forward::Forward, prefixes::Prefixes, slot::SlotState};

/// The executor for real models: weights, KV cache and workspace of one model
/// on one backend. Everything is allocated before it is ready.
pub struct ModelRunner<B: Backend> {
    forward: Forward<B>,
    cache: B::KvCache,
    /// Rows that get logits at a time.
    max_logit_rows: usize,
    groups: CacheGroups,
    slots: Vec<Option<SlotState>>,
    plan: StepPlan,
    prefixes: Prefixes,
    /// The hidden states of the step, until they are sampled from.
    hidden: Option<Buf>,
    /// The prompt tokens whose log-probabilities are asked for, in the order of the plan's
    /// rows that get logits: the sequence, the token, the number of alternatives.
    targets: Vec<(usize, u32, u32)>,
    logprobs: Vec<Logprobs>,
    /// Steps that may be in flight. With two the device keeps what slots sampled last, and
    /// steps are ended without being waited for; with one what is sampled is read back at once.
    depth: usize,
    /// The oldest first, and the memory of those that are over.
    flight: VecDeque<InFlight>,
    spare: Vec<InFlight>,
    /// Steps among them that the device has been told the end of.
    num_ended: usize,
    /// Whether an error was one that no step in flight outlives.
    is_lost: bool,
}

/// A step that was launched, and not waited for.
#[derive(Default)]
struct InFlight {
    /// Each row's slot, and what it samples.
    rows: Vec<(Slot, Sample)>,
    /// What is known of its result; then all of it.
    result: StepResult,
    sampled: Vec<Sampled>,
}

impl<B: Backend> ModelRunner<B> {
    pub(crate) fn new(
        forward: Forward<B>,
        cache: B::KvCache,
        max_num_seqs: usize,
        groups: CacheGroups,
        depth: usize,
        prefixes: Prefixes,
    ) -> Self {
        Self {
            depth,
            prefixes,
            flight: VecDeque::with_capacity(depth),
            spare: Vec::new(),
            num_ended: 0,
            is_lost: false,
            groups,
            forward,
            cache,
            max_logit_rows: max_num_seqs,
            slots: (0..max_num_seqs).map(|_| None).collect(),
            plan: StepPlan::new(groups.len()),
            hidden: None,
            targets: Vec::new(),
            logprobs: Vec::new(),
        }
    }

    /// Whether decode steps are replayed where they were recorded, for measurements.
    pub fn set_replays(&mut self, replays: bool) {
        self.forward.replays = replays;
    }

    /// Logits after every token of a text, `[tokens.len(), vocab_size]`, for
    /// evaluation and tests. It uses the cache's first blocks, so no sequence
    /// may be running.
    ///
    /// # Errors
    /// The backend failed.
    ///
    /// # Panics
    /// If the cache has no room for the text.
    pub fn score(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>, KernelError> {
        let num_blocks = u32::try_from(tokens.len().div_ceil(BLOCK_SIZE)).unwrap_or(u32::MAX);
        let mut logits = Vec::new();
        for (index, tokens) in tokens.chunks(self.max_logit_rows).enumerate() {
            self.plan.clear();
            // Blocks are one group's at a time, so each group has its own.
            let tables: Vec<Vec<u32>> = (0..self.groups.len() as u32)
                .map(|group| (group * num_blocks..(group + 1) * num_blocks).collect())
                .collect();
            for (group, blocks) in (0..).zip(&tables) {
                self.plan.edit_table(group, 0, 0, blocks);
            }
            self.plan.push(0, tokens, index * self.max_logit_rows, &tables);
            self.plan.logit_rows.extend((0..).take(tokens.len()));
            let Self { forward, plan, cache, .. } = self;
            let hidden = forward.hidden(plan, cache)?;
            let of_rows = forward.logits(cache, &hidden, 0..tokens.len())?;
            logits.extend(forward.read(of_rows, tokens.len())?);
        }
        Ok(logits)
    }

    fn compute(&mut self, batch: &ScheduledBatch) -> Result<(), KernelError> {
        let _range = range(c"launch");
        for admitted in &batch.admitted {
            let slot = SlotState::new(admitted, self.groups.len());
            self.slots[admitted.slot.index()] = Some(slot);
            self.prefixes.forget();
        }
        self.prepare(batch);
        let mut step = self.spare.pop().unwrap_or_default();
        step.rows.clear();
        step.rows.extend(batch.sequences.iter().map(|sequence| (sequence.slot, sequence.sample)));
        step.result.clear(batch.step);
        step.result.rows.resize(batch.sequences.len(), RowResult::default());
        step.sampled.clear();
        let hidden = self.forward.hidden(&mut self.plan, &mut self.cache)?;
        step.result.staged = self.forward.staged;
        step.result.num_shared_tokens = self.plan.num_shared_tokens();
        self.score_prompts(&hidden, &mut step.result)?;
        self.hidden = Some(hidden);
        self.flight.push_back(step);
        Ok(())
    }

    /// Fills the plan from the scheduled batch: its rows, and those that get logits, first
    /// of prompts, then of what is sampled.
    fn prepare(&mut self, batch: &ScheduledBatch) {
        let Self { plan, prefixes, slots, targets, depth, .. } = self;
        plan.clear();
        targets.clear();
        for edit in &batch.table_edits {
            let slot = slots[edit.slot.index()].as_mut();
            if slot.expect("a table belongs to an admitted sequence").edit_table(edit) {
                prefixes.forget();
            }
            plan.table_edits.push(TableEdit {
                group: edit.group,
                slot: edit.slot.0,
                index: edit.index,
                block: edit.block.0,
            });
        }
        for (s, sequence) in batch.sequences.iter().enumerate() {
            let slot = slot(slots, sequence.slot);
            let (own, num_computed) = (sequence.slot.0, sequence.num_computed_tokens);
            match &sequence.input {
                Input::Tokens(range) => {
                    plan.push(own, &batch.token_ids[range.clone()], num_computed, slot.tables());
                }
                // The host may not know it yet.
                Input::LastSampled if *depth > 1 => {
                    plan.push_last_sampled(own, num_computed, slot.tables());
                }
                Input::LastSampled => {
                    let token = slot.last_sampled();
                    let token = token.expect("LastSampled is scheduled only after a sample");
                    plan.push(own, &[token], num_computed, slot.tables());
                }
            }
            for (i, row) in plan.rows(s).enumerate() {
                let predicted = sequence.num_computed_tokens + i + 1;
                let Some((token, num_top)) = slot.prompt_logprob(predicted) else { break };
                targets.push((s, token, num_top));
                plan.logit_rows.push(u32::try_from(row).expect("rows are below 2^32"));
            }
        }
        prefixes.note(plan, |group, of| &slot(slots, Slot(of)).tables()[group as usize]);
        let sampling = batch.sequences.iter().zip(&plan.cu_seqlens_q[1..]);
        let sampling = sampling.filter(|(sequence, _)| sequence.sample != Sample::Nothing);
        plan.logit_rows.extend(sampling.map(|(_, end)| end - 1));
    }

    /// Log-probabilities of prompt tokens, in tiles of as many rows as get logits at a time.
    /// Waits for the device.
    fn score_prompts(&mut self, hidden: &Buf, result: &mut StepResult) -> Result<(), KernelError> {
        let mut first = 0;
        for targets in self.targets.chunks(self.max_logit_rows) {
            let range = first..first + targets.len();
            first = range.end;
            let logits = self.forward.logits(&mut self.cache, hidden, range)?;
            let tokens: Vec<u32> = targets.iter().map(|&(_, token, _)| token).collect();
            let num_top: Vec<u32> = targets.iter().map(|&(_, _, num_top)| num_top).collect();
            self.logprobs.clear();
            self.forward.logprobs(logits, &tokens, &num_top, &mut self.logprobs)?;
            let StepResult { rows, logprobs, .. } = &mut *result;
            for (&(s, ..), scored) in targets.iter().zip(self.logprobs.drain(..)) {
                let RowResult { prompt_logprobs, .. } = &mut rows[s];
                if prompt_logprobs.start == prompt_logprobs.end {
                    prompt_logprobs.start = logprobs.len();
                }
                logprobs.push(token_logprobs(scored));
                prompt_logprobs.end = logprobs.len();
            }
        }
        Ok(())
    }

    fn sample_rows(&mut self, masks: &TokenMasks) -> Result<(), KernelError> {
        let _range = range(c"sample");
        let Self { slots, flight, forward, depth, .. } = self;
        let step = flight.back_mut().expect("a step is launched before it is sampled");
        let overlaps = *depth > 1;
        let mut requests = Vec::with_capacity(step.rows.len());
        for (s, &(slot_id, sample)) in step.rows.iter().enumerate() {
            let Sample::Token { output_index, .. } = sample else { continue };
            let own = overlaps.then_some(slot_id);
            let request = |allowed| slot(slots, slot_id).sample_request(output_index, allowed, own);
            requests.push(match masks.get(s) {
                TokenMask::All => request(None),
                TokenMask::Bits(words) => request(Some(words)),
                // The row has its logits; what is sampled from them is not used, nor kept.
                TokenMask::Skip => {
                    step.result.rows[s].outcome = SampleOutcome::Skipped;
                    SampleRequest::default()
                }
            });
        }
        let hidden = self.hidden.take().expect("a step is launched before it is sampled");
        let range = self.targets.len()..self.plan.logit_rows.len();
        let logits = if requests.is_empty() {
            None
        } else {
            Some(forward.logits(&mut self.cache, &hidden, range)?)
        };
        if overlaps {
            forward.end_step(logits, &requests)?;
            self.num_ended += 1;
        } else if let Some(logits) = logits {
            forward.sample(logits, &requests, &mut step.sampled)?;
        }
        drop(requests);
        for (&(slot, sample), row) in step.rows.iter().zip(&step.result.rows) {
            let Some(slot) = &mut slots[slot.index()] else { continue };
            if sample != Sample::Nothing && row.outcome != SampleOutcome::Skipped {
                slot.note_asked();
            }
        }
        Ok(())
    }

    /// Waits for the oldest step in flight, and tells slots what it sampled.
    fn read_oldest(&mut self) -> Result<InFlight, KernelError> {
        let _range = range(c"wait");
        let mut step = self.flight.pop_front().expect("a step is launched before it is read");
        let device_time = if self.depth > 1 {
            let device_time = self.forward.wait_step(&mut step.sampled)?;
            self.num_ended -= 1;
            device_time
        } else {
            // A step that sampled nothing has read nothing back: it may still be under way.
            self.forward.backend.finish()?
        };
        let InFlight { rows: of, result, sampled } = &mut step;
        result.device_time = device_time;
        let StepResult { rows, tokens, logprobs, .. } = result;
        let sampling = of.iter().zip(rows).filter(|((_, sample), _)| *sample != Sample::Nothing);
        for ((&(slot, _), row), sampled) in sampling.zip(sampled.drain(..)) {
            let slot = self.slots[slot.index()].as_mut().expect("what is computed has its slot");
            let token = match sampled {
                _ if row.outcome == SampleOutcome::Skipped => continue,
                Sampled::Token { token, logprobs: of_token } => {
                    row.outcome = SampleOutcome::Sampled;
                    row.tokens = tokens.len()..tokens.len() + 1;
                    tokens.push(token);
                    row.logprobs.start = logprobs.len();
                    logprobs.extend(of_token.map(token_logprobs));
                    row.logprobs.end = logprobs.len();
                    Some(token)
                }
                Sampled::NonFinite => {
                    row.outcome = SampleOutcome::NonFiniteLogits;
                    None
                }
                Sampled::NothingAllowed => {
                    row.outcome = SampleOutcome::NothingAllowed;
                    None
                }
            };
            slot.note_sampled(token);
        }
        Ok(step)
    }

    fn failed(&mut self, error: &KernelError) -> ExecutorError {
        let error = executor_error(error);
        self.is_lost |= !matches!(error, ExecutorError::Step(_));
        error
    }
}

impl<B: Backend> Executor for ModelRunner<B> {
    fn depth(&self) -> usize {
        self.depth
    }

    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        // What was in flight then was not read: results would be taken for later steps'.
        if self.is_lost {
            return Err(ExecutorError::Fatal("an earlier step was lost".to_owned()));
        }
        self.compute(batch).map_err(|error| self.failed(&error))
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.sample_rows(masks).map_err(|error| {
            self.flight.pop_back();
            self.failed(&error)
        })
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        let mut step = self.read_oldest().map_err(|error| self.failed(&error))?;
        std::mem::swap(result, &mut step.result);
        self.spare.push(step);
        Ok(())
    }

    fn failed_step_time(&mut self) -> Option<Duration> {
        // What was launched before the error still runs.
        let mut time = self.forward.backend.finish().ok().flatten();
        // Steps in flight that are lost with it are billed with it: their own results, and so
        // their own bills, never come.
        let lost = if self.is_lost { std::mem::take(&mut self.num_ended) } else { 0 };
        for _ in 0..lost {
            let taken = self.forward.wait_step(&mut Vec::new()).ok().flatten();
            time = time.zip(taken).map(|(sum, taken)| sum + taken).or(time);
        }
        time
    }
}

/// What a backend's error means for the engine.
fn executor_error(error: &KernelError) -> ExecutorError {
    let message = error.to_string();
    match error {
        KernelError::Device { sticky: true, .. } => ExecutorError::DeviceLost(message),
        KernelError::Device { .. } | KernelError::OutOfMemory { .. } => {
            ExecutorError::Fatal(message)
        }
        _ => ExecutorError::Step(message),
    }
}

#[inline]
fn slot(slots: &[Option<SlotState>], slot: Slot) -> &SlotState {
    slots[slot.index()].as_ref().expect("a scheduled sequence was admitted to its slot")
}

fn token_logprobs(Logprobs { token, logprob, rank, top }: Logprobs) -> TokenLogprobs {
    TokenLogprobs { token, logprob, rank, top }
}
