//! How many requests may be unfinished, and whose.

use sconce_types::{Tenant, TenantId};

/// Places of unfinished requests. Half of all are each tenant's own, by its share; the
/// rest is common. So no tenant is kept out by another's requests, whatever the policy.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    own: Vec<Quota>,
    common: usize,
    /// Common places that are taken.
    borrowed: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Quota {
    limit: usize,
    taken: usize,
}

impl Quotas {
    /// Shares out `limit` places.
    #[must_use]
    pub fn new(tenants: &[Tenant], limit: usize) -> Self {
        let mut quotas = Self::default();
        quotas.set_tenants(tenants, limit);
        quotas
    }

    /// Shares them out among other tenants. Places that are taken stay taken.
    pub fn set_tenants(&mut self, tenants: &[Tenant], limit: usize) {
        let len = tenants.iter().map(|tenant| tenant.id.index() + 1).max().unwrap_or(0);
        self.own.resize(self.own.len().max(len), Quota::default());
        self.own.iter_mut().for_each(|quota| quota.limit = 0);
        if let [only] = tenants {
            self.own[only.id.index()].limit = limit;
        } else {
            let weights: f64 = tenants.iter().map(|tenant| f64::from(tenant.weight)).sum();
            for tenant in tenants {
                let share = (f64::from(tenant.weight) / weights).max(tenant.min_share);
                self.own[tenant.id.index()].limit = (share * limit as f64 / 2.0) as usize;
            }
        }
        let own: usize = self.own.iter().map(|quota| quota.limit).sum();
        self.common = limit.saturating_sub(own);
        self.borrowed = self.own.iter().map(|quota| quota.taken.saturating_sub(quota.limit)).sum();
    }

    /// Takes a place for a request, or says that there is none.
    pub fn enter(&mut self, tenant: TenantId) -> bool {
        if self.own.len() <= tenant.index() {
            self.own.resize(tenant.index() + 1, Quota::default());
        }
        let quota = &mut self.own[tenant.index()];
        if quota.taken >= quota.limit {
            if self.borrowed >= self.common {
                return false;
            }
            self.borrowed += 1;
        }
        quota.taken += 1;
        true
    }

    /// Gives a place back.
    ///
    /// # Panics
    /// If the tenant has taken none.
    pub fn leave(&mut self, tenant: TenantId) {
        let quota = &mut self.own[tenant.index()];
        self.borrowed -= usize::from(quota.taken > quota.limit);
        quota.taken = quota.taken.checked_sub(1).expect("a place is given back once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(id: u32, weight: u32) -> Tenant {
        Tenant { id: TenantId(id), weight, ..Tenant::sole() }
    }

    fn fill(quotas: &mut Quotas, id: u32) -> usize {
        std::iter::repeat_with(|| quotas.enter(TenantId(id))).take_while(|&entered| entered).count()
    }

    #[test]
    fn a_flood_leaves_every_tenant_its_places() {
        let mut quotas = Quotas::new(&[tenant(1, 1), tenant(2, 3)], 80);
        assert_eq!(fill(&mut quotas, 2), 30 + 40);
        assert_eq!(fill(&mut quotas, 1), 10);
        assert!(!quotas.enter(TenantId(9)));
        (0..70).for_each(|_| quotas.leave(TenantId(2)));
        assert_eq!(fill(&mut quotas, 1), 40, "common places are for any tenant");
    }

    #[test]
    fn places_stay_taken_when_tenants_change() {
        let mut quotas = Quotas::new(&[Tenant::sole()], 10);
        (0..8).for_each(|_| assert!(quotas.enter(TenantId(0))));
        quotas.set_tenants(&[Tenant::sole(), tenant(1, 1)], 10);
        assert_eq!((fill(&mut quotas, 0), fill(&mut quotas, 1)), (0, 2), "ten places in all");
        (0..8).for_each(|_| quotas.leave(TenantId(0)));
        assert_eq!(fill(&mut quotas, 0), 8);
        quotas.set_tenants(&[tenant(1, 1)], 10);
        assert!(!quotas.enter(TenantId(0)), "it is not named any more");
        (0..8).for_each(|_| quotas.leave(TenantId(0)));
        assert_eq!(fill(&mut quotas, 1), 8);
    }

    #[test]
    fn an_only_tenant_has_all_places() {
        assert_eq!(fill(&mut Quotas::new(&[Tenant::sole()], 5), 0), 5);
    }
}
