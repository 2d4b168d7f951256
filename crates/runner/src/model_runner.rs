//! Computes scheduled batches on a backend.

use std::time::Duration;

use sconce_kernels::{
    Backend, KernelError, StepPlan, TableEdit,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
};
use sconce_models::Buf;
use sconce_types::{
    BLOCK_SIZE, CacheGroups, Executor, ExecutorError, Input, RowResult, Sample, SampleOutcome,
    ScheduledBatch, Slot, StepResult, TokenId, TokenLogprobs, TokenMask, TokenMasks,
};

use crate::{forward::Forward, slot::SlotState};

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
    /// The hidden states of the step, until they are sampled from.
    hidden: Option<Buf>,
    /// The prompt tokens whose log-probabilities are asked for, in the order of the plan's
    /// rows that get logits: the sequence, the token, the number of alternatives.
    targets: Vec<(usize, u32, u32)>,
    sampled: Vec<Sampled>,
    logprobs: Vec<Logprobs>,
    /// What the step in flight has to sample: the slot of each row, and what for.
    pending: Vec<(Slot, Sample)>,
    result: StepResult,
}

impl<B: Backend> ModelRunner<B> {
    /// Steps in flight: what is sampled is read back at once.
    pub(crate) const DEPTH: usize = 1;

    pub(crate) fn new(
        forward: Forward<B>,
        cache: B::KvCache,
        max_num_seqs: usize,
        groups: CacheGroups,
    ) -> Self {
        Self {
            groups,
            forward,
            cache,
            max_logit_rows: max_num_seqs,
            slots: (0..max_num_seqs).map(|_| None).collect(),
            plan: StepPlan::new(groups.len()),
            hidden: None,
            targets: Vec::new(),
            sampled: Vec::new(),
            logprobs: Vec::new(),
            pending: Vec::new(),
            result: StepResult::default(),
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
        for admitted in &batch.admitted {
            let slot = SlotState::new(admitted, self.groups.len());
            self.slots[admitted.slot.index()] = Some(slot);
        }
        self.prepare(batch);
        self.pending.clear();
        self.pending
            .extend(batch.sequences.iter().map(|sequence| (sequence.slot, sequence.sample)));
        self.result.clear(batch.step);
        batch.sequences.iter().for_each(|_| self.result.push(SampleOutcome::Nothing));
        let hidden = self.forward.hidden(&mut self.plan, &mut self.cache)?;
        self.score_prompts(&hidden)?;
        self.hidden = Some(hidden);
        Ok(())
    }

    /// Fills the plan from the scheduled batch: its rows, and those that get logits, first
    /// of prompts, then of what is sampled.
    fn prepare(&mut self, batch: &ScheduledBatch) {
        let Self { plan, slots, targets, .. } = self;
        plan.clear();
        targets.clear();
        for edit in &batch.table_edits {
            let slot = slots[edit.slot.index()].as_mut();
            slot.expect("a table belongs to an admitted sequence").edit_table(edit);
            plan.table_edits.push(TableEdit {
                group: edit.group,
                slot: edit.slot.0,
                index: edit.index,
                block: edit.block.0,
            });
        }
        for sequence in &batch.sequences {
            let slot = slot(slots, sequence.slot);
            let last_sampled;
            let tokens = match &sequence.input {
                Input::Tokens(range) => &batch.token_ids[range.clone()],
                Input::LastSampled => {
                    last_sampled = [slot
                        .last_sampled()
                        .expect("LastSampled is scheduled only after a sample")];
                    &last_sampled[..]
                }
            };
            plan.push(sequence.slot.0, tokens, sequence.num_computed_tokens, slot.tables());
        }
        for (s, sequence) in batch.sequences.iter().enumerate() {
            let slot = slot(slots, sequence.slot);
            for (i, row) in plan.rows(s).enumerate() {
                let predicted = sequence.num_computed_tokens + i + 1;
                let Some((token, num_top)) = slot.prompt_logprob(predicted) else { break };
                targets.push((s, token, num_top));
                plan.logit_rows.push(u32::try_from(row).expect("rows are below 2^32"));
            }
        }
        let sampling = batch.sequences.iter().zip(&plan.cu_seqlens_q[1..]);
        let sampling = sampling.filter(|(sequence, _)| sequence.sample != Sample::Nothing);
        plan.logit_rows.extend(sampling.map(|(_, end)| end - 1));
    }

    /// Log-probabilities of prompt tokens, in tiles of as many rows as get logits at a time.
    fn score_prompts(&mut self, hidden: &Buf) -> Result<(), KernelError> {
        let mut first = 0;
        for targets in self.targets.chunks(self.max_logit_rows) {
            let range = first..first + targets.len();
            first = range.end;
            let logits = self.forward.logits(&mut self.cache, hidden, range)?;
            let tokens: Vec<u32> = targets.iter().map(|&(_, token, _)| token).collect();
            let num_top: Vec<u32> = targets.iter().map(|&(_, _, num_top)| num_top).collect();
            self.logprobs.clear();
            self.forward.logprobs(logits, &tokens, &num_top, &mut self.logprobs)?;
            let StepResult { rows, logprobs, .. } = &mut self.result;
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
        let mut requests = Vec::with_capacity(self.pending.len());
        for (s, &(slot_id, sample)) in self.pending.iter().enumerate() {
            let Sample::Token { output_index, .. } = sample else { continue };
            let slot = slot(&self.slots, slot_id);
            requests.push(match masks.get(s) {
                TokenMask::All => slot.sample_request(output_index, None),
                TokenMask::Bits(words) => slot.sample_request(output_index, Some(words)),
                // The row has its logits; what is sampled from them is not used.
                TokenMask::Skip => {
                    self.result.rows[s].outcome = SampleOutcome::Skipped;
                    SampleRequest::default()
                }
            });
        }
        if requests.is_empty() {
            return Ok(());
        }
        let hidden = self.hidden.take().expect("a step is launched before it is sampled");
        let range = self.targets.len()..self.plan.logit_rows.len();
        let logits = self.forward.logits(&mut self.cache, &hidden, range)?;
        self.sampled.clear();
        self.forward.sample(logits, &requests, &mut self.sampled)?;
        drop(requests);
        let StepResult { rows, tokens, logprobs, .. } = &mut self.result;
        let sampling =
            self.pending.iter().zip(rows).filter(|((_, sample), _)| *sample != Sample::Nothing);
        for ((&(slot, _), row), sampled) in sampling.zip(self.sampled.drain(..)) {
            match sampled {
                _ if row.outcome == SampleOutcome::Skipped => {}
                Sampled::Token { token, logprobs: of_token } => {
                    row.outcome = SampleOutcome::Sampled;
                    row.tokens = tokens.len()..tokens.len() + 1;
                    tokens.push(token);
                    row.logprobs.start = logprobs.len();
                    logprobs.extend(of_token.map(token_logprobs));
                    row.logprobs.end = logprobs.len();
                    if let Some(slot) = &mut self.slots[slot.index()] {
                        slot.note_sampled(token);
                    }
                }
                Sampled::NonFinite => row.outcome = SampleOutcome::NonFiniteLogits,
                Sampled::NothingAllowed => row.outcome = SampleOutcome::NothingAllowed,
            }
        }
        Ok(())
    }
}

/// One step at a time: what is sampled is read back at once.
impl<B: Backend> Executor for ModelRunner<B> {
    fn depth(&self) -> usize {
        Self::DEPTH
    }

    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        self.compute(batch).map_err(|error| executor_error(&error))
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.sample_rows(masks).map_err(|error| executor_error(&error))
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        // A step that sampled nothing has read nothing back: it may still be under way.
        let device_time = self.forward.backend.finish().map_err(|error| executor_error(&error))?;
        std::mem::swap(result, &mut self.result);
        result.device_time = device_time;
        Ok(())
    }

    fn failed_step_time(&mut self) -> Option<Duration> {
        // What was launched before the error still runs.
        self.forward.backend.finish().ok().flatten()
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

fn slot(slots: &[Option<SlotState>], slot: Slot) -> &SlotState {
    slots[slot.index()].as_ref().expect("a scheduled sequence was admitted to its slot")
}

fn token_logprobs(Logprobs { token, logprob, top }: Logprobs) -> TokenLogprobs {
    TokenLogprobs { token, logprob, top }
}
