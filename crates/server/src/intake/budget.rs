//! Memory for request bodies.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sconce_types::TenantId;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::error::ApiError;

/// The part of what is for whoever comes that one of several tenants may take.
const COMMON_PART: usize = 4;

/// Bytes that bodies may take. Half are each tenant's own, in equal parts; the rest is for
/// whoever comes.
#[derive(Debug)]
pub(super) struct Budget {
    total: usize,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    common: usize,
    by_tenant: HashMap<TenantId, Part>,
}

/// What one tenant has, or one body.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    own: usize,
    common: usize,
}

/// A body's bytes, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    tenant: TenantId,
    part: Part,
}

impl Budget {
    pub(super) fn new(total: usize) -> Self {
        Self { total, taken: Mutex::default(), freed: Notify::new() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes bytes for a tenant, one of so many, if they are there: its own first.
    fn take(&self, tenant: TenantId, tenants: usize, bytes: usize) -> Option<Part> {
        let (own, common) = match tenants {
            0 | 1 => (self.total, 0),
            _ => (self.total / 2 / tenants, self.total / 2),
        };
        let mut taken = self.taken();
        let has = taken.by_tenant.get(&tenant).copied().unwrap_or_default();
        let part = Part { own: bytes.min(own.saturating_sub(has.own)), common: 0 };
        let part = Part { common: bytes - part.own, ..part };
        let fits = taken.common + part.common <= common
            && has.common + part.common <= common / COMMON_PART;
        if part.common > 0 && !fits {
            return None;
        }
        taken.common += part.common;
        let has = taken.by_tenant.entry(tenant).or_default();
        has.own += part.own;
        has.common += part.common;
        Some(part)
    }
}

impl Reservation {
    pub(super) fn none(budget: &Arc<Budget>, tenant: TenantId) -> Self {
        Self { budget: Arc::clone(budget), tenant, part: Part::default() }
    }

    /// How many bytes it is for.
    pub(super) fn bytes(&self) -> usize {
        self.part.own + self.part.common
    }

    /// Takes so many bytes more; waits for them where need be.
    pub(super) async fn grow(
        &mut self,
        tenants: usize,
        bytes: usize,
        patience: Duration,
    ) -> Result<(), ApiError> {
        let deadline = Instant::now() + patience;
        loop {
            let freed = self.budget.freed.notified();
            if let Some(part) = self.budget.take(self.tenant, tenants, bytes) {
                self.part.own += part.own;
                self.part.common += part.common;
                return Ok(());
            }
            if timeout_at(deadline, freed).await.is_err() {
                return Err(ApiError::too_many_bodies());
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes() == 0 {
            return;
        }
        let mut taken = self.budget.taken();
        taken.common -= self.part.common;
        if let Some(has) = taken.by_tenant.get_mut(&self.tenant) {
            has.own -= self.part.own;
            has.common -= self.part.common;
            if has.own + has.common == 0 {
                taken.by_tenant.remove(&self.tenant);
            }
        }
        drop(taken);
        self.budget.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_floods_leaves_others_theirs() {
        let budget = Arc::new(Budget::new(800));
        let soon = Duration::from_secs(1);
        let hold = |tenant: u32, bytes| {
            let mut held = Reservation::none(&budget, TenantId(tenant));
            async move { held.grow(4, bytes, soon).await.map(|()| held) }
        };
        // Its own hundred, and a quarter of what is for whoever comes.
        let flood = hold(1, 200).await.expect("there is room");
        assert!(hold(1, 1).await.is_err());
        let other = hold(2, 100).await.expect("its own part");
        drop(flood);
        let again = hold(1, 200).await.expect("what was held is free");
        drop((other, again));
        assert!(budget.taken().by_tenant.is_empty());
        assert_eq!(budget.taken().common, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_for_memory_for_a_while() {
        let budget = Arc::new(Budget::new(100));
        let mut first = Reservation::none(&budget, TenantId(0));
        first.grow(1, 80, Duration::ZERO).await.expect("there is room");
        let mut second = Reservation::none(&budget, TenantId(0));
        let waits = async {
            second.grow(1, 30, Duration::from_secs(5)).await.expect("room comes");
        };
        let frees = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        tokio::join!(waits, frees);
        let mut third = Reservation::none(&budget, TenantId(0));
        assert!(third.grow(1, 80, Duration::from_secs(5)).await.is_err());
    }
}
