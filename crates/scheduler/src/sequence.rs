//! One request's state.

use std::sync::Arc;

use sconce_types::{
    BLOCK_SIZE, Input, NotReady, RequestId, Sample, SamplingParams, ScheduledBatch,
    ScheduledSequence, Slot, TenantId, TokenId,
};

use crate::{
    BlockHash, CacheGroups, PrefixKey, Request, TokenCosts, block_table::BlockTable,
    fair_queue::Place,
};

/// Where a request is between its arrival and its end.
///
/// `Blocked → Waiting → Running → Leaving → gone`, or back to `Waiting` after a preemption. A
/// sequence that no step in flight computes leaves at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not ready to be scheduled; it is in no queue and holds nothing.
    Blocked(NotReady),
    /// In its tenant's queue; it holds nothing.
    Waiting,
    /// It has a slot and blocks.
    Running,
    /// It keeps slot and blocks until no step in flight computes it.
    Leaving(Leave),
}

/// Why a sequence leaves its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// The request has ended: what steps in flight compute for it is discarded.
    Ended,
    /// It was preempted: what steps in flight compute for it counts.
    Preempted,
}

/// A request between its arrival and its end.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) tenant: TenantId,
    pub(crate) state: State,
    /// Its place in its tenant's queue while it waits.
    pub(crate) place: Place,
    /// Counts admissions: of two running sequences the newer has the higher.
    pub(crate) admission: u64,
    pub(crate) params: Arc<SamplingParams>,
    pub(crate) is_constrained: bool,
    /// Prompt, then output. Tokens that steps in flight sample are not known yet: they are
    /// counted by `num_sampling`, not held here.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    /// Tokens whose keys and values are in the cache, or will be once the
    /// steps scheduled so far are computed.
    pub(crate) num_scheduled: usize,
    /// Tokens whose keys and values committed steps have computed.
    pub(crate) num_computed: usize,
    /// Steps that compute it and are not committed yet.
    pub(crate) steps_in_flight: u32,
    /// The step that it was scheduled in last.
    pub(crate) last_step: u64,
    /// Tokens that its tenant was charged for.
    pub(crate) num_charged: usize,
    /// Tokens being sampled by steps that are not committed yet.
    pub(crate) num_sampling: usize,
    pub(crate) table: BlockTable,
    /// Blocks that it needs for its prompt and does not hold yet; they stay free for it.
    pub(crate) claim: usize,
    /// Tokens up to which it claims blocks: all that it had when it was admitted.
    pub(crate) claims_until: usize,
    /// Hashes of its first full blocks, as far as they were needed.
    pub(crate) block_hashes: Vec<BlockHash>,
    /// Blocks whose keys the pool knows.
    pub(crate) num_keyed: usize,
    /// Whose cached blocks it may share.
    pub(crate) cache_salt: u64,
    /// Prompt tokens found in the cache when it was first admitted.
    pub(crate) num_cached_tokens: Option<usize>,
    /// Its slot; `None` while it waits.
    pub(crate) slot: Option<Slot>,
    /// Prompt log-probabilities up to this position were reported.
    pub(crate) prompt_logprobs_reported: usize,
    /// Tokens that it sampled since it has its slot: if there are any, the executor knows the
    /// newest token.
    pub(crate) num_sampled_in_slot: usize,
}

impl Sequence {
    pub(crate) fn new(request: Request, place: Place, groups: &CacheGroups) -> Self {
        let Request {
            id,
            prompt,
            params,
            tenant,
            cache_salt,
            is_constrained,
            not_ready,
            priority: _,
        } = request;
        Self {
            id,
            tenant,
            state: not_ready.map_or(State::Waiting, State::Blocked),
            place,
            admission: 0,
            params,
            is_constrained,
            prompt_len: prompt.len(),
            tokens: prompt,
            num_scheduled: 0,
            num_computed: 0,
            steps_in_flight: 0,
            last_step: 0,
            num_charged: 0,
            num_sampling: 0,
            table: BlockTable::new(groups.len()),
            claim: 0,
            claims_until: 0,
            block_hashes: Vec::new(),
            num_keyed: 0,
            cache_salt,
            num_cached_tokens: None,
            slot: None,
            prompt_logprobs_reported: 1,
            num_sampled_in_slot: 0,
        }
    }

