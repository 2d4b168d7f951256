//! How long a step takes, learnt from those that were measured.

use sconce_types::{Input, ScheduledBatch, ScheduledSequence};

use crate::TokenCosts;

/// The features of a step that its time depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepWork {
    /// Prompt tokens.
    pub prefill: f64,
    /// Sequences that compute the token they sampled last.
    pub decode: f64,
    /// Pairs of a token and one that it attends to.
    pub attended: f64,
}

impl StepWork {
    /// The work of a batch.
    #[must_use]
    pub fn of(batch: &ScheduledBatch) -> Self {
        batch.sequences.iter().map(Self::of_sequence).fold(Self::default(), |sum, work| Self {
            prefill: sum.prefill + work.prefill,
            decode: sum.decode + work.decode,
            attended: sum.attended + work.attended,
        })
    }

    /// The work of one sequence's part of a batch.
    #[must_use]
    pub fn of_sequence(sequence: &ScheduledSequence) -> Self {
        let (len, context) = (sequence.input.len() as f64, sequence.num_computed_tokens as f64);
        let (prefill, decode) = match sequence.input {
            Input::LastSampled => (0.0, 1.0),
            Input::Tokens(_) => (len, 0.0),
        };
        Self { prefill, decode, attended: len * (context + (len + 1.0) / 2.0) }
    }

    fn features(self) -> [f64; N] {
        // Of one order of magnitude, for the equations' sake.
        [1.0, self.prefill / 100.0, self.decode / 10.0, self.attended / 1e5]
    }
}

const N: usize = 4;
/// A step counts half after so many others.
const HALF_LIFE: f64 = 500.0;
/// The weight of what a model was made with, beside that of a step.
const PRIOR: f64 = 1e-4;
/// Steps between solutions of the equations.
const SOLVE_EVERY: u32 = 16;
/// What is mixed with decodes counts half after so many steps that had any.
const MIX_HALF_LIFE: f64 = 200.0;

/// The time of a step as a sum: so much for any step (reading the weights), and so much
/// for each prompt token, each decode and each attended pair.
///
/// Least squares over the steps seen, recent ones counting more; each weighs by its own
/// time, so that short steps are met as well as long ones. No part is negative. Before
/// anything is measured it believes what it was made with.
#[derive(Clone, Debug)]
pub struct StepModel {
    /// Sums of products of features, and of features and times.
    products: [[f64; N]; N],
    sums: [f64; N],
    seconds: [f64; N],
    steps: u32,
    /// Decodes in a step that has any, lately.
    decodes: f64,
    /// Prompt tokens and decodes of steps that had decodes, lately.
    mixed: (f64, f64),
}

impl StepModel {
    /// Steps between two settings of what tokens cost.
    pub const COSTS_EVERY: u64 = 64;
    /// Steps that are measured before predictions refuse anything.
    pub const KNOWN_AFTER: u32 = 4;

    /// A model that has seen nothing and believes this.
    #[must_use]
    pub fn new(step: f64, prefill: f64, decode: f64, attended: f64) -> Self {
        let prior = [step, prefill * 100.0, decode * 10.0, attended * 1e5];
        let mut model = Self {
            products: [[0.0; N]; N],
            sums: [0.0; N],
            seconds: prior,
            steps: 0,
            decodes: 1.0,
            mixed: (0.0, 1.0),
        };
        // What it was made with weighs little beside a single step, and is all there is
        // for what no step had.
        for (i, prior) in prior.into_iter().enumerate() {
            let weight = 1.0 / prior.max(1e-6).powi(2);
            model.products[i][i] = PRIOR * weight;
            model.sums[i] = PRIOR * weight * prior;
        }
        model
    }

    /// Learns from a step.
    pub fn observe(&mut self, work: StepWork, seconds: f64) {
        if !(seconds.is_finite() && seconds > 0.0) {
            return;
        }
        let features = work.features();
        let keep = 0.5_f64.powf(1.0 / HALF_LIFE);
        let weight = 1.0 / (seconds * seconds);
        for i in 0..N {
            for j in 0..N {
                self.products[i][j] =
                    keep * self.products[i][j] + weight * features[i] * features[j];
            }
            self.sums[i] = keep * self.sums[i] + weight * features[i] * seconds;
        }
        if work.decode > 0.0 {
            self.decodes += (work.decode - self.decodes) / 50.0;
            let keep = 0.5_f64.powf(1.0 / MIX_HALF_LIFE);
            let (prefill, decode) = self.mixed;
            self.mixed = (keep * prefill + work.prefill, keep * decode + work.decode);
        }
        self.steps += 1;
        if self.steps.is_multiple_of(SOLVE_EVERY) || self.steps < SOLVE_EVERY {
            self.solve();
        }
    }

