//! Computes scheduled batches on a backend.

use std::{collections::VecDeque, time::Duration};

use sconce_kernels::{
    Backend, ForwardBatch, KernelError,
    ops::sampling::{Logprobs, Sampled},
};
use sconce_models::Buf;
use sconce_types::{
    BLOCK_SIZE, EnergyMeter, Executor, ExecutorError, Input, Sample, SampleOutcome, SampledRow,
    SampledTokens, ScheduledBatch, ScheduledSequence, TokenId, TokenLogprobs,
};

use crate::{forward::Forward, seat::Seat};

/// The executor for real models: weights, KV cache and buffers of one model
/// on one backend. Everything is allocated before it is ready.
pub struct ModelRunner<B: Backend> {
    forward: Forward<B>,
    cache: B::KvCache,
    /// Rows that get logits at a time.
    max_logit_rows: usize,
    seats: Vec<Option<Seat>>,
    batch: ForwardBatch,
    blocks: Vec<u32>,
    rows: Vec<u32>,
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
    pub(crate) fn new(forward: Forward<B>, cache: B::KvCache, max_num_seqs: usize) -> Self {
        Self {
            forward,
            cache,
            max_logit_rows: max_num_seqs,
            seats: (0..max_num_seqs).map(|_| None).collect(),
            batch: ForwardBatch::default(),
            blocks: Vec::new(),
            rows: Vec::new(),
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
            self.batch.clear();
            self.batch.push(tokens, index * self.max_logit_rows, &blocks);
            let rows: Vec<u32> = (0..).take(tokens.len()).collect();
            let Self { forward, batch, cache, .. } = self;
            let hidden = forward.hidden(batch, cache)?;
            let of_rows = forward.logits(batch, cache, &hidden, &rows)?;
            logits.extend(forward.read(of_rows, rows.len())?);
        }
        Ok(logits)
    }

    fn compute(&mut self, batch: &ScheduledBatch) -> Result<SampledTokens, KernelError> {
        for admitted in &batch.admitted {
            self.seats[admitted.slot.index()] = Some(Seat::new(admitted));
        }
        self.prepare(batch);
        let hidden = self.forward.hidden(&self.batch, &mut self.cache)?;
        let mut result = self.spare.pop().unwrap_or_default();
        result.step = batch.step;
        result.rows.clear();
        result.rows.extend(batch.sequences.iter().map(|_| SampledRow {
            outcome: SampleOutcome::Nothing,
            logprobs: None,
            prompt_logprobs: Vec::new(),
        }));
        self.score_prompts(batch, &hidden, &mut result.rows)?;
        self.sample(batch, &hidden, &mut result.rows)?;
        Ok(result)
    }

    /// Fills the forward batch from the scheduled one.
    fn prepare(&mut self, batch: &ScheduledBatch) {
        self.batch.clear();
        for sequence in &batch.sequences {
            self.blocks.clear();
            let table = &batch.block_tables[sequence.block_table.clone()];
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
            self.batch.push(tokens, sequence.num_computed_tokens, &self.blocks);
        }
    }

    /// Log-probabilities of prompt tokens, in tiles of as many rows as get logits at a time.
    fn score_prompts(
        &mut self,
        batch: &ScheduledBatch,
        hidden: &Buf,
        results: &mut [SampledRow],
    ) -> Result<(), KernelError> {
        self.targets.clear();
        self.rows.clear();
        for (s, sequence) in batch.sequences.iter().enumerate() {
            let seat = seat(&self.seats, sequence);
            for (i, row) in self.batch.rows(s).enumerate() {
                let predicted = sequence.num_computed_tokens + i + 1;
                let Some((token, num_top)) = seat.prompt_logprob(predicted) else { break };
                self.targets.push((s, token, num_top));
                self.rows.push(u32::try_from(row).expect("rows are below 2^32"));
            }
        }
        let tile_len = self.max_logit_rows;
        for (rows, targets) in self.rows.chunks(tile_len).zip(self.targets.chunks(tile_len)) {
            let logits = self.forward.logits(&self.batch, &mut self.cache, hidden, rows)?;
            let tokens: Vec<u32> = targets.iter().map(|&(_, token, _)| token).collect();
            let num_top: Vec<u32> = targets.iter().map(|&(_, _, num_top)| num_top).collect();
            self.logprobs.clear();
            self.forward.logprobs(logits, &tokens, &num_top, &mut self.logprobs)?;
            for (&(s, ..), logprobs) in targets.iter().zip(self.logprobs.drain(..)) {
                results[s].prompt_logprobs.push(token_logprobs(logprobs));
            }
        }
        Ok(())
    }

    fn sample(
        &mut self,
        batch: &ScheduledBatch,
        hidden: &Buf,
        results: &mut [SampledRow],
    ) -> Result<(), KernelError> {
        self.rows.clear();
        let mut requests = Vec::with_capacity(batch.sequences.len());
        for (s, sequence) in batch.sequences.iter().enumerate() {
            if let Sample::Token { output_index } = sequence.sample {
                self.rows.push(self.batch.cu_seqlens_q[s + 1] - 1);
                requests.push(seat(&self.seats, sequence).sample_request(output_index));
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        let logits = self.forward.logits(&self.batch, &mut self.cache, hidden, &self.rows)?;
        self.sampled.clear();
        self.forward.sample(logits, &requests, &mut self.sampled)?;
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
        self.device_time = self.forward.backend.finish().map_err(|error| executor_error(&error))?;
        self.spare.push(std::mem::replace(sampled, result));
        Ok(())
    }

    fn device_time(&self) -> Option<Duration> {
        self.device_time
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

fn seat<'a>(seats: &'a [Option<Seat>], sequence: &ScheduledSequence) -> &'a Seat {
    seats[sequence.slot.index()].as_ref().expect("a scheduled sequence was admitted to its seat")
}

fn token_logprobs(Logprobs { token, logprob, top }: Logprobs) -> TokenLogprobs {
    TokenLogprobs { token, logprob, top }
}
