//! Who is admitted next.

use std::collections::VecDeque;

use sconce_types::RequestId;

/// A place in the line. The arrival number tells a request from an earlier
/// one that had the same id and was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) id: RequestId,
    pub(crate) arrival: u64,
}

/// The waiting requests, first come, first served; the preempted go first,
/// since they came before everybody that waits.
///
/// A cancelled request stays in the line as a dead entry until it is reached
/// or until dead entries outnumber the living, so that cancelling is O(1).
#[derive(Clone, Debug, Default)]
pub(crate) struct WaitingQueue {
    line: VecDeque<Waiter>,
    num_dead: usize,
}

impl WaitingQueue {
    /// The living.
    pub(crate) fn len(&self) -> usize {
        self.line.len() - self.num_dead
    }

    pub(crate) fn push_back(&mut self, waiter: Waiter) {
        self.line.push_back(waiter);
    }

    pub(crate) fn push_front(&mut self, waiter: Waiter) {
        self.line.push_front(waiter);
    }

    /// The next living request; `is_waiting` tells the living from the dead.
    pub(crate) fn front(&mut self, is_waiting: impl Fn(Waiter) -> bool) -> Option<RequestId> {
        while let Some(&waiter) = self.line.front() {
            if is_waiting(waiter) {
                return Some(waiter.id);
            }
            self.line.pop_front();
            self.num_dead -= 1;
        }
        None
    }

    /// Removes what [`WaitingQueue::front`] returned.
    pub(crate) fn pop_front(&mut self) {
        self.line.pop_front();
    }

    /// Notes that a request in the line was cancelled.
    pub(crate) fn note_dead(&mut self, is_waiting: impl Fn(Waiter) -> bool) {
        self.num_dead += 1;
        if self.num_dead * 2 > self.line.len() {
            self.line.retain(|&waiter| is_waiting(waiter));
            self.num_dead = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_dead_never_outnumber_the_living_and_order_is_kept() {
        let waiter = |n| Waiter { id: RequestId(n), arrival: n };
        let mut queue = WaitingQueue::default();
        let mut living: BTreeSet<u64> = (0..1_000).collect();
        living.iter().for_each(|&n| queue.push_back(waiter(n)));
        // 7 is coprime to 1000: every request but the last is cancelled, in a scattered order.
        for cancelled in (0..999).map(|i| i * 7 % 1_000) {
            living.remove(&cancelled);
            queue.note_dead(|w| living.contains(&w.arrival));
            assert_eq!(queue.len(), living.len());
            assert!(queue.line.len() <= 2 * living.len(), "garbage is bounded");
            let next = queue.front(|w| living.contains(&w.arrival));
            assert_eq!(next, living.first().map(|&n| RequestId(n)));
        }
        assert_eq!(queue.len(), 1);
    }
}
