//! Who is admitted next.

use std::collections::VecDeque;

use sconce_types::RequestId;

/// The waiting requests, first come, first served; the preempted go first,
/// since they came before everybody that waits.
///
/// A cancelled request stays in the line as a dead entry until it is reached
/// or until dead entries outnumber the living, so that cancelling is O(1).
#[derive(Clone, Debug, Default)]
pub(crate) struct WaitingQueue {
    line: VecDeque<RequestId>,
    num_dead: usize,
}

impl WaitingQueue {
    /// The living.
    pub(crate) fn len(&self) -> usize {
        self.line.len() - self.num_dead
    }

    pub(crate) fn push_back(&mut self, id: RequestId) {
        self.line.push_back(id);
    }

    pub(crate) fn push_front(&mut self, id: RequestId) {
        self.line.push_front(id);
    }

    /// The next living request; `is_waiting` tells the living from the dead.
    pub(crate) fn front(&mut self, is_waiting: impl Fn(RequestId) -> bool) -> Option<RequestId> {
        while let Some(&id) = self.line.front() {
            if is_waiting(id) {
                return Some(id);
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
    pub(crate) fn note_dead(&mut self, is_waiting: impl Fn(RequestId) -> bool) {
        self.num_dead += 1;
        if self.num_dead * 2 > self.line.len() {
            self.line.retain(|&id| is_waiting(id));
            self.num_dead = 0;
        }
    }
}
