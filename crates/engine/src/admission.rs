//! Whether a request is taken now, in the engine's terms.

use std::time::Duration;

use prometheus::IntCounter;
use sconce_scheduler::{Admission, Ask, Refused, Scheduler, Shortage};
use sconce_types::{RequestId, Tenant, TenantId};

use crate::{Metrics, Overload, RequestError, SubmitError, stream::two_digits};

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

/// The state that submitting threads share, behind a lock: admission, and the counters of
/// refusals.
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

/// Why a request was not taken, in its client's terms.
pub(crate) fn explain(ask: &Ask, refused: &Refused) -> SubmitError {
    let reason = match refused.shortage {
        Shortage::ExceedsMinute { tokens_per_minute } => {
            return SubmitError::ExceedsMinute {
                choices: 1,
                prompt_tokens: ask.prompt_len,
                max_tokens: ask.max_tokens,
                tokens_per_minute,
            };
        }
        Shortage::Minute { tokens_per_minute } => Overload::TokensPerMinute { tokens_per_minute },
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
    SubmitError::Overloaded { reason, retry_after: retry_after(refused.retry_after) }
}

/// A refusal that names the time after which it no longer holds, in whole seconds.
pub(crate) fn overloaded(reason: Overload, seconds: f64) -> RequestError {
    RequestError::Overloaded { reason, retry_after: retry_after(seconds) }
}

fn retry_after(seconds: f64) -> Duration {
    Duration::from_secs(seconds.ceil().clamp(1.0, 3600.0) as u64)
}

/// What a tenant may expect `now`, by the clock of `admission`.
pub(crate) fn capacity(
    tenant: TenantId,
    prompt_len: usize,
    scheduler: &Scheduler,
    admission: &mut Admission,
    now: f64,
) -> Capacity {
    let (all, own) = (scheduler.stats(), scheduler.tenant_stats(tenant));
    let expected = admission.expected(tenant, prompt_len, now);
    let ask = Ask { id: RequestId(u64::MAX), tenant, prompt_len, max_tokens: 1, timeout: None };
    let refused = admission.check(&ask, all.running + all.waiting == 0, now).err();
    let wait = admission.minute_wait(tenant, prompt_len as u64, now);
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

/// What must have happened to a request by its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deadline {
    /// It is ready to be scheduled.
    Ready,
    /// Its first token was generated.
    FirstToken,
    /// It has ended.
    End,
}
