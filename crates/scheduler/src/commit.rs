//! What becomes of a step's result.

use sconce_types::{
    BLOCK_SIZE, End, RequestId, Sample, SampleOutcome, ScheduledBatch, StepResult, TenantId,
    TokenId, TokenLogprobs,
};

use crate::{
    BlockPool, Output, Scheduler, SchedulerConfig, Span,
    sequence::{Leave, Sequence, State},
};

impl Scheduler {
    /// Takes the result of the oldest step in flight: appends tokens, ends what has finished,
    /// and appends what each request got to `outputs`. Rows of requests that have ended since
    /// the step was scheduled are discarded. Log-probabilities are taken out of `result`.
    ///
    /// # Panics
    /// If `result` does not answer `batch`: an executor's bug.
    pub fn commit(
        &mut self,
        batch: &ScheduledBatch,
        result: &mut StepResult,
        outputs: &mut Vec<Output>,
    ) {
        assert_eq!(result.step, batch.step, "a result answers its own step");
        assert_eq!(result.rows.len(), batch.sequences.len(), "a result has a row a sequence");
        self.preempted.clear();
        let StepResult { rows, tokens, logprobs, .. } = result;
        let (mut any_finished, mut any_left) = (false, false);
        for (scheduled, row) in batch.sequences.iter().zip(rows) {
            let id = scheduled.request;
            let sequence = self.sequences.get_mut(&id).expect("what a step computes is known");
            sequence.steps_in_flight -= 1;
            if sequence.has_ended() {
                any_left |= sequence.steps_in_flight == 0;
                continue;
            }
            let first = scheduled.num_computed_tokens + 1;
            let (mut fresh, mut prompt_logprobs) = (0, Vec::new());
            if !row.prompt_logprobs.is_empty() {
                let (reported, len) =
                    (sequence.prompt_logprobs_reported, row.prompt_logprobs.len());
                fresh = reported.saturating_sub(first).min(len);
                prompt_logprobs = take(&mut logprobs[row.prompt_logprobs.clone()][fresh..]);
                sequence.prompt_logprobs_reported = reported.max(first + len);
            }
            let mut output = Output {
                request: id,
                token: None,
                logprobs: None,
                num_cached_tokens: sequence.num_cached_tokens.unwrap_or(0),
                prompt_logprobs,
                prompt_logprobs_start: first + fresh,
                finish: None,
            };
            let mut num_computed = scheduled.num_computed_tokens + scheduled.input.len();
            match (scheduled.sample, row.outcome) {
                (Sample::Nothing, SampleOutcome::Nothing) => {}
                (Sample::Token { .. }, SampleOutcome::Sampled) => {
                    assert_eq!(row.tokens.len(), 1, "a row without drafts samples one token");
                    let token = tokens[row.tokens.start];
                    sequence.num_sampling -= 1;
                    sequence.tokens.push(token);
                    output.token = Some(token);
                    if !row.logprobs.is_empty() {
                        output.logprobs = Some(std::mem::take(&mut logprobs[row.logprobs.start]));
                    }
                    output.finish = finish_of(sequence, token);
                }
                // The last token is computed again, and sampled from.
                (Sample::Token { constrained: true, .. }, SampleOutcome::Skipped) => {
                    num_computed -= 1;
                }
                (_, SampleOutcome::NonFiniteLogits) => {
                    output.finish = Some(End::NonFiniteLogits);
                }
                (Sample::Token { .. }, SampleOutcome::NothingAllowed) => {
                    output.finish = Some(End::NothingAllowed);
                }
                (asked, got) => panic!("asked for {asked:?}, the executor answered {got:?}"),
            }
            sequence.num_computed = num_computed;
            any_left |= sequence.state != State::Running && sequence.steps_in_flight == 0;
            if row.outcome != SampleOutcome::NonFiniteLogits {
                let left = keep_computed(sequence, &mut self.pool, &self.config);
                if let Some(Left { blocks, claim }) = left {
                    sequence.claim += claim;
                    self.claimed += claim;
                    self.queue.release(sequence.tenant, blocks);
                }
            }
            if let Some(finish) = &output.finish {
                any_finished = true;
                self.finish(id, finish);
            }
            if output.token.is_some()
                || output.finish.is_some()
                || !output.prompt_logprobs.is_empty()
            {
                outputs.push(output);
            }
        }
        if any_finished {
            self.forget_ended();
        }
        if any_finished || any_left {
            self.release_left();
        }
    }

    /// Ends a request that a step has finished; `running` names it still.
    fn finish(&mut self, id: RequestId, finish: &End) {
        let sequence = self.sequences.get_mut(&id).expect("a finished sequence is known");
        let (tenant, generated) = (sequence.tenant, sequence.num_generated());
        if *finish == End::NonFiniteLogits {
            // What is not finite may lie in the cache: no request is to share it now or to
            // find it later. A chunk that samples nothing was not looked at.
            sequence.table.blocks().for_each(|block| self.pool.remove_key(block));
        }
        if std::mem::replace(&mut sequence.state, State::Leaving(Leave::Ended)) == State::Running {
            self.leaving.push(id);
        }
        if !matches!(finish, End::NonFiniteLogits | End::NothingAllowed) {
            self.learn_length(tenant, generated, *finish == End::Length);
        }
    }

