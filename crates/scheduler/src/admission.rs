//! Whether a request is taken now.
//!
//! The decision depends only on the load that a scheduler has published, on the requests
//! that were taken since, and on the time that it is given. So it can be made on any thread
//! while a step runs; engines and the simulator use the same code.
//!
//! The tenant's limit of tokens a minute is checked first, then the limits on unfinished
//! requests, then the tenant's queue, then predictions: of the wait, of the first token, of
//! the whole answer, and of the answers of requests that were taken before.

use std::collections::VecDeque;

use sconce_types::{RequestId, Tenant, TenantId};

use crate::{Load, Minute, MinuteReservation, Prediction, Quotas, Scheduler, StepModel, StepWork};

/// The factor by which a predicted answer must be shorter than its timeout: later requests
/// slow it down, and predictions err.
const MARGIN: f64 = 1.15;
/// Seconds after which what was measured of an idle engine may no longer hold.
const STALE: f64 = 10.0;

/// What admission needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Its id.
    pub id: RequestId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Tokens of its prompt.
    pub prompt_len: usize,
    /// Tokens that its answer may have.
    pub max_tokens: usize,
    /// Seconds within which it is to end.
    pub timeout: Option<f64>,
}

impl Ask {
    /// The most tokens that it may use, which its tenant's minute must have room for.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.prompt_len as u64 + self.max_tokens as u64
    }
}

/// A request that was taken.
#[derive(Debug)]
pub struct Admitted {
    /// What it may expect; `None` until enough was measured.
    pub expected: Option<Prediction>,
    /// Its part of its tenant's tokens a minute, for [`Admission::refund`]; `None` for a
    /// tenant that was never named.
    pub minute: Option<MinuteReservation>,
}

/// Why a request is not taken now. Times are in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shortage {
    /// It may use more tokens than its tenant has in any minute.
    ExceedsMinute {
        /// The tenant's limit.
        tokens_per_minute: u64,
    },
    /// What its tenant's requests of the last minute used, or may still use, leaves no room.
    Minute {
        /// The tenant's limit.
        tokens_per_minute: u64,
    },
    /// Its tenant has as many unfinished requests as it may have.
    Places,
    /// Its tenant's queue is full.
    TenantQueue {
        /// The tenant's limit.
        max_queued: usize,
    },
    /// It would wait too long.
    Wait {
        /// The predicted wait.
        expected: f64,
        /// The longest that a request may wait.
        limit: f64,
    },
    /// Its first token would come too late.
    FirstToken {
        /// When it is predicted.
        expected: f64,
        /// The tenant's target, or the request's timeout.
        limit: f64,
    },
    /// Its answer would not end in time.
    End {
        /// When the end is predicted.
        expected: f64,
        /// The request's timeout.
        limit: f64,
    },
    /// Its tokens would come too slowly.
    Pace {
        /// The predicted time from token to token.
        expected: f64,
        /// The tenant's target.
        target: f64,
    },
    /// Requests that were taken before would not end in time.
    Promised,
    /// Nothing was measured yet, and other requests are ahead.
    Unmeasured,
}

impl Shortage {
    /// Its name in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ExceedsMinute { .. } => "exceeds_minute",
            Self::Minute { .. } => "tokens_per_minute",
            Self::Places => "queue_full",
            Self::TenantQueue { .. } => "tenant_queue_full",
            Self::Wait { .. } => "wait",
            Self::FirstToken { .. } => "ttft",
            Self::End { .. } => "timeout",
            Self::Pace { .. } => "itl",
            Self::Promised => "promised",
            Self::Unmeasured => "unmeasured",
        }
    }
}

/// A refusal, and the seconds after which it should no longer hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refused {
    /// What stands in the way.
    pub shortage: Shortage,
    /// When to try again.
    pub retry_after: f64,
}

/// What a tenant's requests are promised, in seconds; infinite without a target.
#[derive(Clone, Copy, Debug)]
struct Targets {
    ttft: f64,
    tpot: f64,
}

