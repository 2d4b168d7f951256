//! An executor without a model, for tests, simulation, and measuring what
//! everything but the model costs.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use sconce_types::{
    BLOCK_SIZE, BlockId, Executor, ExecutorError, Input, RequestId, Sample, SampleOutcome,
    SamplingParams, ScheduledBatch, ScheduledSequence, Slot, StepResult, TokenId, TokenLogprobs,
    TokenMask, TokenMasks,
};

use crate::{CacheGroups, SchedulerConfig};

/// A fault to inject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The step with this number fails when it is launched.
    FailStep(u64),
    /// The step with this number fails when it is waited for.
    FailLate(u64),
    /// The executor is lost at the step with this number.
    LoseExecutor(u64),
    /// The device is lost at the step of this number.
    LoseDevice(u64),
    /// This request's logits are not finite.
    NonFinite(RequestId),
}

/// An executor whose next token is a hash of the *true* context.
///
/// It has a paged cache that holds a token in each place, and block tables by slot. Input
/// tokens are written through the tables, and the context that the next token is computed
/// from, in each cache group what its span keeps, is read back through them: a block that is
/// shared, leaked or released wrongly, or a table edit that is lost, shows as a wrong token or
/// a panic.
///
/// As it is made, one step is in flight and is computed when it is launched. With
/// [`FakeExecutor::late`] two may be, whose rows are computed as late as they may, in any
/// order that each slot's own steps leave.
#[derive(Clone, Debug)]
pub struct FakeExecutor {
    vocab_size: u32,
    groups: CacheGroups,
    depth: usize,
    /// The token in each place of each block, and its position.
    cache: Vec<Option<(TokenId, usize)>>,
    slots: Vec<Option<FakeSlot>>,
    faults: HashSet<Fault>,
    flight: VecDeque<FakeStep>,
    /// The state of the generator that orders rows; `None`: at once and in order.
    order: Option<u64>,
}

#[derive(Clone, Debug)]
struct FakeSlot {
    params: Arc<SamplingParams>,
    token_ids: Vec<TokenId>,
    prompt_len: usize,
    /// `[group][index]`
    tables: Vec<Vec<Option<BlockId>>>,
    last_sampled: Option<TokenId>,
    /// A step of its sequence failed: the result of the next one in flight is discarded.
    has_failed: bool,
}

#[derive(Clone, Debug)]
struct FakeStep {
    step: u64,
    rows: Vec<FakeRow>,
    is_sampled: bool,
}

#[derive(Clone, Debug)]
struct FakeRow {
    sequence: ScheduledSequence,
    /// `None`: what the slot sampled last.
    input: Option<Vec<TokenId>>,
    /// What it may sample; `Some(None)` skips it.
    mask: Option<Option<Vec<u32>>>,
    done: Option<Done>,
}

#[derive(Clone, Debug)]
struct Done {
    outcome: SampleOutcome,
    token: Option<TokenId>,
    logprobs: Option<TokenLogprobs>,
    prompt_logprobs: Vec<TokenLogprobs>,
}

impl FakeExecutor {
    /// An executor with a vocabulary, a cache of one group that keeps everything, and slots.
    ///
    /// # Panics
    /// If the vocabulary is empty.
    #[must_use]
    pub fn new(vocab_size: u32, num_blocks: usize, max_num_seqs: usize) -> Self {
        assert!(vocab_size > 0, "a vocabulary has a token");
        Self {
            vocab_size,
            groups: CacheGroups::default(),
            depth: 1,
            cache: vec![None; num_blocks * BLOCK_SIZE],
            slots: vec![None; max_num_seqs],
            faults: HashSet::new(),
            flight: VecDeque::new(),
            order: None,
        }
    }

