//! From logits to tokens.

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
