//! An executor without a model, for tests, simulation, and measuring what
//! everything but the model costs.

use std::{collections::HashSet, sync::Arc};

use sconce_types::{
    BLOCK_SIZE, BlockId, Executor, ExecutorError, Input, RequestId, Sample, SampleOutcome,
    SampledRow, SampledTokens, SamplingParams, ScheduledBatch, ScheduledSequence, TokenId,
    TokenLogprobs,
};

/// A fault to inject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The step with this number fails.
    FailStep(u64),
    /// The executor is lost at the step with this number.
    LoseExecutor(u64),
    /// The device is lost at the step of this number.
    LoseDevice(u64),
    /// This request's logits are not finite.
    NonFinite(RequestId),
}

/// An executor whose next token is a hash of the *true* context.
///
/// It has a paged cache that holds a token in each place. Input tokens are
/// written through the block table, and the context that the next token is
/// computed from is read back through it: a block that is shared or leaked
/// wrongly shows as a wrong token.
#[derive(Clone, Debug)]
pub struct FakeExecutor {
    vocab_size: u32,
    cache: Vec<Option<TokenId>>,
    seats: Vec<Option<FakeSeat>>,
    faults: HashSet<Fault>,
    result: Option<SampledTokens>,
}

#[derive(Clone, Debug)]
struct FakeSeat {
    params: Arc<SamplingParams>,
    token_ids: Vec<TokenId>,
    prompt_len: usize,
    last_sampled: Option<TokenId>,
}

impl FakeExecutor {
    /// An executor with a vocabulary, a cache and seats.
    ///
    /// # Panics
    /// If the vocabulary is empty.
    #[must_use]
    pub fn new(vocab_size: u32, num_blocks: usize, max_num_seqs: usize) -> Self {
        assert!(vocab_size > 0, "a vocabulary has a token");
        Self {
            vocab_size,
            cache: vec![None; num_blocks * BLOCK_SIZE],
            seats: vec![None; max_num_seqs],
            faults: HashSet::new(),
            result: None,
        }
    }

    /// Injects a fault.
    pub fn inject(&mut self, fault: Fault) {
        self.faults.insert(fault);
    }

    /// The tokens that a request gets when nothing disturbs it, up to and
    /// including the token that ends it.
    #[must_use]
    pub fn expected_tokens(
        prompt: &[TokenId],
        params: &SamplingParams,
        vocab_size: u32,
    ) -> Vec<TokenId> {
        let mut context = prompt.to_vec();
        for output_index in 0..params.max_tokens {
            let token = next_token(&context, params, output_index, vocab_size);
            context.push(token);
            let ends =
                params.eos_token_ids.contains(&token) || params.stop_token_ids.contains(&token);
            if ends && output_index >= params.min_tokens {
                break;
            }
        }
        context.split_off(prompt.len())
    }

    fn place(&self, table: &[BlockId], position: usize) -> usize {
        let place = table[position / BLOCK_SIZE].index() * BLOCK_SIZE + position % BLOCK_SIZE;
        assert!(place < self.cache.len(), "a block table names blocks of the pool");
        place
    }

    fn seat(&self, sequence: &ScheduledSequence) -> &FakeSeat {
        self.seats[sequence.slot.index()].as_ref().expect("a scheduled sequence was admitted")
    }

