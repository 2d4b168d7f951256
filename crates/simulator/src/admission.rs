//! What requests should see, and when they end if they do not.

use std::{cmp::Reverse, collections::BinaryHeap};

use sconce_scheduler::Shortage;
use sconce_types::Tenant;

use crate::tally::Outcome;

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

/// How a request ends that is refused.
pub(crate) fn outcome(shortage: Shortage) -> Outcome {
    match shortage {
        Shortage::Places | Shortage::TenantQueue { .. } => Outcome::QueueFull,
        Shortage::Pace { .. } => Outcome::TooSlow,
        Shortage::Wait { .. }
        | Shortage::FirstToken { .. }
        | Shortage::End { .. }
        | Shortage::Promised
        | Shortage::Unmeasured => Outcome::TooLate,
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