    /// Tokens of its answer so far.
    pub(crate) fn num_generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens known or being sampled.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len() + self.num_sampling
    }

    /// Tokens still to be scheduled.
    pub(crate) fn num_pending(&self) -> usize {
        self.len() - self.num_scheduled
    }

    /// Whether all that is left to compute is the token that was sampled last.
    pub(crate) fn is_decode(&self) -> bool {
        self.num_sampled_in_slot > 0 && self.num_pending() == 1
    }

    /// Whether its tables cover so many tokens more, and it claims no others.
    pub(crate) fn has_blocks_for(&self, tokens: usize) -> bool {
        self.claim == 0 && self.table.covers(self.num_scheduled + tokens)
    }

    /// Generated tokens, those being sampled included.
    pub(crate) fn num_output_tokens(&self) -> usize {
        self.len() - self.prompt_len
    }

    /// Whether the last token that it may generate is being sampled: there is nothing more to
    /// schedule unless that step fails it.
    pub(crate) fn samples_its_last(&self) -> bool {
        self.num_sampling > 0 && self.num_output_tokens() >= self.params.max_tokens as usize
    }

    /// Whether the request has ended and only its slot is held.
    pub(crate) fn has_ended(&self) -> bool {
        self.state == State::Leaving(Leave::Ended)
    }

    /// Adds its next tokens to a step's batch; what its tenant is charged for them. Its table must
    /// cover them.
    pub(crate) fn schedule(
        &mut self,
        num_tokens: usize,
        step: u64,
        costs: &TokenCosts,
        batch: &mut ScheduledBatch,
    ) -> f64 {
        let start = self.num_scheduled;
        let end = start + num_tokens;
        let reaches_end = end == self.len();
        let is_decode = self.is_decode();
        let input = if is_decode {
            Input::LastSampled
        } else {
            let from = batch.token_ids.len();
            batch.token_ids.extend_from_slice(&self.tokens[start..end]);
            Input::Tokens(from..batch.token_ids.len())
        };
        let sample = if reaches_end {
            let output_index = u32::try_from(self.num_output_tokens())
                .expect("max_tokens, a 32-bit number, bounds the output");
            self.num_sampling += 1;
            self.num_sampled_in_slot += 1;
            let constrained = self.is_constrained;
            batch.num_constrained += usize::from(constrained);
            Sample::Token { output_index, constrained }
        } else {
            Sample::Nothing
        };
        let slot = self.slot.expect("scheduled sequences have a slot");
        let edits = batch.table_edits.len();
        self.table.tell(slot, &mut batch.table_edits);
        batch.sequences.push(ScheduledSequence {
            request: self.id,
            slot,
            input,
            num_computed_tokens: start,
            num_blocks: self.table.num_held(),
            table_edits: edits..batch.table_edits.len(),
            sample,
        });
        batch.num_tokens += num_tokens;
        self.num_scheduled = end;
        self.steps_in_flight += 1;
        self.last_step = step;
        // What is computed again after a preemption was charged before.
        let fresh = end.saturating_sub(self.num_charged.max(start)) as f64;
        self.num_charged = self.num_charged.max(end);
        if is_decode { costs.decode * fresh } else { fresh }
    }

    /// The hash of its `index`-th block, whose tokens must be known.
    pub(crate) fn block_hash(&mut self, key: PrefixKey, index: usize) -> BlockHash {
        for i in self.block_hashes.len()..=index {
            let parent = self.block_hashes.last().copied();
            let parent = parent.unwrap_or_else(|| key.root(self.cache_salt));
            let tokens = &self.tokens[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE];
            self.block_hashes.push(key.child(parent, tokens));
        }
        self.block_hashes[index]
    }

    /// Back to the start, keeping what was generated. The table must have been released.
    pub(crate) fn reset(&mut self) {
        assert_eq!(self.steps_in_flight, 0, "no step in flight computes what starts anew");
        self.state = State::Waiting;
        self.num_scheduled = 0;
        self.num_computed = 0;
        self.num_keyed = 0;
        self.num_sampling = 0;
        self.num_sampled_in_slot = 0;
        self.claims_until = 0;
    }
}
