//! What goes into a scheduler, and what comes out.

use std::{collections::HashMap, sync::Arc};

use rustc_hash::FxBuildHasher;
use sconce_types::{
    BLOCK_SIZE, End, NotReady, RequestId, SamplingParams, TenantId, TokenId, TokenLogprobs,
};

use crate::SchedulerConfig;

/// A map by request. Ids are counted by the engine, not chosen by clients, so
/// nobody can make them collide.
pub type ByRequest<T> = HashMap<RequestId, T, FxBuildHasher>;

/// A request as the scheduler takes it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Unique among the unfinished.
    pub id: RequestId,
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// How to go on from it; already validated.
    pub params: Arc<SamplingParams>,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its place among its tenant's requests: lower is sooner.
    pub priority: i32,
    /// Only requests of one salt share cached blocks.
    pub cache_salt: u64,
    /// Whether each of its tokens is sampled under a mask.
    pub is_constrained: bool,
    /// What it waits for before it enters its tenant's queue, until
    /// [`Scheduler::unblock`](crate::Scheduler::unblock).
    pub not_ready: Option<NotReady>,
}

impl Request {
    /// A request of an engine's only tenant.
    #[must_use]
    pub fn new(id: RequestId, prompt: Vec<TokenId>, params: Arc<SamplingParams>) -> Self {
        Self {
            id,
            prompt,
            params,
            tenant: TenantId(0),
            priority: 0,
            cache_salt: 0,
            is_constrained: false,
            not_ready: None,
        }
    }
}

/// A request that can finish alone under the limits that it was checked against.
#[derive(Clone, Debug)]
pub struct CheckedRequest(pub(crate) Request);

impl CheckedRequest {
    /// The request.
    #[must_use]
    pub fn get(&self) -> &Request {
        &self.0
    }
}

/// Why a request could never finish, whatever the load.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There is nothing to start from.
    #[error("the prompt is empty, but must have at least one token")]
    EmptyPrompt,
    /// No token was asked for.
    #[error("max_tokens is 0, but must be at least 1")]
    NoTokens,
    /// Prompt and output do not fit the context.
    #[error(
        "This model's maximum context length is {max_model_len} tokens, but the prompt has \
         {prompt_len} tokens and max_tokens is {max_tokens}; shorten the prompt or lower max_tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// The context's size.
        max_model_len: usize,
    },
    /// Prompt and output do not fit the KV cache, even alone.
    #[error(
        "the request needs {needed_blocks} KV-cache blocks of {BLOCK_SIZE} tokens, but the cache \
         has {num_blocks}; lower max_tokens, or start the server with more KV-cache memory"
    )]
    NeverFits {
        /// The most blocks that the request would hold.
        needed_blocks: usize,
        /// Blocks in the pool.
        num_blocks: usize,
    },
}

impl SchedulerConfig {
    /// Checks that a request can finish alone.
    ///
    /// # Errors
    /// The first limit that it exceeds.
    pub fn check(&self, request: Request) -> Result<CheckedRequest, Unfit> {
        self.check_lengths(request.prompt.len(), request.params.max_tokens as usize)?;
        Ok(CheckedRequest(request))
    }

    /// The same of a request of these lengths.
    ///
    /// # Errors
    /// As [`SchedulerConfig::check`].
    pub fn check_lengths(&self, prompt_len: usize, max_tokens: usize) -> Result<(), Unfit> {
        let Self { max_model_len, num_blocks, .. } = *self;
        if prompt_len == 0 {
            return Err(Unfit::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(Unfit::NoTokens);
        }
        if prompt_len.saturating_add(max_tokens) > max_model_len {
            return Err(Unfit::TooLong { prompt_len, max_tokens, max_model_len });
        }
        let needed_blocks = self.peak_blocks(prompt_len + max_tokens);
        if needed_blocks > num_blocks {
            return Err(Unfit::NeverFits { needed_blocks, num_blocks });
        }
        Ok(())
    }
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It could never finish under the scheduler's limits.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// Too many wait.
    #[error("{max_queued} requests wait already")]
    QueueFull {
        /// The limit.
        max_queued: usize,
    },
    /// Too many of its tenant's wait.
    #[error("{max_queued} requests of this tenant wait already")]
    TenantQueueFull {
        /// The limit.
        max_queued: usize,
    },
    /// It could not finish even with all the blocks that its tenant may hold.
    #[error(
        "the request needs {needed_blocks} KV-cache blocks, but its tenant may hold {max_blocks}"
    )]
    TenantNeverFits {
        /// Blocks that the finished request would hold.
        needed_blocks: usize,
        /// The tenant's limit.
        max_blocks: usize,
    },
    /// The id is in use.
    #[error("request id {0} is in use")]
    DuplicateId(u64),
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
    pub finish: Option<End>,
}

/// The scheduler's state in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Sequences with a slot that are not leaving it.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// Requests that are not ready to be scheduled.
    pub blocked: usize,
    /// Sequences that have ended or are preempted, and that a step in flight computes still.
    pub leaving: usize,
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

/// What a tenant has in a scheduler, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TenantStats {
    /// Sequences with a slot.
    pub running: usize,
    /// Requests in its queue.
    pub waiting: usize,
    /// Requests of it that are not ready to be scheduled.
    pub blocked: usize,
    /// Tokens of those in its queue.
    pub waiting_tokens: usize,
    /// Blocks in its sequences' tables; shared ones count in each.
    pub blocks: usize,
    /// Its part of the engine beside the other active tenants, from 0 to 1; 0 while it
    /// has nothing here.
    pub share: f64,
    /// Cost that it was served, by weight: the counter that fair shares go by.
    pub counter: f64,
}

/// What tokens cost, in units of a prompt token that is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenCosts {
    /// A prompt token that is found in the prefix cache.
    pub cached: f64,
    /// A token that is generated.
    pub decode: f64,
}

impl Default for TokenCosts {
    /// Until steps are measured: as in the paper, a generated token costs twice as much.
    fn default() -> Self {
        Self { cached: 0.0, decode: 2.0 }
    }
}