    /// Coordinate descent: exact for this convex problem, and never below 0.
    fn solve(&mut self) {
        for _ in 0..50 {
            for i in 0..N {
                if self.products[i][i] <= 0.0 {
                    continue;
                }
                let others = (0..N).filter(|&j| j != i);
                let rest: f64 = others.map(|j| self.products[i][j] * self.seconds[j]).sum();
                self.seconds[i] = ((self.sums[i] - rest) / self.products[i][i]).max(0.0);
            }
        }
    }

    /// Seconds that a step of this work should take.
    #[must_use]
    pub fn predict(&self, work: StepWork) -> f64 {
        let parts = work.features().into_iter().zip(self.seconds);
        parts.map(|(feature, seconds)| feature * seconds).sum()
    }

    /// Steps learnt from.
    #[must_use]
    pub fn num_steps(&self) -> u32 {
        self.steps
    }

    /// Whether enough was measured to refuse anything by it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.steps >= Self::KNOWN_AFTER
    }

    /// Prompt tokens that were computed beside each decode, lately: what a decode's step
    /// takes beyond its decodes while requests come and go.
    #[must_use]
    pub fn prefill_per_decode(&self) -> f64 {
        self.mixed.0 / self.mixed.1
    }

    /// Seconds of any step, of a prompt token, of a decode, of an attended pair.
    #[must_use]
    pub fn parts(&self) -> [f64; N] {
        let [step, prefill, decode, attended] = self.seconds;
        [step, prefill / 100.0, decode / 10.0, attended / 1e5]
    }

    /// What tokens cost by this model: a generated one its part of a step that decodes
    /// only, with as many others as lately; one from the prefix cache nothing.
    #[must_use]
    pub fn costs(&self) -> TokenCosts {
        let prefill = self.seconds[1] / 100.0;
        let step = self.predict(StepWork { decode: self.decodes, ..StepWork::default() });
        let decode = step / self.decodes.max(1.0);
        let decode = if prefill > 0.0 { (decode / prefill).clamp(1.0, 100.0) } else { 2.0 };
        TokenCosts { cached: 0.0, decode }
    }
}

impl Default for StepModel {
    /// A small model on a CPU.
    fn default() -> Self {
        Self::new(5e-3, 3e-4, 5e-4, 1e-8)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn it_learns_what_a_device_takes_and_follows_it() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut model = StepModel::default();
        for (step, prefill, decode) in [(8e-3, 2e-5, 1e-4), (20e-3, 5e-5, 3e-4)] {
            let mut errors = Vec::new();
            for index in 0..8_000 {
                let decode_rows = f64::from(rng.random_range(0..64_u32));
                let tokens = f64::from(rng.random_range(0..512_u32));
                let attended = decode_rows * 500.0 + tokens * 300.0;
                let work = StepWork { prefill: tokens, decode: decode_rows, attended };
                let seconds = step + prefill * tokens + decode * decode_rows + 2e-9 * attended;
                let noisy = seconds * rng.random_range(0.9..1.1);
                if index > 6_000 {
                    errors.push((model.predict(work) / seconds - 1.0).abs());
                }
                model.observe(work, noisy);
            }
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            assert!(mean < 0.02, "off by {mean}");
        }
        let costs = model.costs();
        assert!(costs.decode > 5.0 && costs.decode < 60.0, "{costs:?}");
    }

    #[test]
    fn one_kind_of_step_makes_it_no_worse_on_that_kind() {
        let mut model = StepModel::default();
        let work = StepWork { prefill: 0.0, decode: 8.0, attended: 8_000.0 };
        for _ in 0..1_000 {
            model.observe(work, 0.01);
        }
        assert!((model.predict(work) / 0.01 - 1.0).abs() < 0.01);
        model.observe(work, f64::NAN);
        assert!(model.predict(work).is_finite());
    }
}
