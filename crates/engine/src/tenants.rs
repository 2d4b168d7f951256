//! What the engine keeps of each tenant.

use std::time::Instant;

use sconce_types::{Metering, Tenant, TenantId};

use crate::{Metrics, metrics::TenantMetrics};

/// The tenants that an engine knows, by id.
pub(crate) struct TenantTable {
    tenants: Vec<Option<KnownTenant>>,
}

/// One of them.
pub(crate) struct KnownTenant {
    pub(crate) tenant: Tenant,
    pub(crate) metrics: TenantMetrics,
    bucket: TokenBucket,
    /// What was used and is not in the metrics yet.
    used: Metering,
}

impl TenantTable {
    pub(crate) fn new() -> Self {
        Self { tenants: Vec::new() }
    }

    /// Takes tenants as they are from now on. Those that are not named stay known: they
    /// may have requests that run.
    pub(crate) fn update(&mut self, tenants: &[Tenant], metrics: &Metrics, now: Instant) {
        for tenant in tenants {
            let index = tenant.id.index();
            if self.tenants.len() <= index {
                self.tenants.resize_with(index + 1, || None);
            }
            let per_minute = tenant.tokens_per_minute;
            match &mut self.tenants[index] {
                Some(known) => {
                    if known.tenant.tokens_per_minute != per_minute {
                        known.bucket = TokenBucket::new(per_minute, now);
                    }
                    known.tenant = tenant.clone();
                }
                unknown => {
                    *unknown = Some(KnownTenant {
                        tenant: tenant.clone(),
                        metrics: metrics.of_tenant(&tenant.name),
                        bucket: TokenBucket::new(per_minute, now),
                        used: Metering::default(),
                    });
                }
            }
        }
    }

    pub(crate) fn get(&self, id: TenantId) -> Option<&KnownTenant> {
        self.tenants.get(id.index())?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: TenantId) -> Option<&mut KnownTenant> {
        self.tenants.get_mut(id.index())?.as_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.tenants.len()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut KnownTenant> {
        self.tenants.iter_mut().flatten()
    }
}

impl KnownTenant {
    /// Notes what one of its requests used.
    pub(crate) fn note(&mut self, used: &Metering) {
        let sum = &mut self.used;
        sum.prompt_tokens += used.prompt_tokens;
        sum.cached_tokens += used.cached_tokens;
        sum.generated_tokens += used.generated_tokens;
        sum.device_ns += used.device_ns;
        sum.block_ns += used.block_ns;
        if let Some(uj) = used.energy_uj {
            sum.energy_uj = Some(sum.energy_uj.unwrap_or(0) + uj);
        }
    }

    /// Brings the metrics up to date.
    pub(crate) fn publish(&mut self) {
        let used = std::mem::take(&mut self.used);
        if used != Metering::default() {
            self.metrics.add(&used);
        }
    }

    /// Takes tokens out of the minute's; what was generated is taken without asking.
    pub(crate) fn spend(&mut self, tokens: u64) {
        self.bucket.level -= tokens as f64;
    }

    /// Seconds until so many tokens may be taken; none if they may be now.
    pub(crate) fn seconds_until(&mut self, tokens: u64, now: Instant) -> Option<f64> {
        self.bucket.fill(now);
        let per_second = self.bucket.per_second?;
        // What would never fit waits for a full bucket.
        let missing = (tokens as f64).min(60.0 * per_second) - self.bucket.level;
        (missing > 0.0).then(|| missing / per_second)
    }
}

/// A minute's tokens, which flow back steadily.
struct TokenBucket {
    /// `None` without a limit.
    per_second: Option<f64>,
    level: f64,
    filled: Instant,
}

impl TokenBucket {
    fn new(per_minute: Option<u64>, now: Instant) -> Self {
        let per_minute = per_minute.map(|tokens| tokens as f64);
        Self {
            per_second: per_minute.map(|tokens| tokens / 60.0),
            level: per_minute.unwrap_or(0.0),
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let Some(per_second) = self.per_second else {
            self.level = 0.0;
            return;
        };
        let flowed = now.saturating_duration_since(self.filled).as_secs_f64() * per_second;
        self.level = (self.level + flowed).min(60.0 * per_second);
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_minutes_tokens_flow_back() {
        let now = Instant::now();
        let metrics = Metrics::new("test", 1);
        let mut table = TenantTable::new();
        let tenant = Tenant { tokens_per_minute: Some(600), ..Tenant::sole() };
        table.update(std::slice::from_ref(&tenant), &metrics, now);
        let known = table.get_mut(TenantId(0)).expect("it was named");
        assert_eq!(known.seconds_until(600, now), None);
        known.spend(600);
        assert_eq!(known.seconds_until(100, now), Some(10.0));
        let later = now + Duration::from_secs(4);
        assert_eq!(known.seconds_until(100, later), Some(6.0));
        known.spend(1_000);
        let rested = later + Duration::from_secs(600);
        assert_eq!(known.seconds_until(10_000, rested), None, "a full bucket is enough");
    }
}
