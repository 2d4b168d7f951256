//! Computes scheduled batches on a backend.

use std::{collections::VecDeque, time::Duration};

use sconce_kernels::{
    Backend, KernelError, StepPlan,
    ops::sampling::{Logprobs, Sampled},
};
use sconce_models::{CausalLm, Workspace};
use sconce_types::{
    BLOCK_SIZE, EnergyMeter, Executor, ExecutorError, Input, Sample, SampleOutcome, SampledRow,
    SampledTokens, ScheduledBatch, ScheduledSequence, TokenId, TokenLogprobs,
};

use crate::seat::Seat;

/// The executor for real models: weights, KV cache and workspace of one model
/// on one backend. Everything is allocated before it is ready.
pub struct ModelRunner<B: Backend> {
    backend: B,
    model: Box<dyn CausalLm<B>>,
    cache: B::KvCache,
    step: B::Step,
    workspace: Workspace<B>,
    /// Rows of logits that the workspace holds.
    max_logit_rows: usize,
    seats: Vec<Option<Seat>>,
    /// The block tables that the device has, by slot.
    tables: Vec<Vec<u32>>,
    plan: StepPlan,
    blocks: Vec<u32>,
    /// The prompt tokens whose log-probabilities are asked for, in the order of the plan's
    /// rows that get logits: the sequence, the token, the number of alternatives.
    targets: Vec<(usize, u32, u32)>,
    sampled: Vec<Sampled>,
    logprobs: Vec<Logprobs>,
    /// Steps computed and not yet waited for.
    finished: VecDeque<SampledTokens>,
    /// Result arrays to use again.
    spare: Vec<SampledTokens>,
    device_time: Option<Duration>,
    energy: Option<Box<dyn EnergyMeter>>,
}

impl<B: Backend> ModelRunner<B> {
    pub(crate) fn new(
        backend: B,
        model: Box<dyn CausalLm<B>>,
        (step, cache): (B::Step, B::KvCache),
        workspace: Workspace<B>,
        max_num_seqs: usize,
    ) -> Self {
        Self {
            backend,
            model,
            cache,
            step,
            workspace,
            max_logit_rows: max_num_seqs,
            seats: (0..max_num_seqs).map(|_| None).collect(),
            tables: vec![Vec::new(); max_num_seqs],
            plan: StepPlan::new(1),
            blocks: Vec::new(),
            targets: Vec::new(),
            sampled: Vec::new(),
            logprobs: Vec::new(),
            finished: VecDeque::new(),
            spare: Vec::new(),
            device_time: None,
            energy: None,
        }
    }

    /// The same, with what measures its device's energy.
    pub(crate) fn measured_by(self, energy: Option<Box<dyn EnergyMeter>>) -> Self {
        Self { energy, ..self }
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
        let blocks: Vec<u32> = (0..num_blocks).collect();
        let mut logits = Vec::new();
        for (index, tokens) in tokens.chunks(self.max_logit_rows).enumerate() {
            self.plan.clear();
            let computed = index * self.max_logit_rows;
            push(&mut self.plan, &mut self.tables, 0, tokens, computed, &blocks);
            self.plan.logit_rows.extend((0..).take(tokens.len()));
            self.forward()?;
            let Self { backend, model, step, workspace, .. } = self;
            model.logits(backend, step, 0..tokens.len(), workspace)?;
            logits.extend(backend.read(&workspace.logits, tokens.len())?);
        }
        Ok(logits)
    }

    /// Stages the plan and computes its hidden states.
    fn forward(&mut self) -> Result<(), KernelError> {
        let Self { backend, model, cache, step, workspace, plan, .. } = self;
        let staged = backend.stage(plan, step, cache);
        if staged.is_err() {
            // The device may not have what the tables say: they are sent anew.
            self.tables.iter_mut().for_each(Vec::clear);
        }
        staged?;
        model.forward(backend, step, plan.num_tokens(), cache, workspace)
    }

    fn compute(&mut self, batch: &ScheduledBatch) -> Result<SampledTokens, KernelError> {
        for admitted in &batch.admitted {
            self.seats[admitted.slot.index()] = Some(Seat::new(admitted));
        }
        self.prepare(batch);
        self.forward()?;
        let mut result = self.spare.pop().unwrap_or_default();
        result.step = batch.step;
        result.rows.clear();
        result.rows.extend(batch.sequences.iter().map(|_| SampledRow {
            outcome: SampleOutcome::Nothing,
            logprobs: None,
            prompt_logprobs: Vec::new(),
        }));
        self.score_prompts(&mut result.rows)?;
        self.sample(batch, &mut result.rows)?;
        Ok(result)
    }

