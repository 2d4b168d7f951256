//! What becomes of a step's result.

use std::cmp::Reverse;

use sconce_types::{
    BLOCK_SIZE, RequestId, Sample, SampleOutcome, SampledTokens, ScheduledBatch, TenantId, TokenId,
};

use crate::{Finish, Output, Scheduler, sequence::Sequence};

impl Scheduler {
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
            if let Some(finish) = &output.finish {
                any_finished = true;
                let (tenant, generated) = (sequence.tenant, sequence.num_generated());
                if *finish == Finish::NonFiniteLogits {
                    // What is not finite may lie in the cache: nobody is to share it, or to
                    // find it the next time. A chunk that samples nothing was not looked at.
                    for &block in &sequence.block_table {
                        self.pool.forget_name(block);
                    }
                } else {
                    self.learn_length(tenant, generated, *finish == Finish::Length);
                }
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

    /// Ends a request whose answer is complete, as one is that a stop string ends: its
    /// length says what later ones may have. Its blocks are free for the next step.
    pub fn stop(&mut self, id: RequestId) {
        if let Some(sequence) = self.sequences.get(&id) {
            let (tenant, generated) = (sequence.tenant, sequence.num_generated());
            self.learn_length(tenant, generated, false);
        }
        self.cancel(id);
    }

    fn learn_length(&mut self, tenant: TenantId, generated: usize, was_cut: bool) {
        self.mean_output += (generated as f64 - self.mean_output) / 32.0;
        self.accounts.note_length(tenant, generated, was_cut);
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
        for running in std::mem::take(&mut self.running) {
            self.remove(running.id);
            ended.push(running.id);
        }
        self.reset_prefix_cache();
    }

    /// Forgets what the cache holds: nothing computed until now is found again.
    pub fn reset_prefix_cache(&mut self) {
        self.pool.forget_names();
    }

    /// Drops a sequence and what it holds; `running` is the caller's to mend.
    pub(crate) fn remove(&mut self, id: RequestId) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        self.accounts.release(sequence.tenant, sequence.block_table.len());
        self.pool.free(sequence.block_table.into_iter());
        match sequence.slot {
            Some(slot) => {
                self.free_slots.push(Reverse(slot.0));
                self.accounts.unseat(sequence.tenant);
            }
            None => self.accounts.dequeue(sequence.tenant, sequence.place, sequence.tokens.len()),
        }
    }

    fn forget_removed(&mut self) {
        let Self { running, sequences, .. } = self;
        running.retain(|running| sequences.contains_key(&running.id));
    }
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
