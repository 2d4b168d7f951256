//! The scheduler's limits, fixed at its start.

use sconce_types::BLOCK_SIZE;

use crate::{CacheGroups, PrefixKey};

/// Whose request is admitted next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulingPolicy {
    /// The request that arrived first.
    Fcfs,
    /// The lowest priority number, then the first arrival.
    Priority,
    /// The tenant that was served least for its weight; within it by priority, then
    /// by arrival.
    #[default]
    Fair,
}

/// What a scheduler may use. Everything in it is bounded by these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens computed in one step, prefill and decode alike.
    pub max_num_batched_tokens: usize,
    /// Tokens of prompt and output together.
    pub max_model_len: usize,
    /// Blocks in the KV cache, for all cache groups together.
    pub num_blocks: usize,
    /// What the model's cache layers keep of a context.
    pub groups: CacheGroups,
    /// Steps in flight at most ([`sconce_types::Executor::depth`]): 1 or 2.
    pub depth: usize,
    /// Requests that may wait.
    pub max_queued: usize,
    /// Full blocks are found again by hashes under this key; `None` turns that off.
    pub prefix_cache: Option<PrefixKey>,
    /// Whose request is admitted next.
    pub policy: SchedulingPolicy,
}

/// Limits that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, but must be {accepted}")]
pub struct ConfigError {
    /// The limit.
    pub field: &'static str,
    /// Its value.
    pub value: usize,
    /// What would be accepted.
    pub accepted: &'static str,
}

impl SchedulerConfig {
    /// Checks the limits.
    ///
    /// # Errors
    /// The first limit that nothing could run under.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self {
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
            num_blocks,
            groups: _,
            depth,
            max_queued,
            prefix_cache: _,
            policy: _,
        } = *self;
        for (field, value) in [
            ("max_num_seqs", max_num_seqs),
            ("max_num_batched_tokens", max_num_batched_tokens),
            ("num_blocks", num_blocks),
            ("max_queued", max_queued),
        ] {
            if value == 0 || value > u32::MAX as usize {
                return Err(ConfigError { field, value, accepted: "from 1 to 4294967295" });
            }
        }
        if max_model_len < 2 {
            let accepted = "at least 2: a token of prompt and one of output";
            return Err(ConfigError { field: "max_model_len", value: max_model_len, accepted });
        }
        if !(1..=2).contains(&depth) {
            return Err(ConfigError { field: "depth", value: depth, accepted: "1 or 2" });
        }
        Ok(())
    }

    /// Tokens that the cache holds: the longest context of one sequence, if it were as long as
    /// that.
    #[must_use]
    pub fn kv_cache_tokens(&self) -> usize {
        self.groups.tokens_in(self.num_blocks, self.max_num_batched_tokens, self.depth)
    }

    /// Entries of one group's block table that so many tokens take.
    #[must_use]
    pub const fn blocks_for(num_tokens: usize) -> usize {
        num_tokens.div_ceil(BLOCK_SIZE)
    }

    /// The most blocks, over all cache groups, that a sequence holds on its way to so many
    /// tokens.
    #[must_use]
    pub fn peak_blocks(&self, num_tokens: usize) -> usize {
        self.groups.peak_blocks(num_tokens, self.max_num_batched_tokens, self.depth)
    }
}
