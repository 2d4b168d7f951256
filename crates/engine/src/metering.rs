//! What each request used of the device, so that the requests' sum is what was measured.

use sconce_scheduler::{StepModel, StepWork};
use sconce_types::{EnergyMeter, Metering, RequestId, ScheduledBatch};

/// Least time between two readings of the energy, unless a request ends.
const READ_EVERY_NS: u64 = 100_000_000;

/// Shares out steps' time and energy.
pub(crate) struct Meter {
    energy: Option<Box<dyn EnergyMeter>>,
    last_uj: Option<u64>,
    /// Time shared out since the energy was read.
    pending: Vec<(RequestId, u64)>,
    pending_ns: u64,
    weights: Vec<f64>,
    parts: Vec<u64>,
    /// Energy that was used while no step ran.
    pub(crate) idle_uj: u64,
}

impl Meter {
    pub(crate) fn new(mut energy: Option<Box<dyn EnergyMeter>>) -> Self {
        let last_uj = energy.as_mut().and_then(|meter| meter.total_uj());
        Self {
            // A meter that does not answer at the start is none.
            energy: energy.filter(|_| last_uj.is_some()),
            last_uj,
            pending: Vec::new(),
            pending_ns: 0,
            weights: Vec::new(),
            parts: Vec::new(),
            idle_uj: 0,
        }
    }

    /// Each row's part of a step's nanoseconds, by what the row alone would take: the work
    /// of its own and as much of what any step takes as the others.
    pub(crate) fn share_time(
        &mut self,
        model: &StepModel,
        batch: &ScheduledBatch,
        step_ns: u64,
    ) -> &[u64] {
        let rows = batch.sequences.len().max(1) as f64;
        let any = model.predict(StepWork::default());
        self.weights.clear();
        self.weights.extend(batch.sequences.iter().map(|sequence| {
            (model.predict(StepWork::of_sequence(sequence)) - any + any / rows).max(1e-12)
        }));
        share(step_ns, &self.weights, &mut self.parts);
        for (sequence, &part) in batch.sequences.iter().zip(&self.parts) {
            if self.energy.is_some() {
                self.pending.push((sequence.request, part));
                self.pending_ns += part;
            }
        }
        &self.parts
    }

    /// Reads the energy if it is time to, or `now` if a request ends, and shares it out
    /// among those that had the device since, by their time.
    pub(crate) fn share_energy(&mut self, now: bool, mut give: impl FnMut(RequestId, u64)) {
        if self.pending_ns == 0 || !(now || self.pending_ns >= READ_EVERY_NS) {
            return;
        }
        let Some(used) = self.read() else {
            // The meter has stopped; if it comes back, what it counted meanwhile is nobody's.
            self.pending.clear();
            self.pending_ns = 0;
            return;
        };
        // A request has a part of many steps: they are added up first.
        self.pending.sort_unstable_by_key(|&(id, _)| id);
        self.pending.dedup_by(|later, first| {
            let same = later.0 == first.0;
            first.1 += if same { later.1 } else { 0 };
            same
        });
        self.weights.clear();
        self.weights.extend(self.pending.iter().map(|&(_, ns)| ns as f64));
        share(used, &self.weights, &mut self.parts);
        for (&(id, _), &part) in self.pending.iter().zip(&self.parts) {
            give(id, part);
        }
        self.pending.clear();
        self.pending_ns = 0;
    }

    /// What was used until now, while nothing ran, is nobody's.
    pub(crate) fn begin_work(&mut self) {
        if self.pending_ns == 0
            && let Some(used) = self.read()
        {
            self.idle_uj += used;
        }
    }

    fn read(&mut self) -> Option<u64> {
        let total = self.energy.as_mut()?.total_uj()?;
        let before = self.last_uj.replace(total).unwrap_or(total);
        Some(total.saturating_sub(before))
    }
}

/// A request's usage with a share of energy added.
pub(crate) fn add_energy(usage: &mut Metering, uj: u64) {
    usage.energy_uj = Some(usage.energy_uj.unwrap_or(0) + uj);
}

/// Shares `whole` out by weights, in whole numbers that sum to it.
fn share(whole: u64, weights: &[f64], parts: &mut Vec<u64>) {
    let all: f64 = weights.iter().sum();
    parts.clear();
    let (mut weight, mut given) = (0.0, 0);
    for (index, part) in weights.iter().enumerate() {
        weight += part;
        // Rounding the running sum keeps every part within one of its due.
        let due = if index + 1 == weights.len() {
            whole
        } else {
            ((whole as f64 * (weight / all)) as u64).clamp(given, whole)
        };
        parts.push(due - given);
        given = due;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use sconce_types::{Input, Sample, ScheduledSequence, Slot};

    use super::*;

    /// Counts a hundred microjoules a reading, and a few.
    struct FakeMeter(u64);

    impl EnergyMeter for FakeMeter {
        fn total_uj(&mut self) -> Option<u64> {
            self.0 = self.0 * 3 / 2 + 101;
            Some(self.0)
        }
    }

    fn batch(rows: &[(u64, usize, usize)]) -> ScheduledBatch {
        let sequences = rows.iter().map(|&(id, len, num_computed_tokens)| ScheduledSequence {
            request: RequestId(id),
            slot: Slot(id as u32),
            input: if len == 1 { Input::LastSampled } else { Input::Tokens(0..len) },
            num_computed_tokens,
            block_table: 0..0,
            sample: Sample::Nothing,
        });
        ScheduledBatch { sequences: sequences.collect(), ..ScheduledBatch::default() }
    }

    #[test]
    fn parts_sum_to_the_whole_and_go_by_work() {
        let mut meter = Meter::new(None);
        let model = StepModel::default();
        let parts =
            meter.share_time(&model, &batch(&[(1, 1, 10), (2, 300, 0), (3, 1, 5)]), 1_000_003);
        assert_eq!(parts.iter().sum::<u64>(), 1_000_003);
        assert!(parts[1] > 10 * parts[0], "{parts:?}");
        assert!(parts[0].abs_diff(parts[2]) < 1_000, "{parts:?}");
        for whole in [0, 1, 7, u64::from(u32::MAX)] {
            let mut parts = Vec::new();
            share(whole, &[1.0, 1e-12, 5.0, 0.3, 1e-12], &mut parts);
            assert_eq!(parts.iter().sum::<u64>(), whole);
        }
    }

    #[test]
    fn joules_sum_to_what_was_measured() {
        let mut meter = Meter::new(Some(Box::new(FakeMeter(7))));
        let start = meter.last_uj.expect("it answers");
        let model = StepModel::default();
        let mut used: HashMap<RequestId, u64> = HashMap::new();
        for step in 0..500 {
            if step % 50 == 0 {
                meter.begin_work();
            }
            meter.share_time(
                &model,
                &batch(&[(step / 9, 1, 10), (step / 7 + 1_000, 40, 0)]),
                9_000_000,
            );
            meter.share_energy(step % 17 == 0, |id, uj| *used.entry(id).or_default() += uj);
            if meter.last_uj > Some(1 << 50) {
                break;
            }
        }
        meter.share_energy(true, |id, uj| *used.entry(id).or_default() += uj);
        let measured = meter.last_uj.expect("it answers") - start;
        assert_eq!(used.values().sum::<u64>() + meter.idle_uj, measured);
        assert!(meter.idle_uj > 0 && used.len() > 10);
    }
}
