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

/// One of several tenants may hold a quarter of the common part.
const COMMON_PART: usize = 4;
/// An eighth of every part is kept for small bodies.
const SMALL_PART: usize = 8;

/// Bytes that request bodies may hold. Half are divided equally among the tenants; the
/// common part, which is the rest, is first come, first served.
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

/// What one tenant holds, or one body.
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
    /// Whether it is for a large body, which may not use what is kept for small ones.
    is_large: bool,
}

impl Budget {
    pub(super) fn new(total: usize) -> Self {
        Self { total, taken: Mutex::default(), freed: Notify::new() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes bytes for a tenant, one of so many, if they are there: its own first.
    fn take(&self, tenant: TenantId, tenants: usize, bytes: usize, is_large: bool) -> Option<Part> {
        let (own, common) = match tenants {
            0 | 1 => (self.total, 0),
            _ => (self.total / 2 / tenants, self.total / 2),
        };
        let usable = |part: usize| if is_large { part - part / SMALL_PART } else { part };
        let (own, common) = (usable(own), usable(common));
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
        Self { budget: Arc::clone(budget), tenant, part: Part::default(), is_large: false }
    }

    /// Takes from now on nothing that is kept for small bodies.
    pub(super) fn set_large(&mut self) {
        self.is_large = true;
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
            if let Some(part) = self.budget.take(self.tenant, tenants, bytes, self.is_large) {
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
        // Its own hundred, and a quarter of the common part.
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
    async fn large_bodies_leave_room_for_small_ones() {
        let budget = Arc::new(Budget::new(1600));
        for (tenants, most) in [(1, 1400), (4, 350)] {
            let hold = |bytes, is_large| {
                let mut held = Reservation::none(&budget, TenantId(0));
                if is_large {
                    held.set_large();
                }
                async move { held.grow(tenants, bytes, Duration::ZERO).await.map(|()| held) }
            };
            let large = hold(most, true).await.expect("all but an eighth");
            assert!(hold(1, true).await.is_err(), "the rest is for small bodies");
            let small = hold(most / 7, false).await.expect("an eighth");
            assert!(hold(1, false).await.is_err(), "all is taken");
            drop((large, small));
        }
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
