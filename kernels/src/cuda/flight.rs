//! Steps in flight: their events, and where what they give comes to lie.
#![expect(unsafe_code, reason = "pinned memory is not set when it is allocated")]

use std::{sync::Arc, time::Duration};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, DriverError, PinnedHostSlice, sys,
};

/// The step that is asked for, and up to two that have ended and were not waited for.
pub(super) struct Steps {
    steps: [Step; 2],
    /// Which of these the step has that is asked for now, or next.
    newest: usize,
    /// Whether that step has begun.
    has_begun: bool,
    /// Steps before it that have ended and were not waited for.
    num_ended: usize,
}

/// A step's events, and the pinned memory that the device writes what it gives to. There are
/// two, so that one step's results are read while the other's are under way.
struct Step {
    begun: CudaEvent,
    /// Recorded after the copy to `results` too.
    ended: CudaEvent,
    results: Option<PinnedHostSlice<u8>>,
}

impl Drop for Step {
    fn drop(&mut self) {
        // Whether or not the device still works, nothing writes to the memory after this.
        let _ = self.ended.synchronize();
    }
}

impl Step {
    fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        // One that takes times.
        let event = || context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Self { begun: event()?, ended: event()?, results: None })
    }

    /// What the device took for it.
    fn time(&self) -> Result<Duration, DriverError> {
        // Waits for both.
        let ms = self.begun.elapsed_ms(&self.ended)?;
        Ok(Duration::from_nanos((f64::from(ms) * 1e6).round() as u64))
    }
}

impl Steps {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let steps = [Step::new(context)?, Step::new(context)?];
        Ok(Self { steps, newest: 0, has_begun: false, num_ended: 0 })
    }

    /// Makes room for so many bytes of each step's results.
    pub(super) fn make_room(
        &mut self,
        context: &Arc<CudaContext>,
        bytes: usize,
    ) -> Result<(), DriverError> {
        for step in &mut self.steps {
            // The host reads it: it is not write-combined, as what only the device reads.
            // SAFETY: what a step had copied there is all that is read of it.
            step.results = Some(unsafe { context.alloc_pinned_with_flags(bytes, 0) }?);
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, stream: &CudaStream) -> Result<(), DriverError> {
        debug_assert!(self.num_ended < self.steps.len(), "steps are waited for in between");
        self.steps[self.newest].begun.record(stream)?;
        self.has_begun = true;
        Ok(())
    }

    /// Ends the newest step and has the memory's first bytes copied to the host.
    pub(super) fn end(
        &mut self,
        stream: &Arc<CudaStream>,
        memory: &CudaSlice<u8>,
        bytes: usize,
    ) -> Result<(), DriverError> {
        let step = &mut self.steps[self.newest];
        if let Some(results) = step.results.as_mut().filter(|_| bytes > 0) {
            stream.memcpy_dtoh(&memory.slice(..bytes), results)?;
        }
        step.ended.record(stream)?;
        self.newest = (self.newest + 1) % self.steps.len();
        self.num_ended += 1;
        self.has_begun = false;
        Ok(())
    }

    /// Waits for the oldest step that has ended, and reads its results.
    pub(super) fn wait(&mut self, bytes: &mut [u8]) -> Result<Duration, DriverError> {
        assert!(self.num_ended > 0, "a step is waited for once it has ended");
        let oldest = (self.newest + self.steps.len() - self.num_ended) % self.steps.len();
        let step = &self.steps[oldest];
        let time = step.time()?;
        if let Some(results) = step.results.as_ref().filter(|_| !bytes.is_empty()) {
            bytes.copy_from_slice(&results.as_slice()?[..bytes.len()]);
        }
        self.num_ended -= 1;
        Ok(time)
    }

    /// Waits for all that was asked for. What the newest step took, if it has begun and not
    /// ended: one that failed before it began has done nothing.
    pub(super) fn finish(&mut self, stream: &CudaStream) -> Result<Duration, DriverError> {
        if !std::mem::take(&mut self.has_begun) {
            stream.synchronize()?;
            return Ok(Duration::ZERO);
        }
        let step = &self.steps[self.newest];
        step.ended.record(stream)?;
        step.time()
    }
}
