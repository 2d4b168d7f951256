//! From logits to tokens.

use std::time::Duration;

use crate::{
    Device, KernelError,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
};

/// A device that samples.
pub trait Sampler: Device {
    /// Samples one token from each row of `logits [requests.len(), vocab_size]`;
    /// see [`crate::ops::sampling`] for what a request may ask. Results are
    /// appended to `out` in order. The logits are scratch afterwards.
    ///
    /// # Errors
    /// Shapes that do not fit. Logits that are not finite are no error of the
    /// step: they are that row's result.
    fn sample(
        &mut self,
        logits: &mut Self::Buffer,
        requests: &[SampleRequest<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), KernelError>;

    /// Whether there are [`Self::end_step`] and [`Self::wait_step`]: then a step may be asked
    /// for while the one before it is under way.
    fn overlaps(&self) -> bool {
        false
    }

    /// Ends the step that is staged without waiting for it: samples as [`Self::sample`] does,
    /// where there are logits. A request's token is kept for its slot, if it has one, and is
    /// from then on what the slot sampled last; where no token can be drawn that stays as it is.
    /// One more step may be staged and ended before this one is waited for.
    ///
    /// # Errors
    /// As of [`Self::sample`]. The step is over then.
    fn end_step(
        &mut self,
        sampled: Option<(&mut Self::Buffer, &[SampleRequest<'_>])>,
    ) -> Result<(), KernelError> {
        let _ = sampled;
        Err(KernelError::Unsupported {
            what: "a step that is not waited for".to_owned(),
            device: "this device",
            accepted: "steps are computed one at a time",
        })
    }

    /// Waits for the oldest step that was ended: appends what it sampled to `out`, and says what
    /// the device took for it, if it measures that.
    ///
    /// # Errors
    /// The device failed, perhaps at something that it was asked for later.
    fn wait_step(&mut self, out: &mut Vec<Sampled>) -> Result<Option<Duration>, KernelError> {
        let _ = out;
        self.finish()
    }

    /// The log-probability of `tokens[i]` at row `i` of `logits`, with the
    /// `num_top[i]` likeliest tokens, appended to `out`; for prompts and scoring.
    ///
    /// # Errors
    /// Shapes that do not fit, a token outside the vocabulary.
    fn logprobs(
        &mut self,
        logits: &Self::Buffer,
        tokens: &[u32],
        num_top: &[u32],
        out: &mut Vec<Logprobs>,
    ) -> Result<(), KernelError>;
}
