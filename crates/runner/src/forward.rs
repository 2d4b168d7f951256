//! A model's way from a batch to logits, and what is made of them.

use sconce_kernels::{
    Backend, ForwardBatch, KernelError,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
};
use sconce_models::{Buf, Model, Pass, Workspace};

/// A model on its backend, with the buffers of a step.
pub(crate) struct Forward<B: Backend> {
    pub(crate) backend: B,
    model: Box<dyn Model<B>>,
    workspace: Workspace<B>,
}

impl<B: Backend> Forward<B> {
    /// Steps of at most `max_num_tokens` rows, logits of at most `max_logit_rows` at a time.
    pub(crate) fn new(
        backend: B,
        model: Box<dyn Model<B>>,
        max_num_tokens: usize,
        max_logit_rows: usize,
    ) -> Self {
        Self { backend, model, workspace: Workspace::new(max_num_tokens, max_logit_rows) }
    }

    /// Ends the allocation of buffers: later steps use those of the steps so far.
    pub(crate) fn freeze(&mut self) {
        self.workspace.freeze();
    }

    /// Computes a batch and writes its keys and values into the cache; the hidden states
    /// of its rows, good until the next batch.
    ///
    /// # Errors
    /// The backend failed.
    pub(crate) fn hidden(
        &mut self,
        batch: &ForwardBatch,
        cache: &mut B::KvCache,
    ) -> Result<Buf, KernelError> {
        let Self { backend, model, workspace } = self;
        model.forward(&mut Pass::begin(backend, batch, cache, workspace)?)
    }

    /// Logits `[rows.len(), vocab_size]` of some rows of the batch that `hidden` is of.
    ///
    /// # Errors
    /// The backend failed.
    pub(crate) fn logits(
        &mut self,
        batch: &ForwardBatch,
        cache: &mut B::KvCache,
        hidden: &Buf,
        rows: &[u32],
    ) -> Result<Buf, KernelError> {
        let Self { backend, model, workspace } = self;
        let num_tokens = batch.num_tokens();
        let mut pass = Pass { ops: backend, step: batch, cache, ws: workspace, rows: num_tokens };
        let chosen = pass.gather(rows, hidden)?;
        model.head(&mut pass, chosen)
    }

    /// Samples a token from each row of logits, appended to `out`.
    ///
    /// # Errors
    /// The backend failed.
    pub(crate) fn sample(
        &mut self,
        mut logits: Buf,
        requests: &[SampleRequest<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), KernelError> {
        self.backend.sample(self.workspace.get_mut(&mut logits), requests, out)?;
        self.workspace.free(logits);
        Ok(())
    }

    /// The log-probability of a token at each row of logits, with the `num_top` likeliest,
    /// appended to `out`.
    ///
    /// # Errors
    /// The backend failed.
    pub(crate) fn logprobs(
        &mut self,
        logits: Buf,
        tokens: &[u32],
        num_top: &[u32],
        out: &mut Vec<Logprobs>,
    ) -> Result<(), KernelError> {
        self.backend.logprobs(self.workspace.get(&logits), tokens, num_top, out)?;
        self.workspace.free(logits);
        Ok(())
    }

    /// The first `rows` rows of logits.
    ///
    /// # Errors
    /// The backend failed.
    pub(crate) fn read(&mut self, logits: Buf, rows: usize) -> Result<Vec<f32>, KernelError> {
        let numbers = self.backend.read(self.workspace.get(&logits), rows)?;
        self.workspace.free(logits);
        Ok(numbers)
    }
}
