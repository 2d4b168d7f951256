//! Threads for work that takes long, shared fairly between tenants.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use sconce_types::TenantId;

/// What any piece of work costs beside its bytes.
const FIXED_COST: usize = 1024;

type Work = Box<dyn FnOnce() + Send>;

/// A queue for each tenant, and the threads that take from them: weighted fair queueing by
/// bytes of work, first come, first served within a tenant.
pub(super) struct Lane {
    shared: Arc<LaneState>,
}

struct LaneState {
    queue: Mutex<Queue>,
    wanted: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: HashMap<TenantId, Line>,
    /// The `served` of the tenant that was served last, before it was.
    virtual_time: u64,
    closed: bool,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<(u64, Work)>,
    served: u64,
}

impl Lane {
    pub(super) fn new(name: &str, threads: usize, niceness: i32) -> Self {
        let shared = Arc::new(LaneState { queue: Mutex::default(), wanted: Condvar::new() });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(name.to_owned());
            let started = thread.spawn(move || {
                give_way(niceness);
                shared.work();
            });
            started.expect("the system has threads when a server starts");
        }
        Self { shared }
    }

    /// Puts work in a tenant's line, unless so many wait there already.
    pub(super) fn push(
        &self,
        tenant: TenantId,
        weight: u32,
        bytes: usize,
        may_wait: usize,
        work: Work,
    ) -> bool {
        let mut queue = self.shared.queue();
        let virtual_time = queue.virtual_time;
        let line = queue.lines.entry(tenant).or_default();
        if line.waiting.len() >= may_wait {
            return false;
        }
        // An idle tenant saves up no credit.
        line.served = line.served.max(virtual_time);
        let cost = (bytes + FIXED_COST) as u64 * 1024 / u64::from(weight.max(1));
        line.waiting.push_back((cost, work));
        self.shared.wanted.notify_one();
        true
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.closed = true;
        queue.lines.clear();
        self.shared.wanted.notify_all();
    }
}

impl LaneState {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Work runs outside of the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.queue();
        while !queue.closed {
            let Some(work) = queue.next() else {
                queue = self.wanted.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            // Its request is told by the loss of its reply.
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("work on a request's text panicked");
            }
            queue = self.queue();
        }
    }
}

impl Queue {
    fn next(&mut self) -> Option<Work> {
        let waiting = self.lines.iter_mut().filter(|(_, line)| !line.waiting.is_empty());
        let (&tenant, line) = waiting.min_by_key(|(tenant, line)| (line.served, tenant.index()))?;
        let (cost, work) = line.waiting.pop_front()?;
        self.virtual_time = self.virtual_time.max(line.served);
        line.served += cost;
        // A new line starts at the virtual time: empty ones that are not ahead need no entry.
        let now = self.virtual_time;
        self.lines
            .retain(|id, line| *id == tenant || !line.waiting.is_empty() || line.served > now);
        Some(work)
    }
}

/// Lets this thread's work wait for the engine's, which all tenants need.
fn give_way(niceness: i32) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(niceness) {
        tracing::debug!("a thread without niceness: {error}");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = niceness;
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A lane whose only thread is held until the sender is dropped.
    fn held() -> (Lane, mpsc::Sender<()>) {
        let lane = Lane::new("test", 1, 0);
        let (release, held) = mpsc::channel::<()>();
        let (started, running) = mpsc::channel();
        let work = move || {
            started.send(()).unwrap();
            let _ = held.recv();
        };
        assert!(lane.push(TenantId(9), 1, 0, 1, Box::new(work)));
        running.recv().unwrap();
        (lane, release)
    }

    #[test]
    fn a_flood_is_served_in_turns_with_others() {
        let (lane, release) = held();
        let (log, order) = mpsc::channel();
        let push = |tenant: u32, weight, bytes| {
            let log = log.clone();
            let work = Box::new(move || log.send(tenant).unwrap());
            assert!(lane.push(TenantId(tenant), weight, bytes, 100, work));
        };
        (0..12).for_each(|_| push(1, 1, 4 << 20));
        (0..4).for_each(|_| push(2, 1, 1 << 20));
        push(3, 4, 4 << 20);
        push(3, 4, 4 << 20);
        drop((release, log));
        let order: Vec<_> = order.iter().collect();
        // The first is anybody's; after one large piece of the flood the others are through.
        assert_eq!(&order[..7].iter().filter(|id| **id == 1).count(), &1, "{order:?}");
        assert_eq!(order.len(), 18);
    }

    #[test]
    fn a_line_has_an_end_and_a_panic_is_its_own() {
        let (lane, release) = held();
        assert!(lane.push(TenantId(1), 1, 0, 2, Box::new(|| panic!("a fault"))));
        let (done, result) = mpsc::channel();
        assert!(lane.push(TenantId(1), 1, 0, 2, Box::new(move || done.send(7).unwrap())));
        assert!(!lane.push(TenantId(1), 1, 0, 2, Box::new(|| {})));
        assert!(lane.push(TenantId(2), 1, 0, 2, Box::new(|| {})), "another's line is its own");
        drop(release);
        assert_eq!(result.recv(), Ok(7));
    }
}
