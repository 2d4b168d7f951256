//! What each step computes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use sconce_types::{
    AdmittedSequence, BLOCK_SIZE, Input, RequestId, Sample, SampleOutcome, SampledTokens,
    SamplingParams, ScheduledBatch, ScheduledSequence, Slot, TokenId, TokenLogprobs,
};

use crate::{
    BlockPool, ConfigError, SchedulerConfig,
    queue::{Waiter, WaitingQueue},
    sequence::Sequence,
};

/// A request as the scheduler takes it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Unique among the unfinished.
    pub id: RequestId,
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// How to go on from it; already validated.
    pub params: Arc<SamplingParams>,
    /// Only requests of one salt share cached blocks.
    pub cache_salt: u64,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to start from.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// No token was asked for.
    #[error("max_tokens is 0, but must be at least 1")]
    NoTokens,
    /// Prompt and output do not fit the context.
    #[error(
        "{prompt_len} prompt tokens and {max_tokens} more exceed the context of {max_model_len}"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// The context's size.
        max_model_len: usize,
    },
    /// It could not finish even alone.
    #[error("the request needs {needed_blocks} KV-cache blocks, but the cache has {num_blocks}")]
    NeverFits {
        /// Blocks that the finished request would hold.
        needed_blocks: usize,
        /// Blocks in the pool.
        num_blocks: usize,
    },
    /// Too many wait.
    #[error("{max_queued} requests wait already")]
    QueueFull {
        /// The limit.
        max_queued: usize,
    },
    /// The id is in use.
    #[error("request id {0} is in use")]
    DuplicateId(u64),
}

/// How a request finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end token (`None`) or one of the request's `stop_token_ids`.
    Stop {
        /// The stop token.
        token: Option<TokenId>,
    },
    /// `max_tokens` were generated.
    Length,
    /// Its logits were not finite; no token comes with this.
    NonFiniteLogits,
}

/// What a step brought one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Whose.
    pub request: RequestId,
    /// The token sampled, if one was.
    pub token: Option<TokenId>,
    /// Its log-probabilities, where asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Prompt tokens that were found in the cache and not computed.
    pub num_cached_tokens: usize,
    /// Log-probabilities of prompt tokens, each reported once.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// The position of the first of them.
    pub prompt_logprobs_start: usize,
    /// Set if the request has ended.
    pub finish: Option<Finish>,
}

/// The scheduler's state in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences with a seat.
    pub running: usize,
    /// Requests without one.
    pub waiting: usize,
    /// Blocks held.
    pub used_blocks: usize,
    /// Blocks in all.
    pub num_blocks: usize,
    /// Preemptions since the start.
    pub preemptions: u64,
    /// Tokens that were looked for in the prefix cache, since the start.
    pub prefix_cache_queries: u64,
    /// Tokens of them that were found.
    pub prefix_cache_hits: u64,
}

/// Decides what each step computes.
///
/// There is no prefill phase and no decode phase: a sequence has tokens and a
/// number of computed ones, and each step lets the second catch up with the
/// first within one budget, running sequences before waiting ones. Where blocks
/// run out, the newest running sequence is preempted and later recomputed; the
/// oldest is never, so every request ends.
#[derive(Clone, Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    pool: BlockPool,
    sequences: HashMap<RequestId, Sequence>,
    waiting: WaitingQueue,
    /// In order of admission.
    running: Vec<RequestId>,
    free_slots: BinaryHeap<Reverse<u32>>,
    step: u64,
    arrivals: u64,
    preemptions: u64,
    prefix_cache_queries: u64,
    prefix_cache_hits: u64,
}

