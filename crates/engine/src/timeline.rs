//! When the phases of the last steps began and ended, for pictures of them.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Steps that are kept.
const KEPT: usize = 1024;

/// When the phases of a step began and ended, as times since the engine's start. Where several
/// steps are in flight, the phases of one lie beside those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTimes {
    /// Counted from 0.
    pub step: u64,
    /// Sequences in it.
    pub num_sequences: usize,
    /// Tokens that it computed.
    pub num_tokens: usize,
    /// The scheduler began to choose.
    pub scheduled: Duration,
    /// The executor began to plan it, and to send its inputs to the device.
    pub launched: Duration,
    /// They were sent, and it began to launch; the end of `launched` where the executor does not
    /// say.
    pub staged: Duration,
    /// All was launched, with what samples. An executor that does not overlap has waited for
    /// results by then.
    pub sampled: Duration,
    /// The engine began to wait for its results.
    pub awaited: Duration,
    /// They were there.
    pub returned: Duration,
    /// They were handed out.
    pub delivered: Duration,
    /// What the device took, where it measures that.
    pub device: Option<Duration>,
}

/// The last steps.
#[derive(Debug, Default)]
pub(crate) struct Timeline(Mutex<VecDeque<StepTimes>>);

impl Timeline {
    pub(crate) fn push(&self, times: StepTimes) {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.len() == KEPT {
            steps.pop_front();
        }
        steps.push_back(times);
    }

    /// The oldest first.
    pub(crate) fn steps(&self) -> Vec<StepTimes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
