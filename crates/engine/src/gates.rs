//! How many requests may be unfinished, and whose.
//!
//! Half of all places are each tenant's own, by its share; the rest is for whoever comes.
//! So no tenant finds the engine's door blocked by another's requests.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use sconce_types::{Tenant, TenantId};

/// The places of all tenants; replaced whole when tenants change.
#[derive(Debug)]
pub(crate) struct Gates {
    gates: Vec<Arc<Gate>>,
    common: Arc<Gate>,
}

/// Some places, and how many are taken.
#[derive(Debug, Default)]
struct Gate {
    limit: AtomicUsize,
    taken: AtomicUsize,
}

impl Gate {
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let limit = self.limit.load(Ordering::Acquire);
        let take = |taken| (taken < limit).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        taken.ok().map(|_| Place(Arc::clone(self)))
    }
}

/// A place that is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Gate>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Gates {
    /// Shares out `limit` places.
    pub(crate) fn new(tenants: &[Tenant], limit: usize) -> Self {
        Self { gates: Vec::new(), common: Arc::new(Gate::default()) }.changed(tenants, limit)
    }

    /// Shares them out among other tenants. Places that are taken stay taken.
    pub(crate) fn changed(&self, tenants: &[Tenant], limit: usize) -> Self {
        let (limits, common) = Self::limits(tenants, limit);
        let count = limits.len().max(self.gates.len());
        let gate = |index: usize| {
            let gate = self.gates.get(index).map_or_else(Arc::default, Arc::clone);
            gate.limit.store(limits.get(index).copied().unwrap_or(0), Ordering::Release);
            gate
        };
        self.common.limit.store(common, Ordering::Release);
        Self { gates: (0..count).map(gate).collect(), common: Arc::clone(&self.common) }
    }

    /// Each tenant's own places, and those for whoever comes.
    fn limits(tenants: &[Tenant], limit: usize) -> (Vec<usize>, usize) {
        if let [only] = tenants {
            let mut limits = vec![0; only.id.index() + 1];
            limits[only.id.index()] = limit;
            return (limits, 0);
        }
        let weights: f64 = tenants.iter().map(|tenant| f64::from(tenant.weight)).sum();
        let len = tenants.iter().map(|tenant| tenant.id.index() + 1).max().unwrap_or(0);
        let mut limits = vec![0; len];
        for tenant in tenants {
            let share = (f64::from(tenant.weight) / weights).max(tenant.min_share);
            limits[tenant.id.index()] = (share * limit as f64 / 2.0) as usize;
        }
        let own: usize = limits.iter().sum();
        (limits, limit.saturating_sub(own))
    }

    pub(crate) fn enter(&self, tenant: TenantId) -> Option<Place> {
        let own = self.gates.get(tenant.index()).and_then(Gate::enter);
        own.or_else(|| self.common.enter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_every_tenant_its_places() {
        let tenant = |id, weight| Tenant { id: TenantId(id), weight, ..Tenant::sole() };
        let gates = Gates::new(&[tenant(1, 1), tenant(2, 3)], 80);
        let flood: Vec<_> = std::iter::from_fn(|| gates.enter(TenantId(2))).collect();
        assert_eq!(flood.len(), 30 + 40);
        let own: Vec<_> = std::iter::from_fn(|| gates.enter(TenantId(1))).collect();
        assert_eq!(own.len(), 10);
        assert!(gates.enter(TenantId(9)).is_none());
        drop(flood);
        let more: Vec<_> = std::iter::from_fn(|| gates.enter(TenantId(1))).collect();
        assert_eq!(more.len(), 40, "what is not its own is for whoever comes");
    }

    #[test]
    fn places_stay_taken_when_tenants_change() {
        let gates = Gates::new(&[Tenant::sole()], 10);
        let taken: Vec<_> = (0..8).map_while(|_| gates.enter(TenantId(0))).collect();
        let other = Tenant { id: TenantId(1), ..Tenant::sole() };
        let gates = gates.changed(&[Tenant::sole(), other], 10);
        let count = |id| std::iter::from_fn(|| gates.enter(TenantId(id))).collect::<Vec<_>>().len();
        assert_eq!((taken.len(), count(0), count(1)), (8, 6, 8), "own and common places are new");
        drop(taken);
        assert_eq!(count(0), 8);
    }

    #[test]
    fn an_only_tenant_has_all_places() {
        let gates = Gates::new(&[Tenant::sole()], 5);
        assert_eq!(std::iter::from_fn(|| gates.enter(TenantId(0))).collect::<Vec<_>>().len(), 5);
    }
}
