//! A model's way from a batch to logits, and what is made of them.

use std::ops::Range;

use sconce_kernels::{
    AttentionKind, Backend, KernelError, StepLimits, StepPlan,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
};
use sconce_models::{Buf, Model, Pass, Workspace};

/// A model on its backend, with a step and its buffers.
pub(crate) struct Forward<B: Backend> {
    pub(crate) backend: B,
    model: Box<dyn Model<B>>,
    step: B::Step,
    workspace: Workspace<B>,
    /// Rows of the step that is staged.
    rows: usize,
}

impl<B: Backend> Forward<B> {
    /// Steps of these limits, for a model whose layers attend in these ways; as many logits at
    /// a time as sequences.
    ///
    /// # Errors
    /// A way to attend that the device has not, no memory.
    pub(crate) fn new(
        mut backend: B,
        model: Box<dyn Model<B>>,
        limits: &StepLimits,
        attention: &[AttentionKind],
    ) -> Result<Self, KernelError> {
        let step = backend.step(limits, attention)?;
        let workspace = Workspace::new(limits.max_num_batched_tokens, limits.max_num_seqs);
        Ok(Self { backend, model, step, workspace, rows: 0 })
    }

    /// Ends the allocation of buffers: later steps use those of the steps so far.
    pub(crate) fn freeze(&mut self) {
        self.workspace.freeze();
    }

    /// Stages a step, computes it and writes its keys and values into the cache; the hidden
    /// states of its rows, good until the next step.
    ///
    /// # Errors
    /// The backend failed, or the plan does not fit the limits or the cache.
    pub(crate) fn hidden(
        &mut self,
        plan: &StepPlan,
        cache: &mut B::KvCache,
    ) -> Result<Buf, KernelError> {
        let Self { backend, model, step, workspace, rows } = self;
        *rows = plan.num_tokens();
        backend.stage(plan, step, cache)?;
        model.forward(&mut Pass::begin(backend, step, *rows, cache, workspace))
    }

    /// Logits `[range.len(), vocab_size]` of a range of the step's rows that get logits.
    ///
    /// # Errors
    /// The backend failed.
    pub(crate) fn logits(
        &mut self,
        cache: &mut B::KvCache,
        hidden: &Buf,
        range: Range<usize>,
    ) -> Result<Buf, KernelError> {
        let Self { backend, model, step, workspace, rows } = self;
        let mut pass = Pass { ops: backend, step, cache, ws: workspace, rows: *rows };
        let chosen = pass.gather(range, hidden)?;
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
