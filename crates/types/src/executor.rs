//! Where the serving half and the computing half meet.

use std::time::Duration;

use crate::{EnergyMeter, SampledTokens, ScheduledBatch};

/// Computes steps. One thread owns it.
///
/// `launch` starts a step and may return before it is done; `wait` finishes
/// the oldest step launched and not yet waited for. A caller may launch one
/// step more before it waits, as long as every [`crate::Input`] it schedules
/// can be known by then.
pub trait Executor {
    /// Starts computing a batch.
    ///
    /// # Errors
    /// The step did not run; see [`ExecutorError`] for what that means.
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError>;

    /// Waits for the oldest launched step and writes its result over `sampled`.
    ///
    /// # Errors
    /// The step failed; see [`ExecutorError`] for what that means.
    fn wait(&mut self, sampled: &mut SampledTokens) -> Result<(), ExecutorError>;

    /// What the step that was waited for last took on the device; `None` where the device
    /// does not measure that, and the time from launch to the end of `wait` has to do.
    fn device_time(&self) -> Option<Duration> {
        None
    }

    /// Measures the energy of the device that it computes on; `None` where that cannot be
    /// measured.
    fn energy_meter(&mut self) -> Option<Box<dyn EnergyMeter>> {
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
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        (**self).launch(batch)
    }

    fn wait(&mut self, sampled: &mut SampledTokens) -> Result<(), ExecutorError> {
        (**self).wait(sampled)
    }

    fn device_time(&self) -> Option<Duration> {
        (**self).device_time()
    }

    fn energy_meter(&mut self) -> Option<Box<dyn EnergyMeter>> {
        (**self).energy_meter()
    }
}
