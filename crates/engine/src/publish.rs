//! What the engine's thread publishes: the load that requests are admitted by, and metrics.

use std::time::{Duration, Instant};

use sconce_types::{Executor, NotReady};

use crate::engine_loop::EngineLoop;

/// Least time between two publications of the load, for each so many tenants, unless a
/// request ends: requests that are taken meanwhile are counted.
const LOAD_EVERY: Duration = Duration::from_millis(2);
const TENANTS_OF_A_LOAD: usize = 256;
/// Least time between two updates of tenants' metrics, unless a request ends.
const TENANTS_EVERY: Duration = Duration::from_millis(100);
/// With at most so many tenants, load and metrics are published whenever a request ends.
pub(crate) const PUBLISHED_AT_ONCE: usize = 1024;

impl<E: Executor> EngineLoop<E> {
    /// Publishes the load as it is once a step of `step` seconds has ended; without `now`
    /// only if the last time is some time ago.
    pub(crate) fn publish_load(&mut self, step: f64, now: bool) {
        let at = Instant::now();
        let every = LOAD_EVERY * (1 + self.tenants.len() / TENANTS_OF_A_LOAD) as u32;
        if !now && self.load_published.is_some_and(|last| at - last < every) {
            return;
        }
        self.load_published = Some(at);
        let Self { scheduler, spare_load, model, shared, given, .. } = self;
        let (given, at) = (std::mem::take(given), shared.seconds(at));
        // A load has an entry for each tenant: it is filled while submitters may decide by
        // the one before, and only exchanged under the lock.
        scheduler.load(spare_load);
        shared.door().admission.publish(scheduler, spare_load, model, given, at, step);
    }

    /// Brings tenants' metrics up to date when one of their requests ends, else now and then.
    pub(crate) fn publish_tenants(&mut self, now: Instant) {
        let is_due = self.ends_any() && self.tenants.len() <= PUBLISHED_AT_ONCE;
        if !is_due && !self.requests.is_empty() && now - self.published < TENANTS_EVERY {
            return;
        }
        self.publish_all_tenants(now);
    }

    /// Brings all tenants' metrics up to date, and the energy that is billed to no request.
    pub(crate) fn publish_all_tenants(&mut self, now: Instant) {
        self.published = now;
        let Self { tenants, scheduler, metrics, meter, .. } = self;
        for known in tenants.iter_mut() {
            let stats = scheduler.tenant_stats(known.tenant.id);
            known.metrics.running.set(gauge(stats.running));
            known.metrics.waiting.set(gauge(stats.waiting + stats.blocked));
            known.publish();
        }
        metrics.idle_energy_joules.inc_by(std::mem::take(&mut meter.idle_uj) as f64 * 1e-6);
    }

    pub(crate) fn publish_gauges(&mut self) {
        let stats = self.scheduler.stats();
        self.metrics.num_requests_running.set(gauge(stats.running));
        self.metrics.num_requests_waiting.set(gauge(stats.waiting + stats.blocked));
        if (stats.waiting, stats.blocked) != (self.seen.waiting, self.seen.blocked) {
            let by_reason = &self.metrics.num_requests_waiting_by_reason;
            by_reason.with_label_values(&["capacity"]).set(gauge(stats.waiting));
            for reason in NotReady::ALL {
                let blocked = self.scheduler.num_blocked_by(reason);
                by_reason.with_label_values(&[reason.name()]).set(gauge(blocked));
            }
        }
        self.metrics.kv_blocks_used.set(gauge(stats.used_blocks));
        self.metrics.kv_cache_usage_perc.set(stats.used_blocks as f64 / stats.num_blocks as f64);
        let Self { metrics, seen, .. } = self;
        metrics.num_preemptions.inc_by(stats.preemptions - seen.preemptions);
        let queries = stats.prefix_cache_queries - seen.prefix_cache_queries;
        metrics.prefix_cache_queries.inc_by(queries);
        metrics.prefix_cache_hits.inc_by(stats.prefix_cache_hits - seen.prefix_cache_hits);
        *seen = stats;
    }
}

/// A count as gauges hold it.
fn gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
