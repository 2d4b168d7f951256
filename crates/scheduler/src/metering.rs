//! What steps are billed to their requests. Clocks are the caller's: times are
//! nanoseconds since any moment, so the same code meters engines and simulations.

use sconce_types::{Metering, ScheduledBatch, ScheduledSequence};

use crate::{StepModel, StepWork};

/// Meters one request, step by step.
///
/// - A prompt token is billed in the step that processed its position first: as cached
///   if it was found in the prefix cache, as computed otherwise. What is computed again
///   after a preemption takes device time but is not billed as tokens again.
/// - A step that fails is billed as device time; its tokens were not computed.
/// - Blocks are billed from the schedule that gave them until the end of the request or
///   its preemption, whether or not a step ran it. What a sequence that has ended keeps for a
///   step in flight is not billed.
#[derive(Clone, Debug, Default)]
pub struct RequestMeter {
    usage: Metering,
    prompt_len: u32,
    /// Blocks held, and since when they are not billed.
    blocks: u64,
    since_ns: u64,
}

impl RequestMeter {
    /// The meter of a request with a prompt of so many tokens.
    #[must_use]
    pub fn new(prompt_len: usize) -> Self {
        Self { prompt_len: count(prompt_len), ..Self::default() }
    }

    /// What the request has used so far.
    #[must_use]
    pub fn usage(&self) -> &Metering {
        &self.usage
    }

    /// It waited so long for its first step.
    pub fn note_queued(&mut self, queue_ns: u64) {
        self.usage.queue_ns = queue_ns;
    }

    /// It holds so many blocks from now on.
    pub fn note_blocks(&mut self, num_blocks: usize, now_ns: u64) {
        self.bill_blocks(now_ns);
        self.blocks = num_blocks as u64;
    }

    /// Its part of a step that ended, and may have failed: `device_ns` of the device.
    pub fn note_step(&mut self, part: &ScheduledSequence, device_ns: u64, ended_ns: u64) {
        self.usage.device_ns += device_ns;
        self.bill_blocks(ended_ns);
        let found = self.bill_prompt(part.num_computed_tokens);
        self.usage.cached_tokens += found;
    }

    /// The step was computed.
    pub fn note_computed(&mut self, part: &ScheduledSequence) {
        self.bill_prompt(part.num_computed_tokens + part.input.len());
    }

    /// A token was generated.
    pub fn note_token(&mut self) {
        self.usage.generated_tokens += 1;
    }

    /// Its blocks were freed, by a preemption or by its end.
    pub fn note_release(&mut self, now_ns: u64) {
        self.bill_blocks(now_ns);
        self.blocks = 0;
    }

    /// Adds a share of the device's energy.
    pub fn note_energy(&mut self, uj: u64) {
        self.usage.energy_uj = Some(self.usage.energy_uj.unwrap_or(0) + uj);
    }

    fn bill_blocks(&mut self, now_ns: u64) {
        self.usage.block_ns += self.blocks * now_ns.saturating_sub(self.since_ns);
        self.since_ns = self.since_ns.max(now_ns);
    }

    /// Bills the prompt up to a position, as far as it was not; says how many tokens.
    fn bill_prompt(&mut self, end: usize) -> u32 {
        let end = count(end).min(self.prompt_len);
        let fresh = end.saturating_sub(self.usage.prompt_tokens);
        self.usage.prompt_tokens += fresh;
        fresh
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Shares wholes out in whole numbers that sum to them. Kept for its memory.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    weights: Vec<f64>,
    parts: Vec<u64>,
}

impl Shares {
    /// Each sequence's part of a step's nanoseconds, by what it alone would take: the work
    /// of its own and as much of what any step takes as the others.
    pub fn of_step(&mut self, model: &StepModel, batch: &ScheduledBatch, step_ns: u64) -> &[u64] {
        let rows = batch.sequences.len().max(1) as f64;
        let any = model.predict(StepWork::default());
        let weights = batch.sequences.iter().map(|sequence| {
            (model.predict(StepWork::of_sequence(sequence)) - any + any / rows).max(1e-12)
        });
        self.by_weight(step_ns, weights)
    }

