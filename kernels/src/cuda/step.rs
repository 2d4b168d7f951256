//! What the device is told of a step: the batch, and how its attention is shared out.

use super::{
    AttentionPlan, AttentionRoom, CudaLimits, DevicePointer, Driver, Work,
    staging::{Staging, room},
};
use crate::{AttentionParams, ForwardBatch, KernelError};

/// A batch on the device.
pub(super) struct Step<M> {
    limits: CudaLimits,
    staging: Staging<M>,
    pub(super) on_device: BatchPointers,
    pub(super) num_tokens: usize,
    num_seqs: usize,
    pub(super) largest_token: u32,
    pub(super) largest_position: u32,
    /// One for each way that the model's layers attend, of which `num_planned` are
    /// this step's.
    plans: Vec<Planned<M>>,
    num_planned: usize,
    plan: AttentionPlan,
}

/// Where the batch's lists lie; see [`ForwardBatch`].
#[derive(Clone, Copy, Default)]
pub(super) struct BatchPointers {
    pub(super) token_ids: DevicePointer,
    pub(super) positions: DevicePointer,
    pub(super) slot_mapping: DevicePointer,
    pub(super) block_tables: DevicePointer,
}

/// The work of attention on the device.
struct Planned<M> {
    staging: Staging<M>,
    params: AttentionParams,
    work: AttentionWork,
}

/// Where a step's work of attention lies, and how much there is.
#[derive(Clone, Copy)]
pub(super) struct AttentionWork {
    pub(super) prompts: (DevicePointer, usize),
    pub(super) decodes: (DevicePointer, usize),
}

impl<M> Step<M> {
    pub(super) fn new<D: Driver<Memory = M>>(
        driver: &D,
        limits: &CudaLimits,
    ) -> Result<Self, KernelError> {
        let CudaLimits { max_num_batched_tokens, max_num_seqs, max_model_len } = *limits;
        let blocks = max_num_seqs * max_model_len.div_ceil(16);
        let capacity = 3 * room::<u32>(max_num_batched_tokens) + room::<u32>(blocks);
        Ok(Self {
            limits: *limits,
            staging: Staging::new(driver, capacity, "a step's batch")?,
            on_device: BatchPointers::default(),
            num_tokens: 0,
            num_seqs: 0,
            largest_token: 0,
            largest_position: 0,
            plans: Vec::new(),
            num_planned: 0,
            plan: AttentionPlan::default(),
        })
    }

    pub(super) fn begin<D: Driver<Memory = M>>(
        &mut self,
        driver: &D,
        batch: &ForwardBatch,
    ) -> Result<(), KernelError> {
        self.num_planned = 0;
        self.num_tokens = batch.num_tokens();
        self.num_seqs = batch.num_seqs();
        self.largest_token = batch.token_ids.iter().copied().max().unwrap_or(0);
        self.largest_position = batch.positions.iter().copied().max().unwrap_or(0);
        let staging = &mut self.staging;
        staging.clear();
        self.on_device = BatchPointers {
            token_ids: staging.push(&batch.token_ids)?,
            positions: staging.push(&batch.positions)?,
            slot_mapping: staging.push(&batch.slot_mapping)?,
            block_tables: staging.push(&batch.block_tables)?,
        };
        staging.send(driver)
    }

    /// Whether this may be the batch that [`Self::begin`] was given.
    pub(super) fn check(&self, op: &'static str, batch: &ForwardBatch) -> Result<(), KernelError> {
        if (batch.num_tokens(), batch.num_seqs()) == (self.num_tokens, self.num_seqs) {
            return Ok(());
        }
        Err(KernelError::Shape {
            op,
            what: "the batch",
            got: format!("{} tokens of {} sequences", batch.num_tokens(), batch.num_seqs()),
            expected: format!("the step's {} of {}", self.num_tokens, self.num_seqs),
        })
    }

    /// The work of attention with these parameters, planned and sent once a step.
    pub(super) fn work<D: Driver<Memory = M>>(
        &mut self,
        driver: &D,
        batch: &ForwardBatch,
        params: &AttentionParams,
        attention: AttentionRoom,
    ) -> Result<AttentionWork, KernelError> {
        let of_step = &self.plans[..self.num_planned];
        if let Some(planned) = of_step.iter().find(|planned| planned.params == *params) {
            return Ok(planned.work);
        }
        self.plan.plan(batch, params, attention);
        let AttentionPlan { prompts, decodes, .. } = &self.plan;
        if self.num_planned == self.plans.len() {
            let CudaLimits { max_num_batched_tokens, max_num_seqs, .. } = self.limits;
            let (prompts, decodes) = AttentionPlan::most_work(
                params,
                max_num_batched_tokens,
                max_num_seqs,
                attention.max_partials,
            );
            self.plans.push(Planned {
                staging: Staging::new(
                    driver,
                    room::<Work>(prompts) + room::<Work>(decodes),
                    "attention's work",
                )?,
                params: *params,
                work: AttentionWork {
                    prompts: (DevicePointer::NULL, 0),
                    decodes: (DevicePointer::NULL, 0),
                },
            });
        }
        let planned = &mut self.plans[self.num_planned];
        planned.staging.clear();
        planned.params = *params;
        planned.work = AttentionWork {
            prompts: (planned.staging.push(prompts)?, prompts.len()),
            decodes: (planned.staging.push(decodes)?, decodes.len()),
        };
        planned.staging.send(driver)?;
        self.num_planned += 1;
        Ok(planned.work)
    }
}
