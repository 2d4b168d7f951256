//! Threads that compute masks while the device computes logits.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use crate::constraint::Slot;

/// The threads and their queue, which holds a slot at most once.
pub(crate) struct MaskThreads {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    wanted: Condvar,
}

#[derive(Default)]
struct Queue {
    slots: VecDeque<Arc<Slot>>,
    idle: usize,
    closed: bool,
}

impl MaskThreads {
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wanted: Condvar::new() });
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("masks".to_owned()).spawn(move || shared.work())?;
        }
        Ok(Self { shared })
    }

    /// Computes what a slot wants, soon.
    pub(crate) fn push(&self, slot: &Arc<Slot>) {
        let mut queue = self.shared.queue();
        queue.slots.push_back(Arc::clone(slot));
        if queue.idle > 0 {
            self.shared.wanted.notify_one();
        }
    }
}

impl Drop for MaskThreads {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.closed = true;
        queue.slots.clear();
        self.shared.wanted.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Masks are computed outside of the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.queue();
        while !queue.closed {
            let Some(slot) = queue.slots.pop_front() else {
                queue.idle += 1;
                queue = self.wanted.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
                continue;
            };
            drop(queue);
            slot.compute();
            drop(slot);
            queue = self.queue();
        }
    }
}