    /// An executor for these limits, with as many steps in flight, whose rows are computed
    /// late and in an order that `seed` fixes.
    #[must_use]
    pub fn late(vocab_size: u32, config: &SchedulerConfig, seed: u64) -> Self {
        Self {
            groups: config.groups,
            depth: config.depth,
            order: Some(seed),
            ..Self::new(vocab_size, config.num_blocks, config.max_num_seqs)
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
        let groups = CacheGroups::default();
        Self::expected_under(prompt, params, vocab_size, &groups, |_, _| true)
    }

    /// The same in these cache groups, where `allows` says of what was generated so far and a
    /// token whether it may come next.
    #[must_use]
    pub fn expected_under(
        prompt: &[TokenId],
        params: &SamplingParams,
        vocab_size: u32,
        groups: &CacheGroups,
        allows: impl Fn(&[TokenId], TokenId) -> bool,
    ) -> Vec<TokenId> {
        let mut context = prompt.to_vec();
        for output_index in 0..params.max_tokens {
            let generated = &context[prompt.len()..];
            let allowed = |token| allows(generated, token);
            let visible = visible(groups, context.len()).flat_map(|range| &context[range]);
            let Some(token) = next_token(visible, params, output_index, vocab_size, allowed) else {
                break;
            };
            context.push(token);
            let ends =
                params.eos_token_ids.contains(&token) || params.stop_token_ids.contains(&token);
            if ends && output_index >= params.min_tokens {
                break;
            }
        }
        context.split_off(prompt.len())
    }

    fn slot(&self, slot: Slot) -> &FakeSlot {
        self.slots[slot.index()].as_ref().expect("a scheduled sequence was admitted")
    }

    fn place(&self, slot: Slot, group: usize, position: usize) -> usize {
        let entry = self.slot(slot).tables[group].get(position / BLOCK_SIZE).copied().flatten();
        let block = entry.expect("the executor knows every entry of a table that it reads");
        let place = block.index() * BLOCK_SIZE + position % BLOCK_SIZE;
        assert!(place < self.cache.len(), "a block table names blocks of the pool");
        place
    }

    /// Computes a row if its turn has come: its step is sampled, and its slot's earlier step
    /// is computed. Says whether it did.
    fn run(&mut self, step: usize, row: usize) -> bool {
        let FakeStep { rows, is_sampled, .. } = &self.flight[step];
        let FakeRow { sequence, input, mask, done } = rows[row].clone();
        let slot = sequence.slot;
        let is_next = self.flight.iter().take(step).all(|earlier| {
            earlier.rows.iter().all(|row| row.sequence.slot != slot || row.done.is_some())
        });
        if done.is_some() || !is_sampled || !is_next {
            return false;
        }
        let FakeSlot { last_sampled, has_failed, .. } = self.slot(slot);
        let done = if *has_failed {
            Done::garbage()
        } else {
            let last = || vec![last_sampled.expect("this slot has sampled")];
            let tokens = input.unwrap_or_else(last);
            self.compute(&sequence, &tokens, mask)
        };
        self.flight[step].rows[row].done = Some(done);
        true
    }

    fn compute(
        &mut self,
        sequence: &ScheduledSequence,
        tokens: &[TokenId],
        mask: Option<Option<Vec<u32>>>,
    ) -> Done {
        let ScheduledSequence { slot, num_computed_tokens, .. } = *sequence;
        let context_len = num_computed_tokens + tokens.len();
        for group in 0..self.groups.len() {
            for (position, &token) in (num_computed_tokens..).zip(tokens) {
                let place = self.place(slot, group, position);
                self.cache[place] = Some((token, position));
            }
        }
        let mut context = Vec::new();
        for (group, range) in visible(&self.groups, context_len).enumerate() {
            for position in range {
                let (token, written) =
                    self.cache[self.place(slot, group, position)].expect("the context is cached");
                assert_eq!(written, position, "a place holds the position that is read");
                context.push(token);
            }
        }
        let vocab_size = self.vocab_size;
        let is_finite = !self.faults.contains(&Fault::NonFinite(sequence.request));
        let state = self.slots[slot.index()].as_mut().expect("it was admitted");
        let mut done = Done {
            outcome: SampleOutcome::Nothing,
            token: None,
            logprobs: None,
            prompt_logprobs: state.prompt_logprobs(num_computed_tokens, context_len),
        };
        let Sample::Token { output_index, constrained } = sequence.sample else { return done };
        assert_eq!(constrained, mask.is_some(), "a row has a mask if it is constrained");
        if !is_finite {
            done.outcome = SampleOutcome::NonFiniteLogits;
            state.has_failed = true;
        } else if mask == Some(None) {
            done.outcome = SampleOutcome::Skipped;
        } else {
            let words = mask.flatten();
            let mask = words.as_deref().map_or(TokenMask::All, TokenMask::Bits);
            let allows = |token| mask.allows(token);
            let next = next_token(&context, &state.params, output_index, vocab_size, allows);
            let Some(token) = next else {
                done.outcome = SampleOutcome::NothingAllowed;
                state.has_failed = true;
                return done;
            };
            state.last_sampled = Some(token);
            done.outcome = SampleOutcome::Sampled;
            done.token = Some(token);
            done.logprobs = state.params.logprobs.map(|n| fake_logprobs(token, n));
        }
        done
    }

    /// Computes rows until the oldest `steps` are done: any of those in flight, in any order.
    fn run_until_done(&mut self, steps: usize) {
        loop {
            let open = |step: &FakeStep| step.rows.iter().any(|row| row.done.is_none());
            if !self.flight.iter().take(steps).any(open) {
                return;
            }
            let all: Vec<(usize, usize)> = self
                .flight
                .iter()
                .enumerate()
                .flat_map(|(step, flight)| (0..flight.rows.len()).map(move |row| (step, row)))
                .collect();
            let from = self.order.as_mut().map_or(0, |state| random(state) as usize % all.len());
            let ran = (0..all.len()).any(|i| {
                let (step, row) = all[(from + i) % all.len()];
                self.run(step, row)
            });
            assert!(ran, "a step is waited for once it is sampled");
        }
    }
}

/// The ranges of positions that the last of so many tokens sees, one for each group.
fn visible(
    groups: &CacheGroups,
    context_len: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    groups
        .spans()
        .iter()
        .map(move |span| span.first_needed(context_len.saturating_sub(1))..context_len)
}

/// SplitMix64 (Steele et al., 2014).
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Done {
    fn garbage() -> Self {
        let outcome = SampleOutcome::Sampled;
        Self { outcome, token: Some(0), logprobs: None, prompt_logprobs: Vec::new() }
    }
}

impl FakeSlot {
    fn prompt_logprobs(&self, num_computed: usize, context_len: usize) -> Vec<TokenLogprobs> {
        let Some(num_top) = self.params.prompt_logprobs else { return Vec::new() };
        let end = self.prompt_len.min(context_len + 1);
        let predicted = self.token_ids.get(num_computed + 1..end).unwrap_or_default();
        predicted.iter().map(|&token| fake_logprobs(token, num_top)).collect()
    }
}

impl Executor for FakeExecutor {
    fn depth(&self) -> usize {
        self.depth
    }

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
        assert!(self.flight.len() < self.depth, "a step is launched when there is room for it");
        assert!(self.flight.iter().all(|step| step.is_sampled), "the last step was sampled");
        for admitted in &batch.admitted {
            let mut rows = self.flight.iter().flat_map(|step| &step.rows);
            assert!(
                rows.all(|row| row.sequence.slot != admitted.slot),
                "a slot that a step in flight computes is not given away"
            );
            self.slots[admitted.slot.index()] = Some(FakeSlot {
                params: Arc::clone(&admitted.params),
                token_ids: admitted.token_ids.clone(),
                prompt_len: admitted.prompt_len,
                tables: vec![Vec::new(); self.groups.len()],
                last_sampled: None,
                has_failed: false,
            });
        }
        for edit in &batch.table_edits {
            let slot = self.slots[edit.slot.index()].as_mut().expect("a table's slot is taken");
            let table = &mut slot.tables[edit.group as usize];
            if table.len() <= edit.index as usize {
                table.resize(edit.index as usize + 1, None);
            }
            table[edit.index as usize] = Some(edit.block);
        }
        let rows = batch.sequences.iter().map(|sequence| FakeRow {
            sequence: sequence.clone(),
            input: match &sequence.input {
                Input::Tokens(range) => Some(batch.token_ids[range.clone()].to_vec()),
                Input::LastSampled => None,
            },
            mask: None,
            done: None,
        });
        let rows = rows.collect();
        self.flight.push_back(FakeStep { step: batch.step, rows, is_sampled: false });
        Ok(())
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        let step = self.flight.back_mut().expect("a launched step is sampled");
        assert!(!std::mem::replace(&mut step.is_sampled, true), "a step is sampled once");
        for (index, row) in step.rows.iter_mut().enumerate() {
            row.mask = match masks.get(index) {
                TokenMask::All => None,
                TokenMask::Bits(words) => Some(Some(words.to_vec())),
                TokenMask::Skip => Some(None),
            };
        }
        if self.order.is_none() {
            let newest = self.flight.len() - 1;
            for row in 0..self.flight[newest].rows.len() {
                self.run(newest, row);
            }
        }
        Ok(())
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        let lost = || ExecutorError::Fatal("waited for a step never launched".to_owned());
        let step = self.flight.front().ok_or_else(lost)?.step;
        if self.faults.contains(&Fault::FailLate(step)) {
            let failed = self.flight.pop_front().ok_or_else(lost)?;
            for row in &failed.rows {
                if let Some(slot) = &mut self.slots[row.sequence.slot.index()] {
                    slot.has_failed = true;
                }
            }
            return Err(ExecutorError::Step(format!("injected at step {step}")));
        }
        self.run_until_done(1);
        let step = self.flight.pop_front().ok_or_else(lost)?;
        result.clear(step.step);
        for row in step.rows {
            let done = row.done.expect("every row was computed");
            let Done { outcome, token, logprobs, prompt_logprobs } = done;
            result.push_row(outcome, token, logprobs, prompt_logprobs);
        }
        Ok(())
    }
}

