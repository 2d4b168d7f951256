//! A model's way from a batch to logits, and what is made of them.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use sconce_kernels::{
    AttentionKind, Backend, KernelError, StepLimits, StepPlan,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
    range,
};
use sconce_models::{Buf, BufPlace, Model, Pass, Workspace};

use crate::graphs::{self, Graphs};

/// A model on its backend, with a step and its buffers.
pub(crate) struct Forward<B: Backend> {
    /// Decode steps that are recorded; before what they were recorded on.
    graphs: Graphs<B>,
    num_groups: usize,
    pub(crate) backend: B,
    model: Box<dyn Model<B>>,
    step: B::Step,
    workspace: Workspace<B>,
    /// Rows of the step that is staged.
    rows: usize,
    /// Logits of the step's rows, where it was replayed: they are computed with it.
    replayed: Option<BufPlace>,
    /// Whether recorded steps are replayed.
    pub(crate) replays: bool,
    /// When the step was staged.
    pub(crate) staged: Option<Instant>,
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
        let graphs = Graphs::new();
        let num_groups = attention.iter().map(|kind| kind.group + 1).max().unwrap_or(1);
        Ok(Self {
            graphs,
            num_groups,
            backend,
            model,
            step,
            workspace,
            rows: 0,
            replayed: None,
            replays: true,
            staged: None,
        })
    }

    /// Ends the allocation of buffers: later steps use those of the steps so far.
    pub(crate) fn freeze(&mut self) {
        self.workspace.freeze();
    }

    /// Records decode steps of these rows, the largest first, if the device records steps at
    /// all; `progress` is told how many of how many. The cache holds nothing yet: its first
    /// block is written to. Gives the number of recorded steps.
    ///
    /// # Errors
    /// The device failed, or refused something that it should have recorded.
    pub(crate) fn record(
        &mut self,
        buckets: &[usize],
        cache: &mut B::KvCache,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<usize, KernelError> {
        let Self { graphs, backend, model, step, workspace, .. } = self;
        let num_groups = self.num_groups;
        if !backend.records(step) {
            return Ok(0);
        }
        for &rows in buckets.iter().rev() {
            progress(graphs.len(), buckets.len());
            let mut plan = StepPlan::new(num_groups);
            for (row, slot) in (0..).zip(0..).take(rows) {
                plan.push(slot, &[0], 0, &vec![[0]; num_groups]);
                plan.logit_rows.push(row);
            }
            plan.bucket = Some(rows);
            backend.stage(&plan, step, cache)?;
            let recorded = graphs::record(backend, step, workspace, rows, |backend, workspace| {
                let mut pass = Pass::begin(backend, step, rows, cache, workspace);
                let hidden = model.forward(&mut pass)?;
                let chosen = pass.gather(0..rows, &hidden)?;
                let logits = model.head(&mut pass, chosen)?;
                Ok((hidden, logits))
            });
            graphs.push_smaller(recorded?);
        }
        progress(graphs.len(), buckets.len());
        Ok(graphs.len())
    }

    /// Stages a step, computes it and writes its keys and values into the cache; the hidden
    /// states of its rows, good until the next step. A decode step is replayed if one of its
    /// bucket was recorded, unless sequences share a prefix: recorded ones share none.
    ///
    /// # Errors
    /// The backend failed, or the plan does not fit the limits or the cache.
    pub(crate) fn hidden(
        &mut self,
        plan: &mut StepPlan,
        cache: &mut B::KvCache,
    ) -> Result<Buf, KernelError> {
        let Self {
            graphs, backend, model, step, workspace, rows, replayed, replays, staged, ..
        } = self;
        let recorded = graphs.of(plan).filter(|_| *replays && plan.prefixes.is_empty());
        plan.bucket = recorded.map(|recorded| recorded.rows);
        *rows = plan.num_tokens();
        *replayed = recorded.map(|recorded| recorded.logits);
        {
            let _range = range(c"stage");
            backend.stage(plan, step, cache)?;
        }
        *staged = Some(Instant::now());
        let _range = range(c"forward");
        match recorded {
            Some(recorded) => {
                backend.replay(&recorded.graph, step)?;
                workspace.begin();
                Ok(workspace.take_at(recorded.hidden))
            }
            None => model.forward(&mut Pass::begin(backend, step, *rows, cache, workspace)),
        }
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
        let Self { backend, model, step, workspace, rows, replayed, .. } = self;
        if let Some(logits) = replayed.take() {
            // Each row of a decode step gets logits, once.
            debug_assert_eq!(range, 0..*rows);
            return Ok(workspace.take_at(logits));
        }
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

    /// Ends the step without waiting for it: a token is sampled for each request, of which there
    /// are as many as rows of logits, if there are any. It is kept for the request's slot.
    ///
    /// # Errors
    /// The backend failed.
    pub(crate) fn end_step(
        &mut self,
        logits: Option<Buf>,
        requests: &[SampleRequest<'_>],
    ) -> Result<(), KernelError> {
        let Some(mut logits) = logits else { return self.backend.end_step(None) };
        self.backend.end_step(Some((self.workspace.get_mut(&mut logits), requests)))?;
        // The next step writes there after this one has read.
        self.workspace.free(logits);
        Ok(())
    }

    /// Waits for the oldest step that has ended; what it sampled is appended to `out`.
    ///
    /// # Errors
    /// The backend failed.
    pub(crate) fn wait_step(
        &mut self,
        out: &mut Vec<Sampled>,
    ) -> Result<Option<Duration>, KernelError> {
        self.backend.wait_step(out)
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
