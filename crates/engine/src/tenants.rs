//! What the engine keeps of each tenant.

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
    /// What was used and is not in the metrics yet.
    used: Metering,
}

impl TenantTable {
    pub(crate) fn new() -> Self {
        Self { tenants: Vec::new() }
    }

    /// Takes tenants as they are from now on. Those that are not named stay known: they
    /// may have requests that run.
    pub(crate) fn update(&mut self, tenants: &[Tenant], metrics: &Metrics) {
        for tenant in tenants {
            let index = tenant.id.index();
            if self.tenants.len() <= index {
                self.tenants.resize_with(index + 1, || None);
            }
            match &mut self.tenants[index] {
                Some(known) => known.tenant = tenant.clone(),
                unknown => {
                    *unknown = Some(KnownTenant {
                        tenant: tenant.clone(),
                        metrics: metrics.of_tenant(&tenant.name),
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

    pub(crate) fn iter(&self) -> impl Iterator<Item = &KnownTenant> {
        self.tenants.iter().flatten()
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
}