/// FNV-1a over the context, the seed and the index; end tokens are skipped
/// while they are banned, others where they are not allowed; `None` where none is left.
fn next_token<'a>(
    context: impl IntoIterator<Item = &'a TokenId>,
    params: &SamplingParams,
    output_index: u32,
    vocab_size: u32,
    allows: impl Fn(TokenId) -> bool,
) -> Option<TokenId> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ params.seed;
    for word in context.into_iter().copied().chain([output_index]) {
        hash = (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    let mut token = u32::try_from(hash % u64::from(vocab_size)).expect("below a 32-bit modulus");
    let ends = |t| params.eos_token_ids.contains(&t) || params.stop_token_ids.contains(&t);
    let may_end = output_index >= params.min_tokens;
    for _ in 0..vocab_size {
        if allows(token) && (may_end || !ends(token)) {
            return Some(token);
        }
        token = (token + 1) % vocab_size;
    }
    None
}

/// Log-probabilities that a test can recognise: the asked token at -1, then -2, -3 …
fn fake_logprobs(token: TokenId, num_top: u32) -> TokenLogprobs {
    let top = (0..num_top).map(|i| (token.wrapping_add(i), -1.0 - i as f32)).collect();
    TokenLogprobs { token, logprob: -1.0, rank: None, top }
}
