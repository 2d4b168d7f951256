//! What a request takes before the engine knows of it: memory for its body, and a
//! processor's time to parse, template and tokenize it. Both are bounded, in all and by
//! tenant, and neither is spent on the threads that serve connections.

mod body;
mod budget;
mod lane;

use std::{sync::Arc, thread::available_parallelism, time::Duration};

use sconce_types::TenantId;
use tokio::sync::oneshot;

pub(crate) use self::{body::read_body, budget::Reservation};
use self::{budget::Budget, lane::Lane};
use crate::{caller::TenantAuth, error::ApiError};

/// Work on more text than this is done one piece at a time, for all tenants together: it
/// takes many times the text's size in memory.
const LARGE_BYTES: usize = 64 << 10;
/// How much these threads give way to the engine's.
const SMALL_NICENESS: i32 = 5;
const LARGE_NICENESS: i32 = 10;
/// Threads for small pieces of work: a part of the processor's, but at most this many.
const MAX_THREADS: usize = 4;

/// How bodies are received.
#[derive(Clone, Debug)]
pub struct BodyConfig {
    /// The pause that a client may make while it sends a body.
    pub pause_timeout: Duration,
    /// The time that any body may take; longer ones get more, by the rate.
    pub timeout: Duration,
    /// Bytes a second that a client must send at least, over time.
    pub min_bytes_per_second: u32,
    /// Bytes of all bodies that are held at once. Half of them are each tenant's own.
    pub max_buffered_bytes: usize,
    /// How long a body waits until there is memory for it.
    pub patience: Duration,
}

impl Default for BodyConfig {
    fn default() -> Self {
        Self {
            pause_timeout: Duration::from_secs(15),
            timeout: Duration::from_secs(30),
            min_bytes_per_second: 16 << 10,
            max_buffered_bytes: 128 << 20,
            patience: Duration::from_secs(2),
        }
    }
}

/// The memory and the threads for what comes before the engine.
pub(crate) struct Intake {
    budget: Arc<Budget>,
    small: Lane,
    large: Lane,
    /// For grammars, each of which takes as long as it takes.
    grammars: Lane,
    /// Pieces of work of one tenant that wait, where its own limits do not say.
    max_queued: usize,
}

impl Intake {
    pub(crate) fn new(config: &BodyConfig, max_queued: usize) -> Self {
        let threads = available_parallelism().map_or(1, |count| count.get() / 4);
        Self {
            budget: Arc::new(Budget::new(config.max_buffered_bytes)),
            small: Lane::new("intake", threads.clamp(1, MAX_THREADS), SMALL_NICENESS),
            large: Lane::new("intake-large", 1, LARGE_NICENESS),
            grammars: Lane::new("grammars", 1, SMALL_NICENESS),
            max_queued,
        }
    }

    /// Memory for a body of a tenant: none yet.
    pub(crate) fn reservation(&self, tenant: TenantId) -> Reservation {
        Reservation::none(&self.budget, tenant)
    }

    /// Does work in its tenant's turn. Memory that it works on stays reserved until it is
    /// done, also if its client goes away while it waits; then it is dropped in its turn.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        turn: Turn,
        reserved: Reservation,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let lane = if turn.bytes > LARGE_BYTES { &self.large } else { &self.small };
        self.run_on(lane, turn, reserved, work).await
    }

    /// The same for the compilation of a grammar.
    pub(crate) async fn compile<T: Send + 'static>(
        &self,
        turn: Turn,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let none = Reservation::none(&self.budget, turn.tenant);
        self.run_on(&self.grammars, turn, none, work).await
    }

    async fn run_on<T: Send + 'static>(
        &self,
        lane: &Lane,
        turn: Turn,
        reserved: Reservation,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, result) = oneshot::channel();
        let work = move || {
            if !reply.is_closed() {
                let done = work();
                drop(reserved);
                let _ = reply.send(done);
            }
        };
        let may_wait = turn.may_wait.map_or(self.max_queued, |most| most.clamp(1, self.max_queued));
        if !lane.push(turn.tenant, turn.weight, turn.bytes, may_wait, Box::new(work)) {
            return Err(ApiError::too_much_work(may_wait));
        }
        result.await.map_err(|_| ApiError::bug())
    }
}

/// Whose turn a piece of work waits for, and how long it takes.
pub(crate) struct Turn {
    tenant: TenantId,
    weight: u32,
    /// Pieces of the tenant's work that may wait, where its limits say.
    may_wait: Option<usize>,
    bytes: usize,
}

impl Turn {
    /// The turn of work that takes time in proportion to `bytes`.
    pub(crate) fn of(caller: &TenantAuth, bytes: usize) -> Self {
        let tenant = caller.entry().map(|entry| &entry.tenant);
        let may_wait = tenant.and_then(|tenant| {
            // Those that would run at once wait here no less.
            Some(tenant.max_queued?.saturating_add(tenant.max_running?))
        });
        let weight = tenant.map_or(1, |tenant| tenant.weight);
        Self { tenant: caller.id, weight, may_wait, bytes }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use futures::FutureExt as _;

    use super::*;

    fn turn(bytes: usize) -> Turn {
        Turn { tenant: TenantId(1), weight: 1, may_wait: None, bytes }
    }

    #[tokio::test(start_paused = true)]
    async fn memory_stays_reserved_while_work_of_a_client_that_left_waits() {
        let config = BodyConfig { max_buffered_bytes: 1000, ..BodyConfig::default() };
        let intake = Intake::new(&config, 8);
        let (release, held) = mpsc::channel::<()>();
        let none = || intake.reservation(TenantId(1));
        let block = intake.run(turn(LARGE_BYTES + 1), none(), move || held.recv());
        let mut block = Box::pin(block);
        assert!((&mut block).now_or_never().is_none());
        let mut reserved = none();
        reserved.grow(1, 800, Duration::ZERO).await.expect("there is room");
        let mut work = Box::pin(intake.run(turn(LARGE_BYTES + 1), reserved, || ()));
        assert!((&mut work).now_or_never().is_none());
        drop(work);
        let mut next = none();
        let waits = next.grow(1, 800, Duration::from_secs(9)).await;
        assert!(waits.is_err(), "what the work holds is not given to others");
        drop(release);
        block.await.expect("it is done").expect_err("nothing was sent");
        // The lane drops it in its turn, which is before this one.
        intake.run(turn(LARGE_BYTES + 1), none(), || ()).await.expect("it is done");
        next.grow(1, 800, Duration::ZERO).await.expect("it is given back");
    }
}
