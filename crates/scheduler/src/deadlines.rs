//! What is due when.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Things that are due at times, in seconds from any origin.
#[derive(Clone, Debug)]
pub struct Deadlines<T> {
    /// Times are not negative, so their bits are in their order.
    heap: BinaryHeap<Reverse<(u64, T)>>,
}

impl<T: Ord> Default for Deadlines<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new() }
    }
}

impl<T: Ord + Copy> Deadlines<T> {
    /// `what` is due `at` a time; never, if that is infinite.
    pub fn add(&mut self, at: f64, what: T) {
        if at.is_finite() {
            self.heap.push(Reverse((at.max(0.0).to_bits(), what)));
        }
    }

    /// When the first is due.
    #[must_use]
    pub fn next(&self) -> Option<f64> {
        self.heap.peek().map(|&Reverse((at, _))| f64::from_bits(at))
    }

    /// Takes the first that is due.
    pub fn pop(&mut self, now: f64) -> Option<T> {
        let &Reverse((at, what)) = self.heap.peek()?;
        if f64::from_bits(at) > now {
            return None;
        }
        self.heap.pop();
        Some(what)
    }

    /// Forgets what does not matter any more, once it outnumbers the `num_live` that do.
    pub fn tidy(&mut self, num_live: usize, is_live: impl Fn(&T) -> bool) {
        if self.heap.len() > 4 * num_live + 64 {
            self.heap.retain(|Reverse((_, what))| is_live(what));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_the_order_of_time() {
        let mut deadlines = Deadlines::default();
        for (at, what) in [(3.0, 'c'), (0.5, 'a'), (f64::INFINITY, 'e'), (20.0, 'd'), (3.0, 'b')] {
            deadlines.add(at, what);
        }
        assert_eq!(deadlines.pop(0.25), None);
        assert_eq!(deadlines.pop(3.0), Some('a'));
        assert_eq!(deadlines.pop(3.0), Some('b'));
        assert_eq!(deadlines.pop(3.0), Some('c'));
        assert_eq!(deadlines.pop(19.0), None);
        assert_eq!((deadlines.pop(1e9), deadlines.pop(1e9)), (Some('d'), None));
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut deadlines = Deadlines::default();
        (0..1_000).for_each(|what| deadlines.add(f64::from(what), what));
        deadlines.tidy(900, |_| false);
        assert_eq!(deadlines.heap.len(), 1_000, "most of them matter");
        deadlines.tidy(10, |what| what % 100 == 0);
        assert_eq!(deadlines.heap.len(), 10);
    }
}
