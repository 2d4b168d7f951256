//! Where the serving half and the computing half meet.

use std::time::Duration;

use crate::{ScheduledBatch, StepResult, TokenMasks};

/// Computes steps. One thread owns it.
///
/// A step is launched, sampled and waited for: `launch` starts its forward pass, `sample`
/// chooses its tokens, `wait` reads them back. Calls may return before the device is done.
/// Each launched step is sampled before another is launched, and steps are waited for in
/// the order of their launch. Up to [`Executor::depth`] steps may be launched and not yet
/// waited for; then step N + 1 takes its [`crate::Input::LastSampled`] from what step N
/// sampled, wherever that is.
pub trait Executor {
    /// Steps that may be in flight: 1 or 2.
    fn depth(&self) -> usize {
        1
    }

    /// Starts computing a batch: table edits, forward pass, logits.
    ///
    /// # Errors
    /// The step did not run, and is over: it is neither sampled nor waited for; see
    /// [`ExecutorError`] for what that means.
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError>;

    /// Samples the step that was launched last. Every row of
    /// [`crate::Sample::Token`] that is constrained has a mask.
    ///
    /// # Errors
    /// The step failed, and is over: it is not waited for.
    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError>;

    /// Waits for the oldest step in flight and writes its result over `result`.
    ///
    /// # Errors
    /// The step failed, and is over; see [`ExecutorError`] for what that means.
    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError>;

    /// What the device did for the step that has just failed, where it measures that and
    /// still answers. Asked once after every error.
    fn failed_step_time(&mut self) -> Option<Duration> {
        None
    }
}

/// Why a step failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The sequences of this step are lost; later steps may succeed.
    #[error("the step failed: {0}")]
    Step(String),
    /// The executor cannot go on; another may be built in its place.
    #[error("the executor is lost: {0}")]
    Fatal(String),
    /// Nor can any other in this process: its device answers no more.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
}

impl<E: Executor + ?Sized> Executor for Box<E> {
    fn depth(&self) -> usize {
        (**self).depth()
    }

    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        (**self).launch(batch)
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        (**self).sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        (**self).wait(result)
    }

    fn failed_step_time(&mut self) -> Option<Duration> {
        (**self).failed_step_time()
    }
}
