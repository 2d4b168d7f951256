//! What requests should see, and when they end if they do not.

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
        Shortage::Minute { .. }
        | Shortage::ExceedsMinute { .. }
        | Shortage::Places
        | Shortage::TenantQueue { .. } => Outcome::QueueFull,
        Shortage::Pace { .. } => Outcome::TooSlow,
        Shortage::Wait { .. }
        | Shortage::FirstToken { .. }
        | Shortage::End { .. }
        | Shortage::Promised
        | Shortage::Unmeasured => Outcome::TooLate,
    }
}