impl Targets {
    const NONE: Self = Self { ttft: f64::INFINITY, tpot: f64::INFINITY };
}

/// A request that was taken and must end, or go on, in time.
#[derive(Clone, Copy, Debug)]
struct Promise {
    id: RequestId,
    tenant: TenantId,
    deadline: f64,
    tpot: f64,
    /// When its first token was predicted.
    first_token: f64,
    /// Tokens that its answer hardly exceeds.
    output: usize,
    /// Tokens that it has.
    generated: usize,
}

/// A request that was taken and that the scheduler has not been given yet.
#[derive(Clone, Copy, Debug)]
struct Reservation {
    tenant: TenantId,
    prompt_len: usize,
    promise: Option<Promise>,
}

/// Decides which requests are taken.
#[derive(Clone, Debug)]
pub struct Admission {
    quotas: Quotas,
    num_places: usize,
    max_queue_wait: f64,
    targets: Vec<Targets>,
    /// Each tenant's tokens a minute.
    minutes: Vec<Minute>,
    model: StepModel,
    /// As published, and what was taken since.
    load: Load,
    /// When the step that ran when it was published should end.
    step_end: f64,
    /// When a step was last measured.
    measured: f64,
    promises: Vec<Promise>,
    reservations: VecDeque<Reservation>,
}

impl Admission {
    /// For a scheduler of which at most `num_places` requests are unfinished, and none
    /// should wait more than `max_queue_wait` seconds for its prefill.
    #[must_use]
    pub fn new(
        scheduler: &Scheduler,
        tenants: &[Tenant],
        num_places: usize,
        max_queue_wait: f64,
    ) -> Self {
        let mut admission = Self {
            quotas: Quotas::default(),
            num_places,
            max_queue_wait,
            targets: Vec::new(),
            minutes: Vec::new(),
            model: StepModel::default(),
            load: Load::new(scheduler),
            step_end: 0.0,
            measured: 0.0,
            promises: Vec::new(),
            reservations: VecDeque::new(),
        };
        admission.set_tenants(tenants);
        admission
    }

    /// Takes tenants' shares, limits and targets as they are from now on. What they have
    /// taken of their minutes stays taken.
    pub fn set_tenants(&mut self, tenants: &[Tenant]) {
        self.quotas.set_tenants(tenants, self.num_places);
        let seconds = |time: Option<std::time::Duration>| {
            time.map_or(f64::INFINITY, |time| time.as_secs_f64())
        };
        for tenant in tenants {
            let index = tenant.id.index();
            self.targets.resize(self.targets.len().max(index + 1), Targets::NONE);
            self.targets[index] =
                Targets { ttft: seconds(tenant.ttft_target), tpot: seconds(tenant.tpot_target) };
            let len = self.minutes.len().max(index + 1);
            self.minutes.resize_with(len, Minute::default);
            self.minutes[index].set_limit(tenant.tokens_per_minute);
        }
    }

    /// Takes the load as it is once a step of `step` seconds that begins `now` has ended.
    /// Of the requests taken so far the scheduler was given the first `given` that it was
    /// not given before, in their order.
    ///
    /// `load` is the scheduler's, and is exchanged for the one before: a caller that holds
    /// a lock has it filled by [`Scheduler::load`] before it locks.
    pub fn publish(
        &mut self,
        scheduler: &Scheduler,
        load: &mut Load,
        model: &StepModel,
        given: usize,
        now: f64,
        step: f64,
    ) {
        let given = given.min(self.reservations.len());
        let promises = self.reservations.drain(..given).filter_map(|taken| taken.promise);
        self.promises.extend(promises);
        self.promises.retain_mut(|promise| match scheduler.num_generated(promise.id) {
            Some(generated) => {
                promise.generated = generated;
                true
            }
            None => false,
        });
        std::mem::swap(&mut self.load, load);
        if model.num_steps() != self.model.num_steps() {
            self.measured = now;
            self.model.clone_from(model);
        }
        self.step_end = now + step;
        for &Reservation { tenant, prompt_len, .. } in &self.reservations {
            self.load.add(tenant, prompt_len);
        }
    }

