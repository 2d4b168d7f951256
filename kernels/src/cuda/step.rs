//! A step on the device: its plan, and how its attention is shared out, in one copy.

use super::{
    AttentionPlan, AttentionRoom, CudaKvCache, DevicePointer, Driver, EntryEdit, Launch,
    TableEdits, Work,
    staging::{Staging, room},
    word,
};
use crate::{
    AttentionKind, AttentionParams, KernelError, StepLimits, StepPlan, TableEdit,
    ops::unknown_kind, plan::StepSizes,
};

/// A staged [`StepPlan`].
pub struct CudaStep<M> {
    limits: StepLimits,
    staging: Staging<M>,
    pub(super) sizes: StepSizes,
    /// The tables of the cache that it was staged for.
    tables: DevicePointer,
    pub(super) token_ids: DevicePointer,
    pub(super) positions: DevicePointer,
    /// By group.
    pub(super) kv_slots: Vec<DevicePointer>,
    /// Where the rows that get logits are listed, and how many.
    pub(super) logit_rows: (DevicePointer, usize),
    attention: Vec<PlannedAttention>,
    edits: Vec<EntryEdit>,
}

/// The attention of one kind of layer.
struct PlannedAttention {
    kind: AttentionKind,
    room: AttentionRoom,
    plan: AttentionPlan,
    work: AttentionWork,
}

/// Where a step's work of attention lies, and how much there is.
#[derive(Clone, Copy, Default)]
pub(super) struct AttentionWork {
    pub(super) prompts: (DevicePointer, usize),
    pub(super) decodes: (DevicePointer, usize),
}

impl<M> CudaStep<M> {
    /// Room for steps of these limits; each kind of attention has room for partial results.
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        limits: &StepLimits,
        attention: &[(AttentionKind, AttentionRoom)],
    ) -> Result<Self, KernelError> {
        let StepLimits { max_num_batched_tokens, max_num_seqs, .. } = *limits;
        let num_groups = attention.iter().map(|(kind, _)| kind.group + 1).max().unwrap_or(1);
        let tables = num_groups * max_num_seqs * limits.blocks_per_seq();
        let of_work = attention.iter().map(|(kind, attention)| {
            let (prompts, decodes) = AttentionPlan::most_work(
                &kind.params,
                max_num_batched_tokens,
                max_num_seqs,
                attention.max_partials,
            );
            room::<Work>(prompts) + room::<Work>(decodes)
        });
        let capacity = (2 + num_groups) * room::<u32>(max_num_batched_tokens)
            + room::<u32>(max_num_batched_tokens + max_num_seqs)
            + room::<EntryEdit>(tables)
            + of_work.sum::<usize>();
        let planned = |&(kind, room): &(AttentionKind, AttentionRoom)| PlannedAttention {
            kind,
            room,
            plan: AttentionPlan::default(),
            work: AttentionWork::default(),
        };
        Ok(Self {
            limits: *limits,
            staging: Staging::new(driver, capacity, "a step")?,
            sizes: StepSizes::default(),
            tables: DevicePointer::NULL,
            token_ids: DevicePointer::NULL,
            positions: DevicePointer::NULL,
            kv_slots: Vec::with_capacity(num_groups),
            logit_rows: (DevicePointer::NULL, 0),
            attention: attention.iter().map(planned).collect(),
            edits: Vec::new(),
        })
    }

    pub(super) fn stage<D: Driver<Memory = M>>(
        &mut self,
        driver: &mut D,
        plan: &StepPlan,
        cache: &mut CudaKvCache<M>,
    ) -> Result<(), KernelError> {
        (self.sizes, self.logit_rows) = (StepSizes::default(), (DevicePointer::NULL, 0));
        let sizes = plan.check(&self.limits, (&cache.layout, &cache.limits))?;
        driver.begin_step()?;
        let staging = &mut self.staging;
        staging.clear();
        self.token_ids = staging.push(&plan.token_ids)?;
        self.positions = staging.push(&plan.positions)?;
        self.kv_slots.clear();
        for kv_slots in &plan.kv_slots {
            self.kv_slots.push(staging.push(kv_slots)?);
        }
        let logit_rows = (staging.push(&plan.logit_rows)?, plan.logit_rows.len());
        self.edits.clear();
        self.edits.extend(plan.table_edits.iter().map(|edit| {
            let TableEdit { group, slot, index, block } = *edit;
            let tables = cache.group_tables(group as usize);
            let table = tables.first + slot as usize * tables.blocks_per_seq;
            EntryEdit { entry: word(table + index as usize), block }
        }));
        let edits = staging.push(&self.edits)?;
        for PlannedAttention { kind, room, plan: attention, work } in &mut self.attention {
            attention.plan(plan, &kind.params, cache.group_tables(kind.group), *room);
            let AttentionPlan { prompts, decodes, .. } = &*attention;
            *work = AttentionWork {
                prompts: (staging.push(prompts)?, prompts.len()),
                decodes: (staging.push(decodes)?, decodes.len()),
            };
        }
        staging.send(driver)?;
        if !self.edits.is_empty() {
            let num_edits = word(self.edits.len());
            let params = TableEdits { edits, tables: cache.tables, num_edits, padding: 0 };
            driver.launch(&TableEdits::launch(num_edits), &params)?;
        }
        (self.sizes, self.logit_rows, self.tables) = (sizes, logit_rows, cache.tables);
        Ok(())
    }

    /// # Errors
    /// The step was staged for another cache.
    pub(super) fn check_cache(
        &self,
        op: &'static str,
        cache: &CudaKvCache<M>,
    ) -> Result<(), KernelError> {
        if self.tables == cache.tables {
            return Ok(());
        }
        Err(KernelError::Shape {
            op,
            what: "the cache",
            got: "another".to_owned(),
            expected: "the one that the step was staged for".to_owned(),
        })
    }

    /// The work of layers that attend in this way.
    pub(super) fn work(
        &self,
        op: &'static str,
        params: &AttentionParams,
        group: usize,
    ) -> Result<AttentionWork, KernelError> {
        let is_own = |planned: &&PlannedAttention| {
            planned.kind.params == *params && planned.kind.group == group
        };
        let own = self.attention.iter().find(is_own);
        own.map(|planned| planned.work).ok_or_else(|| unknown_kind(op, params, group))
    }
}

impl TableEdits {
    /// A launch of so many edits.
    #[must_use]
    pub const fn launch(num_edits: u32) -> Launch<'static> {
        const THREADS: u32 = 256;
        Launch {
            file: "table_edits",
            kernel: "table_edits",
            grid: [num_edits.div_ceil(THREADS), 1],
            threads: THREADS,
            shared_bytes: 0,
        }
    }
}
