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
    /// Slots whose masks are soon there, by those before: they come first.
    quick: VecDeque<Arc<Slot>>,
    /// The others, for which not all threads are used where there are more than one: they
    /// must not hold up the masks of others' answers.
    slow: VecDeque<Arc<Slot>>,
    idle: usize,
    closed: bool,
}

impl MaskThreads {
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wanted: Condvar::new() });
        for index in 0..threads {
            let shared = Arc::clone(&shared);
            let is_for_all = index > 0 || threads == 1;
            let thread = thread::Builder::new().name("masks".to_owned());
            thread.spawn(move || shared.work(is_for_all))?;
        }
        Ok(Self { shared })
    }

    /// Computes what a slot wants, soon.
    pub(crate) fn push(&self, slot: &Arc<Slot>, is_quick: bool) {
        let mut queue = self.shared.queue();
        let line = if is_quick { &mut queue.quick } else { &mut queue.slow };
        line.push_back(Arc::clone(slot));
        match (queue.idle, is_quick) {
            (0, _) => {}
            (_, true) => self.shared.wanted.notify_one(),
            // Not every thread takes it.
            (_, false) => self.shared.wanted.notify_all(),
        }
    }
}

impl Drop for MaskThreads {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.closed = true;
        queue.quick.clear();
        queue.slow.clear();
        self.shared.wanted.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Masks are computed outside of the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, is_for_all: bool) {
        let mut queue = self.queue();
        while !queue.closed {
            let next = match queue.quick.pop_front() {
                None if is_for_all => queue.slow.pop_front(),
                quick => quick,
            };
            let Some(slot) = next else {
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
