//! A step on a processor.

use super::CpuKvCache;
use crate::{
    AttentionKind, AttentionParams, KernelError, StepLimits, StepPlan,
    ops::{paged_attention, unknown_kind},
    plan::StepSizes,
};

/// A staged [`StepPlan`], with the tasks of its attention.
pub struct CpuStep {
    limits: StepLimits,
    pub(crate) plan: StepPlan,
    pub(crate) sizes: StepSizes,
    attention: Vec<(AttentionKind, Vec<paged_attention::Task>)>,
}

impl CpuStep {
    pub(crate) fn new(limits: &StepLimits, attention: &[AttentionKind]) -> Self {
        let tasks = |kind: &AttentionKind| {
            Vec::with_capacity(paged_attention::most_tasks(limits, &kind.params))
        };
        Self {
            limits: *limits,
            plan: StepPlan::new(0),
            sizes: StepSizes::default(),
            attention: attention.iter().map(|kind| (*kind, tasks(kind))).collect(),
        }
    }

    pub(crate) fn stage(
        &mut self,
        plan: &StepPlan,
        cache: &mut CpuKvCache,
    ) -> Result<(), KernelError> {
        self.sizes = StepSizes::default();
        let sizes = plan.check(&self.limits, (cache.layout(), cache.limits()))?;
        if plan.bucket.is_some() {
            return Err(records_nothing());
        }
        if sizes.has_last_sampled {
            return Err(KernelError::Unsupported {
                what: "a token that a slot sampled last".to_owned(),
                device: "the CPU",
                accepted: "tokens' ids are",
            });
        }
        cache.edit_tables(&plan.table_edits);
        self.plan.copy_from(plan);
        for (kind, tasks) in &mut self.attention {
            paged_attention::plan(plan, &kind.params, tasks);
        }
        self.sizes = sizes;
        Ok(())
    }

    /// The tasks of layers that attend in this way.
    pub(crate) fn attention_tasks(
        &self,
        op: &'static str,
        params: &AttentionParams,
        group: usize,
    ) -> Result<&[paged_attention::Task], KernelError> {
        let is_own =
            |(kind, _): &&(AttentionKind, Vec<_>)| kind.params == *params && kind.group == group;
        let own = self.attention.iter().find(is_own);
        own.map(|(_, tasks)| &tasks[..]).ok_or_else(|| unknown_kind(op, params, group))
    }
}

pub(super) fn records_nothing() -> KernelError {
    KernelError::Unsupported {
        what: "a step that is recorded".to_owned(),
        device: "the CPU",
        accepted: "steps without a bucket are",
    }
}