    /// Ends a request whose answer is complete, as one is that a stop string ends: its
    /// length says what later ones may have.
    pub fn stop(&mut self, id: RequestId) {
        if let Some(sequence) = self.sequences.get(&id).filter(|s| !s.has_ended()) {
            let (tenant, generated) = (sequence.tenant, sequence.num_generated());
            self.learn_length(tenant, generated, false);
        }
        self.cancel(id);
    }

    fn learn_length(&mut self, tenant: TenantId, generated: usize, was_cut: bool) {
        self.mean_output += (generated as f64 - self.mean_output) / 32.0;
        self.queue.note_length(tenant, generated, was_cut);
    }

    /// Ends every request that a failed step computed, and names those that had not ended
    /// in `ended`. Other steps in flight are not touched.
    pub fn fail_batch(&mut self, batch: &ScheduledBatch, ended: &mut Vec<RequestId>) {
        self.preempted.clear();
        for scheduled in &batch.sequences {
            let id = scheduled.request;
            let sequence = self.sequences.get_mut(&id).expect("what a step computes is known");
            sequence.steps_in_flight -= 1;
            match std::mem::replace(&mut sequence.state, State::Leaving(Leave::Ended)) {
                State::Leaving(Leave::Ended) => continue,
                State::Running => self.leaving.push(id),
                State::Leaving(Leave::Preempted) => {}
                State::Waiting | State::Blocked(_) => {
                    unreachable!("a step in flight computes what runs or leaves")
                }
            }
            ended.push(id);
        }
        self.forget_ended();
        self.release_left();
    }

    /// Ends every request that holds blocks, whose contents are lost with all steps in
    /// flight, and names those that had not ended in `ended`. What waits goes on waiting.
    pub fn fail_running(&mut self, ended: &mut Vec<RequestId>) {
        self.preempted.clear();
        let running = std::mem::take(&mut self.running);
        self.leaving.splice(0..0, running.iter().map(|running| running.id));
        for id in &self.leaving {
            let sequence = self.sequences.get_mut(id).expect("what runs or leaves is known");
            sequence.steps_in_flight = 0;
            let before = std::mem::replace(&mut sequence.state, State::Leaving(Leave::Ended));
            if before != State::Leaving(Leave::Ended) {
                ended.push(*id);
            }
        }
        self.release_left();
        self.reset_prefix_cache();
    }

    /// Forgets what the cache holds: nothing computed until now is found again.
    pub fn reset_prefix_cache(&mut self) {
        self.pool.remove_keys();
    }

    /// Takes those that are leaving out of the running.
    fn forget_ended(&mut self) {
        let Self { running, sequences, .. } = self;
        running.retain(|running| sequences[&running.id].state == State::Running);
    }

    /// Releases the leaving that no step in flight computes any more.
    fn release_left(&mut self) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|&id| {
            let is_computed = self.sequences[&id].steps_in_flight > 0;
            if !is_computed {
                self.release(id);
            }
            is_computed
        });
        self.leaving = leaving;
    }
}

/// What a sequence's windows have left behind.
struct Left {
    /// Blocks that it does not hold any more.
    blocks: usize,
    /// Blocks of those that are free, and that it claims for the rest of its prompt.
    claim: usize,
}

/// Lets full blocks be found by what a step computed into them, and releases those that
/// windows have left behind.
fn keep_computed(
    sequence: &mut Sequence,
    pool: &mut BlockPool,
    config: &SchedulerConfig,
) -> Option<Left> {
    let groups = &config.groups;
    if let Some(key) = config.prefix_cache {
        for index in sequence.num_keyed..sequence.num_computed / BLOCK_SIZE {
            let hash = sequence.block_hash(key, index);
            for group in 0..groups.len() {
                pool.set_key(sequence.table.block(group, index), (hash, group as u32));
            }
            sequence.num_keyed += 1;
        }
    }
    if !groups.has_windows() {
        return None;
    }
    let mut all = Left { blocks: 0, claim: 0 };
    for (group, &span) in groups.spans().iter().enumerate() {
        if span == Span::All {
            continue;
        }
        let position = sequence.num_computed;
        let (left, freed) = sequence.table.leave_behind(group, span, position, pool);
        all.blocks += left;
        // What its prompt has yet to come to takes their places.
        if sequence.num_scheduled < sequence.claims_until {
            all.claim += freed;
        }
    }
    Some(all)
}

fn take(logprobs: &mut [TokenLogprobs]) -> Vec<TokenLogprobs> {
    logprobs.iter_mut().map(std::mem::take).collect()
}

fn finish_of(sequence: &Sequence, token: TokenId) -> Option<End> {
    let params = &sequence.params;
    let num_output = sequence.tokens.len() - sequence.prompt_len;
    if num_output > params.min_tokens as usize {
        if params.eos_token_ids.contains(&token) {
            return Some(End::Stop { token: None });
        }
        if params.stop_token_ids.contains(&token) {
            return Some(End::Stop { token: Some(token) });
        }
    }
    (num_output >= params.max_tokens as usize).then_some(End::Length)
}
