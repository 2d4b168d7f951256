//! Whether a request is taken now, in the engine's terms.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use sconce_scheduler::{Admission, Ask, Refused, Scheduler, Shortage};
use sconce_types::{RequestId, Tenant, TenantId};

use crate::{
    EngineRequest, Metrics, Overload, RequestError, stream::two_digits, tenants::TenantTable,
};

/// What a tenant may expect now.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    /// Its sequences that run.
    pub running: usize,
    /// Its requests that wait.
    pub waiting: usize,
    /// Everybody's sequences that run.
    pub total_running: usize,
    /// Everybody's requests that wait.
    pub total_waiting: usize,
    /// KV-cache blocks that nobody holds.
    pub free_blocks: usize,
    /// Its part of the engine now, beside the other active tenants.
    pub share: f64,
    /// When the first token of a request that came now should come; `None` until enough
    /// steps were measured.
    pub ttft: Option<Duration>,
    /// The time from token to token; `None` as above.
    pub tpot: Option<Duration>,
    /// Its limit of tokens a minute leaves it this long to wait, if at all.
    pub rate_limited_for: Option<Duration>,
    /// A request that came now would be refused, and should not be after this time.
    pub refused_for: Option<Duration>,
}

/// What submitting threads decide by.
pub(crate) struct Door {
    pub(crate) admission: Admission,
    /// Each tenant's refused requests.
    refused: Vec<Option<IntCounter>>,
}

impl Door {
    pub(crate) fn new(admission: Admission, tenants: &[Tenant], metrics: &Metrics) -> Self {
        let mut door = Self { admission, refused: Vec::new() };
        door.set_tenants(tenants, metrics);
        door
    }

    pub(crate) fn set_tenants(&mut self, tenants: &[Tenant], metrics: &Metrics) {
        self.admission.set_tenants(tenants);
        for tenant in tenants {
            let index = tenant.id.index();
            self.refused.resize(self.refused.len().max(index + 1), None);
            self.refused[index] = Some(metrics.of_tenant(&tenant.name).refused);
        }
    }

    pub(crate) fn refused(&self, tenant: TenantId) -> Option<IntCounter> {
        self.refused.get(tenant.index())?.clone()
    }
}

/// A refusal in the client's terms, and the whole seconds after which to try again.
pub(crate) fn explain(refused: &Refused) -> (Overload, Duration) {
    let reason = match refused.shortage {
        Shortage::TenantQueue { max_queued } => Overload::QueueFull { max_queued },
        Shortage::Wait { expected, limit } => {
            Overload::QueueTooLong { expected: seconds(expected), limit: seconds(limit) }
        }
        Shortage::FirstToken { expected, limit } => {
            Overload::TooLate { expected: seconds(expected), limit: seconds(limit) }
        }
        Shortage::End { expected, limit } => {
            Overload::EndsTooLate { expected: seconds(expected), limit: seconds(limit) }
        }
        Shortage::Pace { expected, target } => {
            Overload::TooSlow { expected: seconds(expected), target: seconds(target) }
        }
        Shortage::Places | Shortage::Promised => Overload::Promised,
        Shortage::Unmeasured => Overload::Unmeasured,
    };
    (reason, retry_after(refused.retry_after))
}

/// Refuses what its tenant's limit of tokens a minute forbids.
///
/// # Errors
/// Why, and when to try again.
pub(crate) fn check(
    request: &EngineRequest,
    tenants: &mut TenantTable,
    now: Instant,
) -> Result<(), RequestError> {
    let Some(known) = tenants.get_mut(request.tenant) else { return Ok(()) };
    let tokens = tokens_at_most(request);
    let Some(seconds) = known.seconds_until(tokens, now) else {
        return Ok(());
    };
    let tokens_per_minute = known.tenant.tokens_per_minute.unwrap_or(0);
    if tokens > tokens_per_minute {
        return Err(RequestError::ExceedsMinute {
            choices: 1,
            prompt_tokens: request.prompt.len(),
            max_tokens: request.params.max_tokens as usize,
            tokens_per_minute,
        });
    }
    Err(overloaded(Overload::TokensPerMinute { tokens_per_minute }, seconds))
}

/// The tokens that a request may use, which its tenant's limit must have room for.
pub(crate) fn tokens_at_most(request: &EngineRequest) -> u64 {
    request.prompt.len() as u64 + u64::from(request.params.max_tokens)
}

/// A refusal that names the time after which it no longer holds, in whole seconds.
pub(crate) fn overloaded(reason: Overload, seconds: f64) -> RequestError {
    RequestError::Overloaded { reason, retry_after: retry_after(seconds) }
}

fn retry_after(seconds: f64) -> Duration {
    Duration::from_secs(seconds.ceil().clamp(1.0, 3600.0) as u64)
}

/// What a tenant may expect now. `at` is the time by the clock of `admission`.
pub(crate) fn capacity(
    tenant: TenantId,
    prompt_len: usize,
    scheduler: &Scheduler,
    admission: &Admission,
    tenants: &mut TenantTable,
    (now, at): (Instant, f64),
) -> Capacity {
    let (all, own) = (scheduler.stats(), scheduler.tenant_stats(tenant));
    let expected = admission.expected(tenant, prompt_len, at);
    let ask = Ask { id: RequestId(u64::MAX), tenant, prompt_len, max_tokens: 1, timeout: None };
    let refused = admission.check(&ask, all.running + all.waiting == 0, at).err();
    let wait =
        tenants.get_mut(tenant).and_then(|known| known.seconds_until(prompt_len as u64, now));
    Capacity {
        running: own.running,
        waiting: own.waiting,
        total_running: all.running,
        total_waiting: all.waiting,
        free_blocks: all.num_blocks - all.used_blocks,
        share: own.share,
        ttft: expected.map(|expected| two_digits(seconds(expected.ttft))),
        tpot: expected.map(|expected| two_digits(seconds(expected.tpot))),
        rate_limited_for: wait.map(seconds),
        refused_for: refused.map(|refused| seconds(refused.retry_after)),
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.min(1e9)).unwrap_or_default()
}

/// When requests end, or are refused after all.
#[derive(Default)]
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(Instant, RequestId, Deadline)>>,
}

/// What a moment is for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deadline {
    /// Its first token is there by then, or it matters no longer.
    FirstToken,
    /// It has ended by then.
    End,
}

impl Deadlines {
    pub(crate) fn add(&mut self, at: Instant, id: RequestId, deadline: Deadline) {
        self.heap.push(Reverse((at, id, deadline)));
    }

    /// The next that has passed.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(RequestId, Deadline)> {
        let &Reverse((at, id, deadline)) = self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop();
        Some((id, deadline))
    }

    /// Forgets those of requests that have ended, once they outnumber the others.
    pub(crate) fn tidy(&mut self, num_live: usize, is_live: impl Fn(RequestId) -> bool) {
        if self.heap.len() > 4 * num_live + 64 {
            self.heap.retain(|Reverse((_, id, _))| is_live(*id));
        }
    }
}
