//! The rows that a model's head is asked about.

use std::ops::Range;

use sconce_kernels::{Backend, KernelError};

use crate::{Buf, Pass};

impl<B: Backend> Pass<'_, B> {
    /// Copies rows of activations: a range of the step's rows that get logits
    /// ([`sconce_kernels::StepPlan::logit_rows`]), `x [_, cols]` to `[range.len(), cols]`. The
    /// pass goes on with those.
    ///
    /// # Errors
    /// A range beyond them, the backend failed.
    pub fn gather(&mut self, range: Range<usize>, x: &Buf) -> Result<Buf, KernelError> {
        let mut out = self.ws.take_like(self.ops, x)?;
        let (from, to) = self.ws.pair(x, &mut out);
        self.rows = range.len();
        self.ops.gather_rows(self.step, range, from, to)?;
        Ok(out)
    }
}
