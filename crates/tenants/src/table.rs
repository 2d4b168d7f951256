//! The table of tenants that callers are looked up in.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use sconce_types::{Prices, Tenant, TenantId};

use crate::{
    file::{PriceFields, TenantFields, TenantsFile},
    key::KeyDigest,
};

/// Who the tenants are. It never changes: another file makes another table.
#[derive(Clone, Debug)]
pub struct Tenants {
    entries: BTreeMap<TenantId, TenantEntry>,
    /// By digest: how long a look-up takes may tell something of the digest of what a
    /// caller sent, and so nothing of how near that was to a key.
    callers: HashMap<KeyDigest, Principal>,
    /// Every name that was ever there, so that no id is given to another.
    ids: HashMap<Arc<str>, TenantId>,
    needs_key: bool,
}

/// Whose requests a key authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A tenant.
    Tenant(TenantId),
    /// Those who run the server.
    Admin,
}

/// What the file says about a tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantEntry {
    /// What the engine needs to know.
    pub tenant: Tenant,
    /// The served models that it may use; all if `None`.
    pub models: Option<Vec<String>>,
    /// Names that its requests may use for priorities.
    pub priorities: BTreeMap<String, i32>,
}

impl Tenants {
    /// The table where there is no file: one tenant that everybody is, and no keys.
    #[must_use]
    pub fn sole() -> Self {
        let tenant = Tenant::sole();
        let (id, name) = (tenant.id, tenant.name.clone());
        let entry = TenantEntry { tenant, models: None, priorities: BTreeMap::new() };
        Self {
            entries: [(id, entry)].into(),
            callers: HashMap::new(),
            ids: [(name, id)].into(),
            needs_key: false,
        }
    }

    /// The table that a file describes. A name that was ever in `previous`, or in a table
    /// before it, has the id that it had there; a new name gets a new id.
    ///
    /// # Panics
    /// If over 2^32 names were ever seen.
    #[must_use]
    pub fn resolve(file: &TenantsFile, previous: Option<&Self>) -> Self {
        let admin_keys = file.fields.admin_keys.iter();
        let mut tenants = Self {
            entries: BTreeMap::new(),
            callers: admin_keys.map(|&digest| (digest, Principal::Admin)).collect(),
            ids: previous.map(|previous| previous.ids.clone()).unwrap_or_default(),
            needs_key: true,
        };
        for (name, fields) in &file.fields.tenants {
            let next = TenantId(u32::try_from(tenants.ids.len()).expect("ids are 32 bits"));
            let id = *tenants.ids.entry(name.0.as_str().into()).or_insert(next);
            tenants.entries.insert(id, TenantEntry::new(id, &name.0, fields));
            let keys = fields.keys.iter();
            tenants.callers.extend(keys.map(|&digest| (digest, Principal::Tenant(id))));
        }
        tenants
    }

    /// Whom a key speaks for, if anybody.
    #[must_use]
    pub fn by_key(&self, key: impl AsRef<[u8]>) -> Option<Principal> {
        self.callers.get(&KeyDigest::of(key)).copied()
    }

    /// Whether a request needs a key: always where there is a file. One that lists no key
    /// lets nobody in.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        self.needs_key
    }

    /// What the file says about a tenant, if it is there.
    #[must_use]
    pub fn get(&self, id: TenantId) -> Option<&TenantEntry> {
        self.entries.get(&id)
    }

    /// The tenants that are there, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &TenantEntry> {
        self.entries.values()
    }
}

impl TenantEntry {
    fn new(id: TenantId, name: &str, fields: &TenantFields) -> Self {
        let TenantFields { weight, min_share, limits, slo, prices, .. } = *fields;
        Self {
            tenant: Tenant {
                id,
                name: name.into(),
                weight,
                min_share,
                max_running: limits.max_running,
                max_queued: limits.max_queued,
                max_kv_blocks: limits.max_kv_blocks,
                tokens_per_minute: limits.tokens_per_minute,
                ttft_target: slo.ttft,
                tpot_target: slo.tpot,
                prices: prices.map(|PriceFields { prompt, cached, generated, device_seconds }| {
                    Prices { prompt, cached, generated, device_seconds }
                }),
            },
            models: fields.models.clone(),
            priorities: fields.priorities.clone(),
        }
    }
}