    /// The load that was published, and what was taken since.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// What a request of a tenant may expect `now`; `None` until enough was measured.
    #[must_use]
    pub fn expected(&self, tenant: TenantId, prompt_len: usize, now: f64) -> Option<Prediction> {
        self.model.is_known().then(|| self.predict(tenant, prompt_len, now))
    }

    fn predict(&self, tenant: TenantId, prompt_len: usize, now: f64) -> Prediction {
        let mut expected = self.load.predict(&self.model, tenant, prompt_len);
        // The load is that after the step that runs.
        expected.ttft += (self.step_end - now).max(0.0);
        expected
    }

    /// Decides about a request that comes `now`. `is_idle` says that no other is unfinished.
    ///
    /// # Errors
    /// Why it is not taken, and when to try again.
    pub fn check(&self, ask: &Ask, is_idle: bool, now: f64) -> Result<Option<Prediction>, Refused> {
        let refused = |shortage, retry_after| Err(Refused { shortage, retry_after });
        let Ask { tenant, prompt_len, max_tokens, .. } = *ask;
        if let Some(max_queued) = self.load.full_queue(tenant) {
            let end = self.load.seconds_per_end(&self.model);
            return refused(Shortage::TenantQueue { max_queued }, end);
        }
        let targets = self.targets.get(tenant.index()).copied().unwrap_or(Targets::NONE);
        let timeout = ask.timeout.unwrap_or(f64::INFINITY);
        let has_limit = timeout.min(targets.ttft).min(targets.tpot) < f64::INFINITY;
        if !self.model.is_known() {
            // Until then only one of those that must be in time is tried.
            return if has_limit && !is_idle {
                refused(Shortage::Unmeasured, 1.0)
            } else {
                Ok(None)
            };
        }
        let expected = self.predict(tenant, prompt_len, now);
        let Prediction { ttft, tpot } = expected;
        let output = self.load.longest_output(tenant, max_tokens);
        let end = expected.end(output);
        // Steps may take less by now: they are measured anew with a request that needs no
        // more than half of what was predicted, and less the longer nothing was measured.
        let age = if is_idle { (now - self.measured) / STALE } else { 0.0 };
        let doubt = (age / 6.0).max(2.0);
        if age > 1.0 && ttft <= doubt * targets.ttft && end <= doubt * timeout {
            return Ok(Some(expected));
        }
        let limit = targets.ttft.min(timeout);
        if ttft > limit {
            return refused(Shortage::FirstToken { expected: ttft, limit }, ttft - limit);
        }
        if tpot > targets.tpot {
            return refused(Shortage::Pace { expected: tpot, target: targets.tpot }, ttft);
        }
        let wait = self.predict(tenant, 1, now).ttft;
        if wait > self.max_queue_wait && !is_idle {
            let (expected, limit) = (wait, self.max_queue_wait);
            return refused(Shortage::Wait { expected, limit }, wait - limit);
        }
        // A tenant below its share may use the margin that others must leave.
        let is_below_share = self.load.is_below_share(tenant);
        let margin = if is_below_share { 1.0 } else { MARGIN };
        let end = end * margin;
        if end > timeout {
            return refused(Shortage::End { expected: end, limit: timeout }, end - timeout);
        }
        let of_concern = |promise: &&Promise| promise.tenant == tenant || !is_below_share;
        let reserved = self.reservations.iter().filter_map(|taken| taken.promise.as_ref());
        let mut promises = self.promises.iter().chain(reserved).filter(of_concern);
        if promises.any(|promise| self.would_break(promise, tpot, prompt_len, now)) {
            return refused(Shortage::Promised, self.load.seconds_per_end(&self.model));
        }
        Ok(Some(expected))
    }

