//! What every model is to its runner.

use sconce_kernels::{Backend, KernelError};

use crate::{Buf, Workspace};

/// A model on a backend. It takes `&self`: all that changes is in the [`Pass`].
pub trait Model<B: Backend>: Send {
    /// Computes a batch: writes its keys and values into the cache, and returns the hidden
    /// state of every row, `[rows, hidden_size]`, before the final norm.
    ///
    /// # Errors
    /// The backend failed, or the batch exceeds the workspace.
    fn forward(&self, pass: &mut Pass<'_, B>) -> Result<Buf, KernelError>;

    /// What the model says of hidden states that [`Pass::gather`] chose:
    /// logits `[rows, vocab_size]`, f32.
    ///
    /// # Errors
    /// The backend failed, or there are more rows than the workspace has logits for.
    fn head(&self, pass: &mut Pass<'_, B>, hidden: Buf) -> Result<Buf, KernelError>;
}

/// One step on its way through a model.
pub struct Pass<'a, B: Backend> {
    /// What computes.
    pub ops: &'a mut B,
    /// What varies from step to step: tokens, positions, block tables.
    pub step: &'a B::Step,
    /// Keys and values of all layers.
    pub cache: &'a mut B::KvCache,
    /// Where activations are.
    pub ws: &'a mut Workspace<B>,
    /// Rows of the activations that are computed.
    pub rows: usize,
}

impl<'a, B: Backend> Pass<'a, B> {
    /// Starts the forward pass of a staged step of so many rows: every buffer is free.
    pub fn begin(
        ops: &'a mut B,
        step: &'a B::Step,
        rows: usize,
        cache: &'a mut B::KvCache,
        ws: &'a mut Workspace<B>,
    ) -> Self {
        ws.begin();
        Self { ops, step, cache, ws, rows }
    }

    /// A buffer of so many columns, of what values it happens to hold.
    pub(crate) fn take(&mut self, cols: usize) -> Result<Buf, KernelError> {
        self.ws.take(self.ops, cols)
    }
}