    /// Shares `whole` out by weights that are not negative.
    pub fn by_weight(&mut self, whole: u64, weights: impl Iterator<Item = f64>) -> &[u64] {
        let Self { weights: kept, parts } = self;
        kept.clear();
        kept.extend(weights);
        parts.clear();
        let all: f64 = kept.iter().sum();
        let (mut weight, mut given) = (0.0, 0);
        for (index, part) in kept.iter().enumerate() {
            weight += part;
            // Rounding the running sum keeps every part within one of its due.
            let due = if index + 1 == kept.len() {
                whole
            } else {
                ((whole as f64 * (weight / all)) as u64).clamp(given, whole)
            };
            parts.push(due - given);
            given = due;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use sconce_types::{Input, RequestId, Sample, Slot};

    use super::*;

    fn part(start: usize, len: usize) -> ScheduledSequence {
        ScheduledSequence {
            request: RequestId(1),
            slot: Slot(0),
            input: Input::Tokens(0..len),
            num_computed_tokens: start,
            num_blocks: 0,
            table_edits: 0..0,
            sample: Sample::Nothing,
        }
    }

    #[test]
    fn a_prompts_tokens_are_billed_once_as_they_are_processed() {
        let mut meter = RequestMeter::new(100);
        let step = |meter: &mut RequestMeter, start, len, is_computed| {
            let part = part(start, len);
            meter.note_step(&part, 5, 0);
            if is_computed {
                meter.note_computed(&part);
            }
            (meter.usage().prompt_tokens, meter.usage().cached_tokens)
        };
        assert_eq!(step(&mut meter, 16, 30, true), (46, 16));
        // Preempted: what is computed again, or found this time, was billed.
        assert_eq!(step(&mut meter, 0, 20, true), (46, 16));
        assert_eq!(step(&mut meter, 32, 14, true), (46, 16));
        // Another request has computed the same prompt further meanwhile.
        assert_eq!(step(&mut meter, 64, 20, true), (84, 34));
        assert_eq!(step(&mut meter, 84, 30, false), (84, 34), "the step failed");
        assert_eq!(step(&mut meter, 84, 30, true), (100, 34), "what follows the prompt is output");
        assert_eq!(meter.usage().device_ns, 30);
    }

    #[test]
    fn blocks_are_billed_while_they_are_held() {
        let mut meter = RequestMeter::new(100);
        meter.note_blocks(2, 100);
        meter.note_step(&part(0, 32), 0, 110);
        assert_eq!(meter.usage().block_ns, 20);
        // Not scheduled from 110 to 150, where it grows; another step is in flight until 155.
        meter.note_blocks(3, 150);
        meter.note_step(&part(32, 1), 0, 155);
        meter.note_step(&part(33, 1), 0, 160);
        assert_eq!(meter.usage().block_ns, 20 + 2 * 40 + 3 * 10);
        meter.note_release(170);
        assert_eq!(meter.usage().block_ns, 130 + 3 * 10);
        // Preempted until 500, ended at 530.
        meter.note_blocks(1, 500);
        meter.note_step(&part(0, 16), 0, 510);
        meter.note_release(530);
        assert_eq!(meter.usage().block_ns, 160 + 30);
    }

    #[test]
    fn parts_sum_to_the_whole_and_go_by_work() {
        let row = |len, start| {
            let input = if len == 1 { Input::LastSampled } else { Input::Tokens(0..len) };
            ScheduledSequence { input, ..part(start, 0) }
        };
        let sequences = vec![row(1, 10), row(300, 0), row(1, 5)];
        let batch = ScheduledBatch { sequences, ..ScheduledBatch::default() };
        let mut shares = Shares::default();
        let parts = shares.of_step(&StepModel::default(), &batch, 1_000_003);
        assert_eq!(parts.iter().sum::<u64>(), 1_000_003);
        assert!(parts[1] > 10 * parts[0], "{parts:?}");
        assert!(parts[0].abs_diff(parts[2]) < 1_000, "{parts:?}");
        for whole in [0, 1, 7, u64::from(u32::MAX)] {
            let parts = shares.by_weight(whole, [1.0, 1e-12, 5.0, 0.3, 1e-12].into_iter());
            assert_eq!(parts.iter().sum::<u64>(), whole);
        }
    }
}
