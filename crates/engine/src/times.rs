//! When the phases of a request began and ended.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use sconce_types::End;

/// Preemptions of one request whose times are kept; further ones are counted.
const MAX_PREEMPTIONS: usize = 32;

/// When the phases of a request began and ended: the instants that its metrics are measured by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestTimes {
    /// It was submitted.
    pub arrived: Option<Instant>,
    /// It took a slot for the first time.
    pub first_scheduled: Option<Instant>,
    /// Its first token came.
    pub first_token: Option<Instant>,
    /// It ended, and how.
    pub ended: Option<(Instant, End)>,
    /// Its first preemptions.
    pub preemptions: Vec<Preemption>,
    /// All of its preemptions.
    pub num_preemptions: u32,
}

/// A time for which a request had lost its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// It lost it.
    pub at: Instant,
    /// It took one again, if it did.
    pub resumed: Option<Instant>,
}

/// Where the engine writes a request's times while it runs, for an owner who reads them when
/// the request has ended, or was cancelled. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct RequestClock(Arc<Mutex<RequestTimes>>);

impl RequestClock {
    /// The times so far.
    #[must_use]
    pub fn read(&self) -> RequestTimes {
        self.with(|times| times.clone())
    }

    pub(crate) fn note_arrival(&self, at: Instant) {
        self.with(|times| times.arrived = Some(at));
    }

    /// It takes a slot, for the first time or again.
    pub(crate) fn note_scheduled(&self, at: Instant) {
        self.with(|times| {
            times.first_scheduled.get_or_insert(at);
            // One that is not among those kept was resumed long ago.
            if let Some(last) = times.preemptions.last_mut() {
                last.resumed.get_or_insert(at);
            }
        });
    }

    pub(crate) fn note_first_token(&self, at: Instant) {
        self.with(|times| times.first_token = Some(at));
    }

    pub(crate) fn note_preemption(&self, at: Instant) {
        self.with(|times| {
            times.num_preemptions += 1;
            if times.preemptions.len() < MAX_PREEMPTIONS {
                times.preemptions.push(Preemption { at, resumed: None });
            }
        });
    }

    pub(crate) fn note_end(&self, at: Instant, end: End) {
        self.with(|times| times.ended = Some((at, end)));
    }

    fn with<T>(&self, f: impl FnOnce(&mut RequestTimes) -> T) -> T {
        // Each change is one assignment or two that cannot panic between.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn preemptions_are_kept_up_to_a_bound_and_counted_beyond() {
        let (clock, start) = (RequestClock::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        clock.note_scheduled(after(1));
        for turn in 0..40 {
            clock.note_preemption(after(10 * turn + 2));
            clock.note_scheduled(after(10 * turn + 7));
        }
        let times = clock.read();
        assert_eq!(times.first_scheduled, Some(after(1)), "later slots change nothing");
        assert_eq!((times.num_preemptions, times.preemptions.len()), (40, MAX_PREEMPTIONS));
        for (turn, preemption) in (0..).zip(&times.preemptions) {
            let expected =
                Preemption { at: after(10 * turn + 2), resumed: Some(after(10 * turn + 7)) };
            assert_eq!(*preemption, expected);
        }
    }
}