    /// Whether a promise would be kept without another prompt of so many tokens and a pace
    /// of `tpot`, but not with them.
    fn would_break(&self, promise: &Promise, tpot: f64, prompt_len: usize, now: f64) -> bool {
        let Promise { deadline, first_token, output, generated, .. } = *promise;
        let left = output.saturating_sub(generated).max(1) as f64;
        let from = if generated > 0 { now } else { first_token.max(now) };
        let tokens = prompt_len as f64;
        let prompt = StepWork { prefill: tokens, decode: 0.0, attended: tokens * tokens / 2.0 };
        let stall = self.model.predict(prompt) - self.model.predict(StepWork::default());
        let before = self.load.pace(&self.model, 0, prompt_len);
        let is_kept = from + left * before <= deadline && before <= promise.tpot;
        let would_be_kept = from + stall + left * tpot <= deadline && tpot <= promise.tpot;
        is_kept && !would_be_kept
    }

    /// Seconds until a tenant's minute has room for so many tokens; none if it has now.
    pub fn minute_wait(&mut self, tenant: TenantId, tokens: u64, now: f64) -> Option<f64> {
        // A caller may ask for a tenant that was never named, whatever its id.
        self.minutes.get_mut(tenant.index())?.seconds_until(tokens, now)
    }

    fn check_minute(&mut self, ask: &Ask, now: f64) -> Result<(), Refused> {
        let tokens = ask.tokens();
        let Some(retry_after) = self.minute_wait(ask.tenant, tokens, now) else { return Ok(()) };
        let limit = self.minutes[ask.tenant.index()].limit();
        let tokens_per_minute = limit.unwrap_or(u64::MAX);
        let shortage = if tokens > tokens_per_minute {
            Shortage::ExceedsMinute { tokens_per_minute }
        } else {
            Shortage::Minute { tokens_per_minute }
        };
        Err(Refused { shortage, retry_after })
    }

    /// Takes a request that comes `now`, or refuses it. What is taken has a place until
    /// [`Admission::leave`], holds its part of its tenant's minute until
    /// [`Admission::refund`], and counts as load until the scheduler is given it. What is
    /// refused holds nothing.
    ///
    /// # Errors
    /// Why it is not taken, and when to try again.
    pub fn take(&mut self, ask: &Ask, is_idle: bool, now: f64) -> Result<Admitted, Refused> {
        self.check_minute(ask, now)?;
        if !self.quotas.enter(ask.tenant) {
            let retry_after = self.load.seconds_per_end(&self.model);
            return Err(Refused { shortage: Shortage::Places, retry_after });
        }
        let expected =
            self.check(ask, is_idle, now).inspect_err(|_| self.quotas.leave(ask.tenant))?;
        let Ask { id, tenant, prompt_len, max_tokens, timeout } = *ask;
        let tpot = self.targets.get(tenant.index()).map_or(f64::INFINITY, |target| target.tpot);
        let promise = expected.filter(|_| timeout.is_some() || tpot < f64::INFINITY);
        let promise = promise.map(|expected| Promise {
            id,
            tenant,
            deadline: timeout.map_or(f64::INFINITY, |timeout| now + timeout),
            tpot,
            first_token: now + expected.ttft,
            output: self.load.longest_output(tenant, max_tokens),
            generated: 0,
        });
        self.reservations.push_back(Reservation { tenant, prompt_len, promise });
        self.load.add(tenant, prompt_len);
        let minute = self.minutes.get_mut(tenant.index());
        let minute = minute.map(|minute| minute.reserve(ask.tokens(), now));
        Ok(Admitted { expected, minute })
    }

    /// Takes back the request that was taken last, which the scheduler will not be given. It
    /// keeps its place until [`Admission::leave`].
    pub fn withdraw(&mut self) {
        if let Some(Reservation { tenant, prompt_len, .. }) = self.reservations.pop_back() {
            self.load.remove(tenant, prompt_len);
        }
    }

    /// Gives back what a request of a tenant that uses no more tokens has not used of what
    /// it had reserved.
    pub fn refund(&mut self, tenant: TenantId, minute: MinuteReservation, used: u64) {
        self.minutes[tenant.index()].refund(minute, used);
    }

    /// Gives back the place of a request that has ended.
    pub fn leave(&mut self, tenant: TenantId) {
        self.quotas.leave(tenant);
    }
}
