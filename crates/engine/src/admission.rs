//! Whether a request is taken now.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use sconce_scheduler::{Scheduler, StepModel};
use sconce_types::{RequestId, TenantId};

use crate::{EngineRequest, Overload, RequestError, stream::two_digits, tenants::TenantTable};

/// Steps that are measured before anybody is refused by what they say.
const MIN_STEPS: u32 = 32;

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
}

/// Refuses what its tenant's limits forbid, and what would come too late.
///
/// # Errors
/// Why, and when to try again.
pub(crate) fn check(
    request: &EngineRequest,
    scheduler: &Scheduler,
    model: &StepModel,
    tenants: &mut TenantTable,
    arrived: Instant,
    now: Instant,
) -> Result<(), RequestError> {
    let prompt_len = request.prompt.len();
    let Some(known) = tenants.get_mut(request.tenant) else { return Ok(()) };
    if let Some(seconds) = known.seconds_until(tokens_at_most(request), now) {
        let tokens_per_minute = known.tenant.tokens_per_minute.unwrap_or(0);
        if tokens_at_most(request) > tokens_per_minute {
            let max_tokens = request.params.max_tokens as usize;
            let (choices, prompt_tokens) = (1, prompt_len);
            return Err(RequestError::ExceedsMinute {
                choices,
                prompt_tokens,
                max_tokens,
                tokens_per_minute,
            });
        }
        return Err(overloaded(Overload::TokensPerMinute { tokens_per_minute }, seconds));
    }
    let target = known.tenant.ttft_target;
    let limit = [target, request.timeout].into_iter().flatten().min();
    let wants_pace = known.tenant.tpot_target;
    if (limit.is_none() && wants_pace.is_none()) || model.num_steps() < MIN_STEPS {
        return Ok(());
    }
    // With nobody ahead it is tried: its deadlines hold, and what steps take is learnt anew
    // if it was long ago.
    let stats = scheduler.stats();
    if stats.running + stats.waiting == 0 {
        return Ok(());
    }
    let mut expected = scheduler.predict(model, request.tenant, prompt_len);
    // It arrived while a step ran.
    expected.ttft += now.saturating_duration_since(arrived).as_secs_f64();
    if let Some(limit) = limit
        && expected.ttft > limit.as_secs_f64()
    {
        let late = expected.ttft - limit.as_secs_f64();
        let expected = seconds(expected.ttft);
        return Err(overloaded(Overload::TooLate { expected, limit }, late));
    }
    if let Some(target) = wants_pace
        && expected.tpot > target.as_secs_f64()
    {
        let (expected, wait) = (seconds(expected.tpot), expected.ttft);
        return Err(overloaded(Overload::TooSlow { expected, target }, wait));
    }
    Ok(())
}

/// The tokens that a request may use, which its tenant's limit must have room for.
pub(crate) fn tokens_at_most(request: &EngineRequest) -> u64 {
    request.prompt.len() as u64 + u64::from(request.params.max_tokens)
}

/// A refusal that names the time after which it no longer holds, in whole seconds.
pub(crate) fn overloaded(reason: Overload, seconds: f64) -> RequestError {
    let retry_after = Duration::from_secs(seconds.ceil().clamp(1.0, 3600.0) as u64);
    RequestError::Overloaded { reason, retry_after }
}

/// What a tenant may expect now.
pub(crate) fn capacity(
    tenant: TenantId,
    prompt_len: usize,
    scheduler: &Scheduler,
    model: &StepModel,
    tenants: &mut TenantTable,
    now: Instant,
) -> Capacity {
    let (all, own) = (scheduler.stats(), scheduler.tenant_stats(tenant));
    let expected = scheduler.predict(model, tenant, prompt_len);
    let is_known = model.num_steps() >= MIN_STEPS;
    let wait =
        tenants.get_mut(tenant).and_then(|known| known.seconds_until(prompt_len as u64, now));
    Capacity {
        running: own.running,
        waiting: own.waiting,
        total_running: all.running,
        total_waiting: all.waiting,
        free_blocks: all.num_blocks - all.used_blocks,
        share: own.share,
        ttft: is_known.then(|| two_digits(seconds(expected.ttft))),
        tpot: is_known.then(|| two_digits(seconds(expected.tpot))),
        rate_limited_for: wait.map(seconds),
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