    fn compute(&mut self, batch: &ScheduledBatch, sequence: &ScheduledSequence) -> SampledRow {
        let table = &batch.block_tables[sequence.block_table.clone()];
        let last_sampled;
        let tokens = match &sequence.input {
            Input::Tokens(range) => &batch.token_ids[range.clone()],
            Input::LastSampled => {
                last_sampled = [self.seat(sequence).last_sampled.expect("this seat has sampled")];
                &last_sampled[..]
            }
        };
        let context_len = sequence.num_computed_tokens + tokens.len();
        for (position, &token) in (sequence.num_computed_tokens..).zip(tokens) {
            let place = self.place(table, position);
            self.cache[place] = Some(token);
        }
        let context: Vec<TokenId> = (0..context_len)
            .map(|position| self.cache[self.place(table, position)].expect("the context is cached"))
            .collect();
        let seat = self.seat(sequence);
        let prompt_logprobs = seat.prompt_logprobs(sequence.num_computed_tokens, context_len);
        let (outcome, logprobs) = match sequence.sample {
            Sample::Nothing => (SampleOutcome::Nothing, None),
            Sample::Token { .. } if self.faults.contains(&Fault::NonFinite(sequence.request)) => {
                (SampleOutcome::NonFiniteLogits, None)
            }
            Sample::Token { output_index } => {
                let token = next_token(&context, &seat.params, output_index, self.vocab_size);
                let logprobs = seat.params.logprobs.map(|n| fake_logprobs(token, n));
                if let Some(seat) = &mut self.seats[sequence.slot.index()] {
                    seat.last_sampled = Some(token);
                }
                (SampleOutcome::Token(token), logprobs)
            }
        };
        SampledRow { outcome, logprobs, prompt_logprobs }
    }
}

impl FakeSeat {
    fn prompt_logprobs(&self, num_computed: usize, context_len: usize) -> Vec<TokenLogprobs> {
        let Some(num_top) = self.params.prompt_logprobs else { return Vec::new() };
        let end = self.prompt_len.min(context_len + 1);
        let predicted = self.token_ids.get(num_computed + 1..end).unwrap_or_default();
        predicted.iter().map(|&token| fake_logprobs(token, num_top)).collect()
    }
}

impl Executor for FakeExecutor {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        if self.faults.contains(&Fault::LoseDevice(batch.step)) {
            return Err(ExecutorError::DeviceLost(format!("injected at step {}", batch.step)));
        }
        if self.faults.contains(&Fault::LoseExecutor(batch.step)) {
            return Err(ExecutorError::Fatal(format!("injected at step {}", batch.step)));
        }
        if self.faults.contains(&Fault::FailStep(batch.step)) {
            return Err(ExecutorError::Step(format!("injected at step {}", batch.step)));
        }
        for admitted in &batch.admitted {
            self.seats[admitted.slot.index()] = Some(FakeSeat {
                params: Arc::clone(&admitted.params),
                token_ids: admitted.token_ids.clone(),
                prompt_len: admitted.prompt_len,
                last_sampled: None,
            });
        }
        let rows = batch.sequences.iter().map(|sequence| self.compute(batch, sequence)).collect();
        assert!(self.result.is_none(), "the last step was waited for");
        self.result = Some(SampledTokens { step: batch.step, rows });
        Ok(())
    }

    fn wait(&mut self, sampled: &mut SampledTokens) -> Result<(), ExecutorError> {
        let lost = || ExecutorError::Fatal("waited for a step never launched".to_owned());
        *sampled = self.result.take().ok_or_else(lost)?;
        Ok(())
    }
}

/// FNV-1a over the context, the seed and the index; end tokens are skipped
/// while they are banned.
fn next_token(
    context: &[TokenId],
    params: &SamplingParams,
    output_index: u32,
    vocab_size: u32,
) -> TokenId {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ params.seed;
    for &word in context.iter().chain([&output_index]) {
        hash = (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    let mut token = u32::try_from(hash % u64::from(vocab_size)).expect("below a 32-bit modulus");
    if output_index < params.min_tokens {
        let ends = |t| params.eos_token_ids.contains(&t) || params.stop_token_ids.contains(&t);
        for _ in 0..vocab_size {
            if !ends(token) {
                break;
            }
            token = (token + 1) % vocab_size;
        }
    }
    token
}

/// Log-probabilities that a test can recognise: the asked token at -1, then -2, -3 …
fn fake_logprobs(token: TokenId, num_top: u32) -> TokenLogprobs {
    let top = (0..num_top).map(|i| (token.wrapping_add(i), -1.0 - i as f32)).collect();
    TokenLogprobs { token, logprob: -1.0, top }
}
