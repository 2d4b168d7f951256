//! The threads that compute.
//!
//! A step has a few hundred short parallel regions, so starting one must cost
//! about a microsecond: workers spin for a moment after each region and only
//! then park. Tasks are claimed one by one, and a region ends when its *tasks*
//! are done, not when every worker has looked at it: a worker that the system
//! has put aside delays nobody but its own task.
#![expect(unsafe_code, reason = "a region borrows its closure for as long as it runs")]

use std::{
    cell::UnsafeCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

/// How long an idle thread looks for work before it parks.
const SPIN: Duration = Duration::from_micros(40);
/// Tasks of one region at most; more are claimed in groups.
const MAX_CLAIMS: usize = 4096;

/// What a region runs: `(thread index, task index)`.
type Job<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// A fixed set of threads that run one parallel region at a time. The caller's
/// thread takes part.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Epoch (32 bits), claims in all (16), next claim (16). One word, so a
    /// claim is valid only for the region it was made in.
    ticket: AtomicU64,
    done: AtomicU32,
    job: UnsafeCell<Option<*const Job<'static>>>,
    busy: AtomicBool,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleeping: Vec<AtomicBool>,
    /// Whom to wake once the region is done, if the caller has parked.
    caller: Mutex<Option<Thread>>,
    caller_parked: AtomicBool,
}

// SAFETY: `job` is written only by the thread that holds `busy`, before it
// publishes a ticket, and read only between a claim on that ticket and its
// entry in `done`, which the writer awaits before it writes again.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is dereferenced only while its region runs.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// A pool of `num_threads`, the caller's included; at least one.
    #[must_use]
    pub fn new(num_threads: usize) -> Self {
        let num_workers = num_threads.max(1) - 1;
        let shared = Arc::new(Shared {
            ticket: AtomicU64::new(0),
            done: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            busy: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleeping: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
            caller_parked: AtomicBool::new(false),
        });
        // A thread that cannot be had leaves a smaller pool, which is slower only.
        let workers = (0..num_workers)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("sconce-cpu-{}", index + 1))
                    .spawn(move || shared.work(index))
                    .ok()
            })
            .collect();
        Self { shared, workers }
    }

    /// Threads, the caller's included.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread, task)` once for every task below `num_tasks`, each on
    /// some thread below [`ThreadPool::num_threads`], and returns when all are done.
    ///
    /// # Panics
    /// If a task panicked, or if called from within a region.
    pub fn run(&self, num_tasks: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        if num_tasks == 0 {
            return;
        }
        if self.workers.is_empty() || num_tasks == 1 {
            (0..num_tasks).for_each(|task| job(0, task));
            return;
        }
        let group = num_tasks.div_ceil(MAX_CLAIMS);
        let claims = num_tasks.div_ceil(group);
        let grouped = |thread: usize, claim: usize| {
            let end = ((claim + 1) * group).min(num_tasks);
            (claim * group..end).for_each(|task| job(thread, task));
        };
        self.run_claims(claims, &grouped);
    }

    fn run_claims(&self, claims: usize, job: &Job<'_>) {
        let shared = &*self.shared;
        assert!(!shared.busy.swap(true, Ordering::Acquire), "parallel regions do not nest");
        // SAFETY: only the lifetime changes; the pointer is not dereferenced
        // after this function returns (see `Shared`).
        let job = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: `busy` is held and no region runs, so nobody reads this.
        unsafe { *shared.job.get() = Some(job) };
        shared.done.store(0, Ordering::Relaxed);
        let epoch = (shared.ticket.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        shared.ticket.store(epoch << 32 | (claims as u64) << 16, Ordering::SeqCst);
        for (worker, sleeping) in self.workers.iter().zip(&shared.sleeping) {
            if sleeping.load(Ordering::SeqCst) && sleeping.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        shared.take_claims(0);
        shared.await_done(u32::try_from(claims).expect("claims fit 16 bits"));
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        shared.busy.store(false, Ordering::Release);
        assert!(!panicked, "a task of a parallel region panicked");
    }
}

impl Shared {
    /// Runs claims of the current region until none is left.
    fn take_claims(&self, thread: usize) {
        loop {
            let ticket = self.ticket.load(Ordering::Acquire);
            let (total, next) = ((ticket >> 16) & 0xffff, ticket & 0xffff);
            if next >= total {
                return;
            }
            let claimed = self.ticket.compare_exchange_weak(
                ticket,
                ticket + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if claimed.is_err() {
                continue;
            }
            // SAFETY: the claim keeps its region alive until `done` counts it,
            // and the region's job was written before its ticket.
            let job = unsafe { &*(*self.job.get()).expect("a region has a job") };
            if catch_unwind(AssertUnwindSafe(|| job(thread, next as usize))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            let done = u64::from(self.done.fetch_add(1, Ordering::SeqCst)) + 1;
            if done == total && self.caller_parked.load(Ordering::SeqCst) {
                // Waking a caller that has moved on is harmless to it.
                if let Some(caller) = &*lock(&self.caller) {
                    caller.unpark();
                }
            }
        }
    }

    fn await_done(&self, claims: u32) {
        let mut spinning = Spin::new();
        while self.done.load(Ordering::Acquire) != claims {
            if spinning.go_on() {
                continue;
            }
            *lock(&self.caller) = Some(thread::current());
            self.caller_parked.store(true, Ordering::SeqCst);
            while self.done.load(Ordering::SeqCst) != claims {
                thread::park();
            }
            self.caller_parked.store(false, Ordering::SeqCst);
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let mut spinning = Spin::new();
            loop {
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
                let epoch = self.ticket.load(Ordering::Acquire) >> 32;
                if epoch != seen {
                    seen = epoch;
                    break;
                }
                if spinning.go_on() {
                    continue;
                }
                self.sleeping[index].store(true, Ordering::SeqCst);
                let nothing_new = self.ticket.load(Ordering::SeqCst) >> 32 == seen;
                if nothing_new && !self.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.sleeping[index].store(false, Ordering::SeqCst);
            }
            self.take_claims(index + 1);
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panics were caught inside its tasks.
            let _ = worker.join();
        }
    }
}

fn lock(caller: &Mutex<Option<Thread>>) -> MutexGuard<'_, Option<Thread>> {
    caller.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spins until [`SPIN`] has passed, asking the clock only now and then.
struct Spin {
    rounds: u32,
    started: Option<Instant>,
}

impl Spin {
    fn new() -> Self {
        Self { rounds: 0, started: None }
    }

    fn go_on(&mut self) -> bool {
        std::hint::spin_loop();
        self.rounds += 1;
        if !self.rounds.is_multiple_of(64) {
            return true;
        }
        self.started.get_or_insert_with(Instant::now).elapsed() < SPIN
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_task_runs_once_in_many_small_regions() {
        let pool = ThreadPool::new(3);
        for num_tasks in (0..2_000).map(|i| i % 37).chain([5_000, 70_000]) {
            let counts: Vec<_> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(num_tasks, &|thread, task| {
                assert!(thread < 3);
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = ThreadPool::new(2);
        for bad in 0..20 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(20, &|_, task| assert!(task != bad, "task {task}"));
            }));
            assert!(outcome.is_err());
            let ran = AtomicUsize::new(0);
            pool.run(8, &|_, _| {
                ran.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(ran.load(Ordering::Relaxed), 8);
        }
    }
}
