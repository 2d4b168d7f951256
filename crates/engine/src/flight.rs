//! The steps that are launched and not yet committed.

use std::{collections::VecDeque, time::Instant};

use sconce_types::ScheduledBatch;

/// A step in flight.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) batch: ScheduledBatch,
    /// When it was scheduled, and when launched.
    pub(crate) scheduled: Instant,
    pub(crate) launched: Instant,
    /// When all of it was launched, once it was.
    pub(crate) sampled: Option<Instant>,
}

/// Steps in flight, the oldest first, and the memory of those that have ended.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    steps: VecDeque<Step>,
    spare: Vec<ScheduledBatch>,
    /// Whether the newest step has yet to be sampled: its masks follow from the step before.
    is_unsampled: bool,
}

impl Flight {
    /// Whether no step is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether another step may be launched, of at most `depth` in flight.
    pub(crate) fn has_room(&self, depth: usize) -> bool {
        self.steps.len() < depth && !self.is_unsampled
    }

    /// Memory for a batch.
    pub(crate) fn spare(&mut self) -> ScheduledBatch {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a batch's memory back.
    pub(crate) fn recycle(&mut self, batch: ScheduledBatch) {
        self.spare.push(batch);
    }

    /// Adds a step that was launched, and has yet to be sampled.
    pub(crate) fn push(&mut self, step: Step) {
        assert!(!self.is_unsampled, "a step is launched once the one before is sampled");
        self.is_unsampled = true;
        self.steps.push_back(step);
    }

    /// The newest step, if it has yet to be sampled; it counts as sampled from now on.
    pub(crate) fn take_unsampled(&mut self) -> Option<&Step> {
        std::mem::take(&mut self.is_unsampled).then(|| self.steps.back()).flatten()
    }

    /// Notes that all of the newest step was launched.
    pub(crate) fn note_sampled(&mut self, now: Instant) {
        if let Some(newest) = self.steps.back_mut() {
            newest.sampled = Some(now);
        }
    }

    /// Takes the oldest step out.
    pub(crate) fn pop_oldest(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Takes the newest step out, which has failed.
    pub(crate) fn pop_newest(&mut self) -> Option<Step> {
        self.steps.pop_back()
    }

    /// Forgets all steps: they are lost.
    pub(crate) fn clear(&mut self) {
        self.is_unsampled = false;
        self.spare.extend(self.steps.drain(..).map(|step| step.batch));
    }
}
