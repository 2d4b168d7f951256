//! Whether an engine takes a request, as real engines decide it: by places at its door, and
//! by what the request may expect. The counterpart of `sconce_engine`'s admission.

use std::{cmp::Reverse, collections::BinaryHeap};

use sconce_scheduler::{Prediction, Scheduler, SchedulingPolicy, StepModel};
use sconce_types::{Tenant, TenantId};

/// Steps that are measured before anybody is refused by what they say.
const MIN_STEPS: u32 = 32;

/// What a tenant's requests should see, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    /// To the first token, by its target or the timeout: infinite if there is neither.
    pub(crate) ttft: f64,
    /// From token to token.
    pub(crate) tpot: f64,
    /// To the end.
    pub(crate) end: f64,
}

impl Targets {
    pub(crate) fn new(tenant: &Tenant, timeout: Option<std::time::Duration>) -> Self {
        let seconds = |time: Option<std::time::Duration>| {
            time.map_or(f64::INFINITY, |time| time.as_secs_f64())
        };
        let end = seconds(timeout);
        Self { ttft: seconds(tenant.ttft_target).min(end), tpot: seconds(tenant.tpot_target), end }
    }
}

/// What a request is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Taken,
    /// Its first token would come too late.
    TooLate,
    /// Its tokens would come too slowly.
    TooSlow,
}

/// What a request may expect, once enough steps were measured.
pub(crate) fn expected(
    scheduler: &Scheduler,
    model: &StepModel,
    tenant: TenantId,
    prompt_len: usize,
) -> Option<Prediction> {
    (model.num_steps() >= MIN_STEPS).then(|| scheduler.predict(model, tenant, prompt_len))
}

/// Whether what is expected is what should be.
pub(crate) fn check(expected: Option<Prediction>, targets: Targets) -> Verdict {
    match expected {
        Some(expected) if expected.ttft > targets.ttft => Verdict::TooLate,
        Some(expected) if expected.tpot > targets.tpot => Verdict::TooSlow,
        _ => Verdict::Taken,
    }
}

/// Places of unfinished requests. Under a fair policy half of them are each tenant's own,
/// by its share; the rest is for whoever comes.
pub(crate) struct Gates {
    /// Each tenant's own, and how many it has taken; empty where all are common.
    own: Vec<(u32, u32)>,
    common: usize,
    taken: usize,
}

impl Gates {
    pub(crate) fn new(tenants: &[Tenant], policy: SchedulingPolicy, limit: usize) -> Self {
        if policy != SchedulingPolicy::Fair || tenants.len() == 1 {
            return Self { own: Vec::new(), common: limit, taken: 0 };
        }
        let weights: f64 = tenants.iter().map(|tenant| f64::from(tenant.weight)).sum();
        let own = tenants.iter().map(|tenant| {
            let share = (f64::from(tenant.weight) / weights).max(tenant.min_share);
            ((share * limit as f64 / 2.0) as u32, 0)
        });
        let own: Vec<_> = own.collect();
        let reserved: usize = own.iter().map(|&(limit, _)| limit as usize).sum();
        Self { own, common: limit.saturating_sub(reserved), taken: 0 }
    }

    pub(crate) fn enter(&mut self, tenant: u32) -> bool {
        let own = self.own.get_mut(tenant as usize);
        let has_own = own.as_ref().is_some_and(|(limit, taken)| taken < limit);
        if !has_own {
            if self.taken >= self.common {
                return false;
            }
            self.taken += 1;
        }
        if let Some((_, taken)) = own {
            *taken += 1;
        }
        true
    }

    pub(crate) fn leave(&mut self, tenant: u32) {
        match self.own.get_mut(tenant as usize) {
            Some((limit, taken)) => {
                self.taken -= usize::from(*taken > *limit);
                *taken -= 1;
            }
            None => self.taken -= 1,
        }
    }
}

/// When requests end if they have come no further.
#[derive(Default)]
pub(crate) struct Deadlines {
    /// Times are not negative, so their bits are in their order.
    heap: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Deadlines {
    pub(crate) fn add(&mut self, at: f64, request: u32) {
        if at.is_finite() {
            self.heap.push(Reverse((at.to_bits(), request)));
        }
    }

    /// The next that has passed.
    pub(crate) fn pop(&mut self, now: f64) -> Option<u32> {
        let &Reverse((at, request)) = self.heap.peek()?;
        if f64::from_bits(at) > now {
            return None;
        }
        self.heap.pop();
        Some(request)
    }
}
