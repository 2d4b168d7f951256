//! What each request used of the device, so that the requests' sum is what was measured.

use sconce_scheduler::{Shares, StepModel};
use sconce_types::{EnergyMeter, RequestId, ScheduledBatch};

/// Least time between two readings of the energy, unless a request ends.
const READ_EVERY_NS: u64 = 100_000_000;

/// Shares out steps' time and energy.
pub(crate) struct Meter {
    energy: Option<Box<dyn EnergyMeter>>,
    last_uj: Option<u64>,
    /// Time shared out since the energy was read.
    pending: Vec<(RequestId, u64)>,
    pending_ns: u64,
    shares: Shares,
    /// Whether the energy could not be read the last time.
    is_interrupted: bool,
    /// Energy that no request is billed: used while no step ran, or while the meter did not
    /// answer.
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
            shares: Shares::default(),
            is_interrupted: false,
            idle_uj: 0,
        }
    }

    /// Whether there is a meter of the device's energy.
    pub(crate) fn has_energy(&self) -> bool {
        self.energy.is_some()
    }

    /// Each row's part of a step's nanoseconds; see [`Shares::of_step`].
    pub(crate) fn share_time(
        &mut self,
        model: &StepModel,
        batch: &ScheduledBatch,
        step_ns: u64,
    ) -> &[u64] {
        let parts = self.shares.of_step(model, batch, step_ns);
        if self.energy.is_some() {
            let ids = batch.sequences.iter().map(|sequence| sequence.request);
            self.pending.extend(ids.zip(parts.iter().copied()));
            self.pending_ns += step_ns;
        }
        parts
    }

    /// Reads the energy if it is time to, or `now` if a request ends, and shares it out
    /// among those that had the device since, by their time.
    pub(crate) fn share_energy(&mut self, now: bool, mut give: impl FnMut(RequestId, u64)) {
        if self.pending_ns == 0 || !(now || self.pending_ns >= READ_EVERY_NS) {
            return;
        }
        let Some(used) = self.read() else {
            self.pending.clear();
            self.pending_ns = 0;
            return;
        };
        // A request takes part in many steps: its times are added up first.
        self.pending.sort_unstable_by_key(|&(id, _)| id);
        self.pending.dedup_by(|later, first| {
            let same = later.0 == first.0;
            first.1 += if same { later.1 } else { 0 };
            same
        });
        let times = self.pending.iter().map(|&(_, ns)| ns as f64);
        let parts = self.shares.by_weight(used, times);
        for (&(id, _), &part) in self.pending.iter().zip(parts) {
            give(id, part);
        }
        self.pending.clear();
        self.pending_ns = 0;
    }

    /// Energy that was used until now, while nothing ran, is billed to no request.
    pub(crate) fn begin_work(&mut self) {
        if self.pending_ns == 0
            && let Some(used) = self.read()
        {
            self.idle_uj += used;
        }
    }

    fn read(&mut self) -> Option<u64> {
        let Some(total) = self.energy.as_mut()?.total_uj() else {
            self.is_interrupted = true;
            return None;
        };
        let before = self.last_uj.replace(total).unwrap_or(total);
        let used = total.saturating_sub(before);
        // Steps and pauses since the last reading are not told apart any more.
        if std::mem::take(&mut self.is_interrupted) {
            self.idle_uj += used;
            return Some(0);
        }
        Some(used)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use sconce_types::{Input, Sample, ScheduledSequence, Slot};

    use super::*;

    /// Counts more at each reading, and does not answer every seventh.
    struct FakeMeter {
        uj: u64,
        readings: u32,
    }

    impl EnergyMeter for FakeMeter {
        fn total_uj(&mut self) -> Option<u64> {
            self.uj = self.uj * 3 / 2 + 101;
            self.readings += 1;
            (!self.readings.is_multiple_of(7)).then_some(self.uj)
        }
    }

    fn batch(rows: &[(u64, usize, usize)]) -> ScheduledBatch {
        let sequences = rows.iter().map(|&(id, len, num_computed_tokens)| ScheduledSequence {
            request: RequestId(id),
            slot: Slot(id as u32),
            input: if len == 1 { Input::LastSampled } else { Input::Tokens(0..len) },
            num_computed_tokens,
            num_blocks: 0,
            table_edits: 0..0,
            sample: Sample::Nothing,
        });
        ScheduledBatch { sequences: sequences.collect(), ..ScheduledBatch::default() }
    }

    #[test]
    fn joules_sum_to_what_was_measured() {
        let mut meter = Meter::new(Some(Box::new(FakeMeter { uj: 7, readings: 0 })));
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