    /// Fills the plan from the scheduled batch: its rows, and those that get logits, first
    /// of prompts, then of what is sampled.
    fn prepare(&mut self, batch: &ScheduledBatch) {
        self.plan.clear();
        self.targets.clear();
        for sequence in &batch.sequences {
            let table = &batch.block_tables[sequence.block_table.clone()];
            self.blocks.clear();
            self.blocks.extend(table.iter().map(|block| block.0));
            let last_sampled;
            let tokens = match &sequence.input {
                Input::Tokens(range) => &batch.token_ids[range.clone()],
                Input::LastSampled => {
                    last_sampled = [seat(&self.seats, sequence)
                        .last_sampled()
                        .expect("LastSampled is scheduled only after a sample")];
                    &last_sampled[..]
                }
            };
            let (slot, computed) = (sequence.slot.index(), sequence.num_computed_tokens);
            push(&mut self.plan, &mut self.tables, slot, tokens, computed, &self.blocks);
        }
        for (s, sequence) in batch.sequences.iter().enumerate() {
            let seat = seat(&self.seats, sequence);
            for (i, row) in self.plan.rows(s).enumerate() {
                let predicted = sequence.num_computed_tokens + i + 1;
                let Some((token, num_top)) = seat.prompt_logprob(predicted) else { break };
                self.targets.push((s, token, num_top));
                self.plan.logit_rows.push(u32::try_from(row).expect("rows are below 2^32"));
            }
        }
        let sampling = batch.sequences.iter().zip(&self.plan.cu_seqlens_q[1..]);
        let sampling = sampling.filter(|(sequence, _)| sequence.sample != Sample::Nothing);
        self.plan.logit_rows.extend(sampling.map(|(_, end)| end - 1));
    }

    /// Log-probabilities of prompt tokens, in tiles of the workspace's logits.
    fn score_prompts(&mut self, results: &mut [SampledRow]) -> Result<(), KernelError> {
        let mut first = 0;
        for targets in self.targets.chunks(self.max_logit_rows) {
            let rows = first..first + targets.len();
            first = rows.end;
            self.model.logits(&mut self.backend, &self.step, rows, &mut self.workspace)?;
            let tokens: Vec<u32> = targets.iter().map(|&(_, token, _)| token).collect();
            let num_top: Vec<u32> = targets.iter().map(|&(_, _, num_top)| num_top).collect();
            self.logprobs.clear();
            self.backend.logprobs(&self.workspace.logits, &tokens, &num_top, &mut self.logprobs)?;
            for (&(s, ..), logprobs) in targets.iter().zip(self.logprobs.drain(..)) {
                results[s].prompt_logprobs.push(token_logprobs(logprobs));
            }
        }
        Ok(())
    }

    fn sample(
        &mut self,
        batch: &ScheduledBatch,
        results: &mut [SampledRow],
    ) -> Result<(), KernelError> {
        let mut requests = Vec::with_capacity(batch.sequences.len());
        for sequence in &batch.sequences {
            if let Sample::Token { output_index } = sequence.sample {
                requests.push(seat(&self.seats, sequence).sample_request(output_index));
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        let rows = self.targets.len()..self.plan.logit_rows.len();
        self.model.logits(&mut self.backend, &self.step, rows, &mut self.workspace)?;
        self.sampled.clear();
        self.backend.sample(&mut self.workspace.logits, &requests, &mut self.sampled)?;
        drop(requests);
        let sampling = batch
            .sequences
            .iter()
            .zip(results)
            .filter(|(sequence, _)| sequence.sample != Sample::Nothing);
        for ((sequence, result), sampled) in sampling.zip(self.sampled.drain(..)) {
            match sampled {
                Sampled::Token { token, logprobs } => {
                    result.outcome = SampleOutcome::Token(token);
                    result.logprobs = logprobs.map(token_logprobs);
                    if let Some(seat) = &mut self.seats[sequence.slot.index()] {
                        seat.note_sampled(token);
                    }
                }
                Sampled::NonFinite => result.outcome = SampleOutcome::NonFiniteLogits,
            }
        }
        Ok(())
    }
}

impl<B: Backend> Executor for ModelRunner<B> {
    fn energy_meter(&mut self) -> Option<Box<dyn EnergyMeter>> {
        self.energy.take()
    }

    /// Computes the step; what was sampled has been read back when it returns.
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        let result = self.compute(batch).map_err(|error| executor_error(&error))?;
        self.finished.push_back(result);
        Ok(())
    }

    fn wait(&mut self, sampled: &mut SampledTokens) -> Result<(), ExecutorError> {
        let result = self
            .finished
            .pop_front()
            .ok_or_else(|| ExecutorError::Fatal("waited for a step never launched".to_owned()))?;
        // A step that sampled nothing has read nothing back: it may still be under way.
        self.device_time = self.backend.finish().map_err(|error| executor_error(&error))?;
        self.spare.push(std::mem::replace(sampled, result));
        Ok(())
    }

    fn device_time(&self) -> Option<Duration> {
        self.device_time
    }
}

/// Appends a sequence's input to the plan, with what differs between its block table and
/// the one that the device has in its slot.
fn push(
    plan: &mut StepPlan,
    tables: &mut [Vec<u32>],
    slot: usize,
    tokens: &[TokenId],
    num_computed_tokens: usize,
    blocks: &[u32],
) {
    let table = &mut tables[slot];
    let slot = u32::try_from(slot).expect("slots are below 2^32");
    let same = table.iter().zip(blocks).take_while(|(old, new)| old == new).count();
    plan.edit_table(0, slot, same, &blocks[same..]);
    table.truncate(same);
    table.extend_from_slice(&blocks[same..]);
    plan.push(slot, tokens, num_computed_tokens, &[blocks]);
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

fn seat<'a>(seats: &'a [Option<Seat>], sequence: &ScheduledSequence) -> &'a Seat {
    seats[sequence.slot.index()].as_ref().expect("a scheduled sequence was admitted to its seat")
}

fn token_logprobs(Logprobs { token, logprob, top }: Logprobs) -> TokenLogprobs {
    TokenLogprobs { token, logprob, top }
}