impl Scheduler {
    /// An idle scheduler.
    ///
    /// # Errors
    /// Limits that nothing could run under.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let slots = u32::try_from(config.max_num_seqs).expect("validated to fit 32 bits");
        Ok(Self {
            config,
            pool: BlockPool::new(config.num_blocks),
            sequences: HashMap::new(),
            waiting: WaitingQueue::default(),
            running: Vec::with_capacity(config.max_num_seqs),
            free_slots: (0..slots).map(Reverse).collect(),
            step: 0,
            arrivals: 0,
            preemptions: 0,
            prefix_cache_queries: 0,
            prefix_cache_hits: 0,
        })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// What could never finish, or a full queue.
    pub fn add(&mut self, request: Request) -> Result<(), Refusal> {
        let Request { id, prompt, params, cache_salt } = request;
        let (prompt_len, max_tokens) = (prompt.len(), params.max_tokens as usize);
        let SchedulerConfig { max_model_len, num_blocks, max_queued, .. } = self.config;
        if prompt_len == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(Refusal::NoTokens);
        }
        if prompt_len.saturating_add(max_tokens) > max_model_len {
            return Err(Refusal::TooLong { prompt_len, max_tokens, max_model_len });
        }
        let needed_blocks = SchedulerConfig::blocks_for(prompt_len + max_tokens);
        if needed_blocks > num_blocks {
            return Err(Refusal::NeverFits { needed_blocks, num_blocks });
        }
        if self.waiting.len() >= max_queued {
            return Err(Refusal::QueueFull { max_queued });
        }
        if self.sequences.contains_key(&id) {
            return Err(Refusal::DuplicateId(id.0));
        }
        self.arrivals += 1;
        let sequence = Sequence::new(id, self.arrivals, prompt, params, cache_salt);
        self.waiting.push_back(sequence.waiter());
        self.sequences.insert(id, sequence);
        Ok(())
    }

    /// Ends a request and frees what it holds; says whether there was one.
    /// Not to be called between [`Scheduler::schedule`] and the commit of its batch.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        match self.sequences.get(&id).map(|sequence| sequence.slot.is_some()) {
            None => false,
            Some(true) => {
                self.running.retain(|&running| running != id);
                self.remove(id);
                true
            }
            Some(false) => {
                self.remove(id);
                let sequences = &self.sequences;
                self.waiting.note_dead(|waiter| is_waiting(sequences, waiter));
                true
            }
        }
    }

    /// Writes the next step over `batch`; an empty batch means that there is
    /// nothing to do. Each non-empty batch must be committed or failed before
    /// the next.
    pub fn schedule(&mut self, batch: &mut ScheduledBatch) {
        batch.clear();
        let preempted = self.schedule_running(batch);
        // What preempted somebody has no room to admit anybody.
        if !preempted {
            self.admit_waiting(batch);
        }
        if !batch.is_empty() {
            self.step += 1;
        }
        batch.step = self.step;
    }

    fn schedule_running(&mut self, batch: &mut ScheduledBatch) -> bool {
        let mut preempted = false;
        let mut index = 0;
        while index < self.running.len() {
            let budget = self.config.max_num_batched_tokens - batch.num_tokens;
            if budget == 0 {
                break;
            }
            let id = self.running[index];
            let num_tokens = self.sequences[&id].num_pending().min(budget);
            assert!(num_tokens > 0, "a running sequence has something to compute");
            // Everybody after this one is newer and not scheduled yet.
            while !self.grow_table(id, num_tokens) {
                preempted = true;
                let newest = *self.running.last().expect("this sequence is running");
                self.preempt_newest();
                if newest == id {
                    return true;
                }
            }
            self.push_scheduled(id, num_tokens, batch);
            index += 1;
        }
        preempted
    }

    fn admit_waiting(&mut self, batch: &mut ScheduledBatch) {
        loop {
            let budget = self.config.max_num_batched_tokens - batch.num_tokens;
            if budget == 0 || self.free_slots.is_empty() {
                return;
            }
            let sequences = &self.sequences;
            let next = self.waiting.front(|waiter| is_waiting(sequences, waiter));
            let Some(id) = next else { return };
            self.share_prefix(id);
            // Room for all it has, not for its first chunk alone: a prefill that must
            // give way midway is computed again from its start.
            let sequence = &self.sequences[&id];
            let (num_pending, held) = (sequence.num_pending(), sequence.block_table.len());
            if SchedulerConfig::blocks_for(sequence.len()) - held > self.pool.num_free() {
                self.unshare_prefix(id);
                return;
            }
            self.note_prefix(id);
            let num_tokens = num_pending.min(budget);
            let has_room = self.grow_table(id, num_tokens);
            assert!(has_room, "there is room for more than this");
            self.waiting.pop_front();
            let Reverse(slot) = self.free_slots.pop().expect("a free seat was seen above");
            let sequence = self.sequences.get_mut(&id).expect("the queue's front is waiting");
            sequence.slot = Some(Slot(slot));
            self.running.push(id);
            batch.admitted.push(AdmittedSequence {
                request: id,
                slot: Slot(slot),
                params: Arc::clone(&sequence.params),
                token_ids: sequence.tokens.clone(),
                prompt_len: sequence.prompt_len,
            });
            self.push_scheduled(id, num_tokens, batch);
        }
    }

    /// Gives a sequence the longest beginning of it that is cached, in whole blocks. Its
    /// last token is always computed: what follows is sampled from it.
    fn share_prefix(&mut self, id: RequestId) {
        let Some(key) = self.config.prefix_cache else { return };
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are admitted");
        // The log-probabilities of a prompt are those of tokens that are computed.
        if sequence.params.prompt_logprobs.is_some() {
            return;
        }
        for index in 0..(sequence.len() - 1) / BLOCK_SIZE {
            let Some(block) = self.pool.find(sequence.block_hash(key, index)) else { break };
            self.pool.share(block);
            sequence.block_table.push(block);
        }
        sequence.num_named = sequence.block_table.len();
        sequence.num_computed_tokens = sequence.num_named * BLOCK_SIZE;
    }

    /// Takes it away again from one that is not admitted after all.
    fn unshare_prefix(&mut self, id: RequestId) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are admitted");
        self.pool.free(sequence.block_table.drain(..));
        sequence.num_named = 0;
        sequence.num_computed_tokens = 0;
    }

    /// Counts what an admitted sequence found.
    fn note_prefix(&mut self, id: RequestId) {
        if self.config.prefix_cache.is_none() {
            return;
        }
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are admitted");
        if sequence.num_cached_tokens.is_none() {
            sequence.num_cached_tokens = Some(sequence.num_computed_tokens);
            self.prefix_cache_queries += sequence.prompt_len as u64;
            self.prefix_cache_hits += sequence.num_computed_tokens as u64;
        }
    }

    /// Extends a sequence's block table to cover `num_tokens` more, or leaves
    /// it as it is where the pool has too few blocks.
    fn grow_table(&mut self, id: RequestId, num_tokens: usize) -> bool {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are scheduled");
        let needed = SchedulerConfig::blocks_for(sequence.num_computed_tokens + num_tokens);
        let missing = needed.saturating_sub(sequence.block_table.len());
        if missing > self.pool.num_free() {
            return false;
        }
        for _ in 0..missing {
            let block = self.pool.allocate().expect("the free blocks were counted above");
            sequence.block_table.push(block);
        }
        true
    }

    fn preempt_newest(&mut self) {
        let id = self.running.pop().expect("somebody is running");
        let sequence = self.sequences.get_mut(&id).expect("running sequences are live");
        let slot = sequence.reset().expect("running sequences have a seat");
        self.pool.free(sequence.block_table.drain(..));
        self.free_slots.push(Reverse(slot.0));
        self.waiting.push_front(sequence.waiter());
        self.preemptions += 1;
    }

    fn push_scheduled(&mut self, id: RequestId, num_tokens: usize, batch: &mut ScheduledBatch) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are scheduled");
        let start = sequence.num_computed_tokens;
        let end = start + num_tokens;
        let reaches_end = end == sequence.len();
        let is_decode = sequence.sampled_in_seat && reaches_end && num_tokens == 1;
        let input = if is_decode {
            Input::LastSampled
        } else {
            let from = batch.token_ids.len();
            batch.token_ids.extend_from_slice(&sequence.tokens[start..end]);
            Input::Tokens(from..batch.token_ids.len())
        };
        let sample = if reaches_end {
            let output_index = u32::try_from(sequence.num_output_tokens())
                .expect("max_tokens, a 32-bit number, bounds the output");
            sequence.num_in_flight += 1;
            sequence.sampled_in_seat = true;
            Sample::Token { output_index }
        } else {
            Sample::Nothing
        };
        let table_start = batch.block_tables.len();
        batch.block_tables.extend_from_slice(&sequence.block_table);
        batch.sequences.push(ScheduledSequence {
            request: id,
            slot: sequence.slot.expect("scheduled sequences have a seat"),
            input,
            num_computed_tokens: start,
            block_table: table_start..batch.block_tables.len(),
            sample,
        });
        batch.num_tokens += num_tokens;
        sequence.num_computed_tokens = end;
    }

    /// Takes a step's result: appends tokens, ends what has finished, and
    /// appends what each request got to `outputs`.
    ///
    /// # Panics
    /// If `sampled` does not answer `batch`: an executor's bug.
    pub fn commit(
        &mut self,
        batch: &ScheduledBatch,
        sampled: &SampledTokens,
        outputs: &mut Vec<Output>,
    ) {
        assert_eq!(sampled.step, batch.step, "a result answers its own step");
        assert_eq!(sampled.rows.len(), batch.sequences.len(), "a result has a row a sequence");
        let mut any_finished = false;
        for (scheduled, row) in batch.sequences.iter().zip(&sampled.rows) {
            let id = scheduled.request;
            let sequence =
                self.sequences.get_mut(&id).expect("nothing is cancelled while a step runs");
            let first = scheduled.num_computed_tokens + 1;
            let reported = sequence.prompt_logprobs_reported;
            let fresh = reported.saturating_sub(first).min(row.prompt_logprobs.len());
            let mut output = Output {
                request: id,
                token: None,
                logprobs: None,
                num_cached_tokens: sequence.num_cached_tokens.unwrap_or(0),
                prompt_logprobs: row.prompt_logprobs[fresh..].to_vec(),
                prompt_logprobs_start: first + fresh,
                finish: None,
            };
            sequence.prompt_logprobs_reported = reported.max(first + row.prompt_logprobs.len());
            match (scheduled.sample, row.outcome) {
                (Sample::Nothing, SampleOutcome::Nothing) => {}
                (Sample::Token { .. }, SampleOutcome::Token(token)) => {
                    sequence.num_in_flight -= 1;
                    sequence.tokens.push(token);
                    output.token = Some(token);
                    output.logprobs.clone_from(&row.logprobs);
                    output.finish = finish_of(sequence, token);
                }
                (_, SampleOutcome::NonFiniteLogits) => {
                    output.finish = Some(Finish::NonFiniteLogits);
                }
                (asked, got) => panic!("asked for {asked:?}, the executor answered {got:?}"),
            }
            if let Some(key) = self.config.prefix_cache
                && row.outcome != SampleOutcome::NonFiniteLogits
            {
                // What is computed now may be shared.
                let num_computed = scheduled.num_computed_tokens + scheduled.input.len();
                for index in sequence.num_named..num_computed / BLOCK_SIZE {
                    let name = sequence.block_hash(key, index);
                    self.pool.name(sequence.block_table[index], name);
                    sequence.num_named += 1;
                }
            }
            if output.finish.is_some() {
                any_finished = true;
                self.remove(id);
            }
            if output.token.is_some()
                || output.finish.is_some()
                || !output.prompt_logprobs.is_empty()
            {
                outputs.push(output);
            }
        }
        if any_finished {
            self.forget_removed();
        }
    }

    /// Ends every sequence of a step that failed, and names them in `ended`.
    pub fn fail_batch(&mut self, batch: &ScheduledBatch, ended: &mut Vec<RequestId>) {
        for scheduled in &batch.sequences {
            self.remove(scheduled.request);
            ended.push(scheduled.request);
        }
        self.forget_removed();
    }

    /// Ends every sequence that holds blocks, whose contents are lost, and names them
    /// in `ended`. Those that wait go on waiting.
    pub fn fail_running(&mut self, ended: &mut Vec<RequestId>) {
        for id in std::mem::take(&mut self.running) {
            self.remove(id);
            ended.push(id);
        }
        self.reset_prefix_cache();
    }

    /// Forgets what the cache holds: nothing computed until now is found again.
    pub fn reset_prefix_cache(&mut self) {
        self.pool.forget_names();
    }

    /// Drops a sequence and what it holds; `running` is the caller's to mend.
    fn remove(&mut self, id: RequestId) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        self.pool.free(sequence.block_table.into_iter());
        if let Some(slot) = sequence.slot {
            self.free_slots.push(Reverse(slot.0));
        }
    }

    fn forget_removed(&mut self) {
        let Self { running, sequences, .. } = self;
        running.retain(|id| sequences.contains_key(id));
    }

    /// The state in numbers.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            used_blocks: self.pool.num_blocks() - self.pool.num_free(),
            num_blocks: self.pool.num_blocks(),
            preemptions: self.preemptions,
            prefix_cache_queries: self.prefix_cache_queries,
            prefix_cache_hits: self.prefix_cache_hits,
        }
    }

    /// Checks everything that must hold between steps.
    ///
    /// # Panics
    /// Naming the invariant that is broken.
    pub fn check_invariants(&self) {
        self.pool.check_invariants(self.sequences.values().map(|s| &s.block_table[..]));
        assert_eq!(
            self.running.len() + self.waiting.len(),
            self.sequences.len(),
            "every request runs or waits"
        );
        assert!(self.running.len() <= self.config.max_num_seqs, "seats are bounded");
        let mut taken: Vec<u32> = self.free_slots.iter().map(|&Reverse(slot)| slot).collect();
        for id in &self.running {
            let sequence = &self.sequences[id];
            taken.push(sequence.slot.expect("a running sequence has a seat").0);
            assert!(
                sequence.block_table.len() * BLOCK_SIZE >= sequence.num_computed_tokens,
                "a block table covers what was computed"
            );
            assert!(sequence.num_pending() > 0, "a running sequence has something to compute");
        }
        taken.sort_unstable();
        assert!(
            taken.iter().copied().eq(0..self.config.max_num_seqs as u32),
            "every seat is free or taken, once"
        );
        for sequence in self.sequences.values() {
            assert!(
                sequence.tokens.len() < sequence.prompt_len + sequence.params.max_tokens as usize,
                "request {} goes on only below max_tokens",
                sequence.id.0
            );
            if sequence.slot.is_none() {
                assert!(sequence.block_table.is_empty(), "a waiting request holds no block");
                assert_eq!(sequence.num_computed_tokens, 0, "a waiting request starts anew");
            }
        }
    }
}

fn is_waiting(sequences: &HashMap<RequestId, Sequence>, waiter: Waiter) -> bool {
    let sequence = sequences.get(&waiter.id);
    sequence.is_some_and(|s| s.slot.is_none() && s.arrival == waiter.arrival)
}

fn finish_of(sequence: &Sequence, token: TokenId) -> Option<Finish> {
    let params = &sequence.params;
    let num_output = sequence.tokens.len() - sequence.prompt_len;
    if num_output > params.min_tokens as usize {
        if params.eos_token_ids.contains(&token) {
            return Some(Finish::Stop { token: None });
        }
        if params.stop_token_ids.contains(&token) {
            return Some(Finish::Stop { token: Some(token) });
        }
    }
    (num_output >= params.max_tokens as usize).then_some(Finish::Length)
}
