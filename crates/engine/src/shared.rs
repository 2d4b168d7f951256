//! What handles and the engine's thread share, and the messages between them.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sconce_scheduler::{CheckedRequest, MinuteReservation};
use sconce_types::{NotReady, RequestId, Tenant, TenantId};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    Capacity, RequestClock, RequestEvent, Snapshot, StopCheck, TokenConstraint, admission::Door,
    timeline::Timeline,
};

/// What is told to the engine's thread.
pub(crate) enum Message {
    Submit(Box<Submission>),
    /// A request's stream was dropped.
    Cancel(RequestId),
    /// A request that was not ready is, under this constraint if any; or it never will be,
    /// and why.
    Ready(RequestId, Result<Option<Box<dyn TokenConstraint>>, String>),
    /// Tenants as they are from now on.
    Tenants(Vec<Tenant>),
    /// The ledger is to keep all that it was told, and then to say so.
    Settle(oneshot::Sender<()>),
    /// What a prompt of so many tokens may expect. Few of these wait at once.
    Capacity(TenantId, usize, oneshot::Sender<Capacity>, OwnedSemaphorePermit),
    /// How the engine is. Few of these wait at once either.
    Snapshot(oneshot::Sender<Snapshot>, OwnedSemaphorePermit),
}

/// Messages of one request that may wait to be read: that it comes, is ready, and goes.
pub(crate) const MESSAGES_A_REQUEST: usize = 3;
/// Messages beside those of requests that may wait to be read.
pub(crate) const CONTROL_MESSAGES: usize = 64;

/// A request on its way to the engine's thread.
pub(crate) struct Submission {
    pub(crate) request: CheckedRequest,
    pub(crate) request_id: Arc<str>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) scores_prompt: bool,
    pub(crate) clock: Option<RequestClock>,
    pub(crate) stop: Option<Box<dyn StopCheck>>,
    pub(crate) constraint: Option<Box<dyn TokenConstraint>>,
    /// What it waits for, and how long it may.
    pub(crate) not_ready: Option<(NotReady, Duration)>,
    pub(crate) arrived: Instant,
    pub(crate) events: mpsc::Sender<RequestEvent>,
    pub(crate) permit: Permit,
}

/// What handles and the engine's thread share: counters, and a lock that is held for
/// microseconds.
pub(crate) struct Shared {
    pub(crate) started: Instant,
    /// Milliseconds from `started` to the loop's last turn.
    pub(crate) last_turn_ms: AtomicU64,
    pub(crate) idle: AtomicBool,
    pub(crate) restarting: AtomicBool,
    /// Set before `lost` is.
    pub(crate) device_lost: AtomicBool,
    pub(crate) lost: AtomicBool,
    pub(crate) ended: Notify,
    /// Asked for, and not done yet.
    pub(crate) reset_prefix_cache: AtomicBool,
    /// Milliseconds until a request should end, for those who find no place.
    pub(crate) next_end_ms: AtomicU64,
    /// Decides which requests are taken, while steps run.
    door: Mutex<Door>,
    /// Questions that may wait for the engine's thread.
    pub(crate) questions: Arc<Semaphore>,
    pub(crate) draining: AtomicBool,
    pub(crate) unfinished: AtomicUsize,
    pub(crate) drained: Notify,
    pub(crate) next_id: AtomicU64,
    /// A lock that is held for less than a microsecond, but where a picture is made.
    pub(crate) timeline: Timeline,
}

impl Shared {
    pub(crate) fn new(door: Door) -> Self {
        Self {
            next_end_ms: AtomicU64::new(0),
            door: Mutex::new(door),
            questions: Arc::new(Semaphore::new(CONTROL_MESSAGES / 2)),
            started: Instant::now(),
            last_turn_ms: AtomicU64::new(0),
            idle: AtomicBool::new(true),
            restarting: AtomicBool::new(false),
            device_lost: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            ended: Notify::new(),
            reset_prefix_cache: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            unfinished: AtomicUsize::new(0),
            drained: Notify::new(),
            next_id: AtomicU64::new(0),
            timeline: Timeline::default(),
        }
    }

    pub(crate) fn beat(&self, idle: bool) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_turn_ms.store(now_ms, Ordering::Relaxed);
        self.idle.store(idle, Ordering::Relaxed);
    }

    pub(crate) fn door(&self) -> MutexGuard<'_, Door> {
        // What is decided by it is never left half done.
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since the start, the clock of admission.
    pub(crate) fn seconds(&self, at: Instant) -> f64 {
        at.saturating_duration_since(self.started).as_secs_f64()
    }

    /// Tells everyone that the loop is over.
    pub(crate) fn end(&self) {
        self.lost.store(true, Ordering::Release);
        self.ended.notify_waiters();
    }
}

/// Counts one unfinished request until it is dropped, and holds its part of its tenant's
/// tokens a minute.
pub(crate) struct Permit {
    shared: Arc<Shared>,
    tenant: TenantId,
    minute: Option<MinuteReservation>,
    is_held: bool,
}

impl Permit {
    /// Counts a request that admission has taken and that holds this part of the minute.
    pub(crate) fn new(
        shared: &Arc<Shared>,
        tenant: TenantId,
        minute: Option<MinuteReservation>,
    ) -> Self {
        shared.unfinished.fetch_add(1, Ordering::AcqRel);
        Self { shared: Arc::clone(shared), tenant, minute, is_held: true }
    }

    /// The request uses no more tokens than it has `used`; the rest of what it had reserved
    /// is its tenant's again. Only the first call counts.
    pub(crate) fn refund(&mut self, used: u64) {
        if let Some(minute) = self.minute.take() {
            self.shared.door().admission.refund(self.tenant, minute, used);
        }
    }

    /// The request's place is free. Called before its last event is sent, so that a client
    /// that has its whole answer finds room for its next request. Only the first call counts.
    pub(crate) fn release(&mut self) {
        if !std::mem::take(&mut self.is_held) {
            return;
        }
        // A request that ends normally was refunded before; what is left was never computed.
        self.refund(0);
        self.shared.door().admission.leave(self.tenant);
        if self.shared.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.drained.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release();
    }
}
