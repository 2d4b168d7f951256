//! One request's state.

use std::sync::Arc;

use sconce_types::{BLOCK_SIZE, BlockId, RequestId, SamplingParams, Slot, TenantId, TokenId};

use crate::{BlockHash, PrefixKey, accounts::Place};

/// A request between its arrival and its end.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) id: RequestId,
    pub(crate) tenant: TenantId,
    /// Where it stands in its tenant's line while it waits.
    pub(crate) place: Place,
    /// Counts admissions: of two running sequences the newer has the higher.
    pub(crate) admission: u64,
    pub(crate) params: Arc<SamplingParams>,
    /// Prompt, then output. The token sampled last may be unknown yet: it is
    /// counted by `num_in_flight`, not held here.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    /// Tokens whose keys and values are in the cache, or will be once the
    /// steps scheduled so far are computed.
    pub(crate) num_computed_tokens: usize,
    /// The step that it was scheduled in last.
    pub(crate) last_step: u64,
    /// Tokens that its tenant was charged for.
    pub(crate) num_charged: usize,
    /// Tokens being sampled by steps that are not committed yet.
    pub(crate) num_in_flight: usize,
    /// Append-only while it runs.
    pub(crate) block_table: Vec<BlockId>,
    /// Names of its first full blocks, as far as they were needed.
    pub(crate) block_hashes: Vec<BlockHash>,
    /// Blocks whose names the pool knows.
    pub(crate) num_named: usize,
    /// Whose cached blocks it may share.
    pub(crate) cache_salt: u64,
    /// Prompt tokens found in the cache when it was first admitted.
    pub(crate) num_cached_tokens: Option<usize>,
    /// Its seat; `None` while it waits.
    pub(crate) slot: Option<Slot>,
    /// Prompt log-probabilities up to this position were reported.
    pub(crate) prompt_logprobs_reported: usize,
    /// Whether its seat was taken in a step and has sampled there, so that the
    /// executor knows the newest token.
    pub(crate) sampled_in_seat: bool,
}

impl Sequence {
    pub(crate) fn new(
        id: RequestId,
        tenant: TenantId,
        place: Place,
        prompt: Vec<TokenId>,
        params: Arc<SamplingParams>,
        cache_salt: u64,
    ) -> Self {
        Self {
            id,
            tenant,
            place,
            admission: 0,
            params,
            prompt_len: prompt.len(),
            tokens: prompt,
            num_computed_tokens: 0,
            last_step: 0,
            num_charged: 0,
            num_in_flight: 0,
            block_table: Vec::new(),
            block_hashes: Vec::new(),
            num_named: 0,
            cache_salt,
            num_cached_tokens: None,
            slot: None,
            prompt_logprobs_reported: 1,
            sampled_in_seat: false,
        }
    }

    /// Tokens of its answer so far.
    pub(crate) fn num_generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Tokens known or being sampled.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len() + self.num_in_flight
    }

    /// Tokens still to be computed.
    pub(crate) fn num_pending(&self) -> usize {
        self.len() - self.num_computed_tokens
    }

    /// Whether all that is left to compute is the token that was sampled last.
    pub(crate) fn is_decode(&self) -> bool {
        self.sampled_in_seat && self.num_pending() == 1
    }

    /// Generated tokens, those in flight included.
    pub(crate) fn num_output_tokens(&self) -> usize {
        self.len() - self.prompt_len
    }

    /// The name of its `index`-th block, whose tokens must be known.
    pub(crate) fn block_hash(&mut self, key: PrefixKey, index: usize) -> BlockHash {
        for i in self.block_hashes.len()..=index {
            let parent = self.block_hashes.last().copied();
            let parent = parent.unwrap_or_else(|| key.root(self.cache_salt));
            let tokens = &self.tokens[i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE];
            self.block_hashes.push(key.child(parent, tokens));
        }
        self.block_hashes[index]
    }

    /// Back to the start, keeping what was generated.
    pub(crate) fn reset(&mut self) -> Option<Slot> {
        self.num_computed_tokens = 0;
        self.num_named = 0;
        self.num_in_flight = 0;
        self.sampled_in_seat = false;
        self.slot.take()
    }
}
