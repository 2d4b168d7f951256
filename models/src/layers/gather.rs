//! The rows that a model's head is asked about.

use sconce_kernels::{Backend, KernelError};

use crate::{Buf, Pass};

impl<B: Backend> Pass<'_, B> {
    /// Copies rows of activations, in the order of `rows`: `x [_, cols]` to
    /// `[rows.len(), cols]`. The pass goes on with those.
    ///
    /// # Errors
    /// A row out of range, the backend failed.
    pub fn gather(&mut self, rows: &[u32], x: &Buf) -> Result<Buf, KernelError> {
        let mut out = self.ws.take_like(self.ops, x)?;
        let (from, to) = self.ws.pair(x, &mut out);
        self.ops.gather_rows(rows, from, to)?;
        self.rows = rows.len();
        Ok(out)
    }
}
