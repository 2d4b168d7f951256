//! How much prefill a step takes beside decodes.

use crate::{Scheduler, StepModel, StepWork};

/// Bounds the prefill of a step that decodes too, so that inter-token latency keeps to a
/// target however slow the device is. It decides what a step computes, never what comes
/// out: a chunk's size changes no bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepLimit {
    target: f64,
    /// Seconds of any step, of a prompt token, of a decode, of an attended pair.
    seconds: [f64; 4],
}

impl StepLimit {
    /// Prompt tokens that a step may compute whatever they take, so that every prefill
    /// goes on.
    pub const FLOOR: usize = 16;
    /// Where decodes alone exceed the target, prefill may make the step so many times as
    /// long: weights that are read for a few prompt tokens only are read in vain.
    pub const STRETCH: f64 = 2.0;

    /// Steps of `target` seconds, with steps that take what `model` says.
    #[must_use]
    pub fn new(target: f64, model: &StepModel) -> Self {
        Self { target, seconds: model.parts() }
    }

    /// Seconds that prefill may add to a step of these decodes; infinite if there is none.
    #[must_use]
    pub fn seconds_for_prefill(&self, decodes: StepWork) -> f64 {
        if decodes.decode == 0.0 {
            return f64::INFINITY;
        }
        let [step, _, decode, attended] = self.seconds;
        let alone = step + decode * decodes.decode + attended * decodes.attended;
        self.target.max(Self::STRETCH * alone) - alone
    }

    /// Seconds of a prompt's next tokens, after so many that are computed.
    #[must_use]
    pub fn seconds_of_chunk(&self, tokens: f64, context: f64) -> f64 {
        let [_, prefill, _, attended] = self.seconds;
        tokens * (prefill + attended * (context + tokens / 2.0))
    }

    /// The longest such chunk that takes at most so many seconds; infinite if any does.
    pub(crate) fn longest_chunk(&self, seconds: f64, context: f64) -> f64 {
        let [_, prefill, _, attended] = self.seconds;
        if seconds == f64::INFINITY || (prefill == 0.0 && attended == 0.0) {
            return f64::INFINITY;
        }
        let linear = prefill + attended * context;
        // The positive root of a quadratic equation, in a form that bears attended = 0.
        let root = (linear * linear + 2.0 * attended * seconds).sqrt();
        2.0 * seconds / (linear + root)
    }
}

/// What is left of a step's prefill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PrefillRoom {
    seconds: f64,
    tokens: usize,
}

impl Scheduler {
    /// Bounds the prefill of steps that decode too; `None` leaves it to
    /// `max_num_batched_tokens` alone.
    pub fn set_step_limit(&mut self, limit: Option<StepLimit>) {
        self.step_limit = limit;
    }

    /// Whether the present step has time for another prompt's tokens.
    pub(crate) fn may_prefill(&mut self) -> bool {
        let Some(limit) = self.step_limit else { return true };
        let room = self.prefill_room(limit);
        room.tokens < StepLimit::FLOOR || limit.longest_chunk(room.seconds, 0.0) >= 1.0
    }

    /// How many of a prompt's `pending` tokens this step computes, after so many that are
    /// computed.
    pub(crate) fn chunk_len(&mut self, budget: usize, context: usize, pending: usize) -> usize {
        let most = pending.min(budget);
        let Some(limit) = self.step_limit else { return most };
        let room = self.prefill_room(limit);
        // As casts saturate, an infinite time is a chunk without a limit.
        let in_time = limit.longest_chunk(room.seconds, context as f64) as usize;
        let len = most.min(in_time.max(StepLimit::FLOOR.saturating_sub(room.tokens)));
        let seconds = room.seconds - limit.seconds_of_chunk(len as f64, context as f64);
        self.prefill_room =
            Some(PrefillRoom { seconds: seconds.max(0.0), tokens: room.tokens + len });
        len
    }

    fn prefill_room(&mut self, limit: StepLimit) -> PrefillRoom {
        let Self { prefill_room, running, sequences, step, .. } = self;
        *prefill_room.get_or_insert_with(|| {
            let sequences = running.iter().map(|running| &sequences[&running.id]);
            let mut decodes = StepWork::default();
            for sequence in sequences.filter(|sequence| sequence.is_decode()) {
                // A token that this step samples is not attended to yet.
                let is_scheduled = sequence.last_step == *step;
                if !is_scheduled && sequence.samples_its_last() {
                    continue;
                }
                decodes.decode += 1.0;
                decodes.attended += (sequence.len() - usize::from(is_scheduled)) as f64;
            }
            PrefillRoom { seconds: limit.seconds_for_prefill(decodes), tokens: 0 }
        })
    }
}
