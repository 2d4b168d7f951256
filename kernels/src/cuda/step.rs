//! A step on the device: its plan, and how its attention is shared out, in one copy.

use super::{
    AttentionPlan, AttentionRoom, CudaKvCache, DevicePointer, Driver, EntryEdit, Launch, Sharer,
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
    /// The bucket, and where all lies that recorded work reads: the same of every step of a
    /// bucket.
    pub(super) places: Vec<u64>,
}

/// The bytes of a padded row's place in the cache: none.
const NOWHERE: u8 = 0xff;

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
    pub(super) prefixes: (DevicePointer, usize),
    pub(super) sharers: DevicePointer,
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
            let recorded = recorded_decodes(&kind.params, *attention, max_num_seqs, limits);
            let multiprocessors = attention.multiprocessors;
            let prefixes =
                AttentionPlan::most_prefix_work(&kind.params, max_num_seqs, multiprocessors);
            room::<Work>(prompts)
                + room::<Work>(decodes.max(recorded.unwrap_or(0)))
                + room::<Work>(prefixes)
                + room::<Sharer>(max_num_seqs)
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
            places: Vec::new(),
        })
    }

    /// Whether its steps may have buckets.
    pub(super) fn records(&self) -> bool {
        let recorded = |planned: &PlannedAttention| {
            recorded_decodes(&planned.kind.params, planned.room, 1, &self.limits)
        };
        self.attention.iter().all(|planned| recorded(planned).is_some())
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
        self.places.clear();
        let rows = sizes.num_tokens;
        self.token_ids = staging.push_padded(&plan.token_ids, rows, 0)?;
        self.positions = staging.push_padded(&plan.positions, rows, 0)?;
        self.kv_slots.clear();
        for kv_slots in &plan.kv_slots {
            self.kv_slots.push(staging.push_padded(kv_slots, rows, NOWHERE)?);
        }
        // A padded row's logits are another's once more.
        let num_logit_rows = plan.bucket.unwrap_or(plan.logit_rows.len());
        let logit_rows =
            (staging.push_padded(&plan.logit_rows, num_logit_rows, 0)?, num_logit_rows);
        self.places.extend([rows as u64, cache.tables.0]);
        self.places.extend([self.token_ids, self.positions, logit_rows.0].map(|place| place.0));
        self.places.extend(self.kv_slots.iter().map(|place| place.0));
        for PlannedAttention { kind, room, plan: attention, work } in &mut self.attention {
            let mut room = *room;
            if let Some(bucket) = plan.bucket {
                let most = recorded_decodes(&kind.params, room, bucket, &self.limits);
                room.max_decodes = most.ok_or_else(|| not_recorded(&kind.params))?;
            }
            attention.plan(plan, &kind.params, cache.group_tables(kind.group), room);
            let AttentionPlan { prompts, prefixes, sharers, decodes, .. } = &*attention;
            let num_decodes = plan.bucket.map_or(decodes.len(), |_| room.max_decodes);
            *work = AttentionWork {
                prompts: (staging.push(prompts)?, prompts.len()),
                // Work without queries is none.
                decodes: (staging.push_padded(decodes, num_decodes, 0)?, num_decodes),
                // Steps with a bucket have none.
                prefixes: (staging.push(prefixes)?, prefixes.len()),
                sharers: staging.push(sharers)?,
            };
            self.places.extend([work.decodes.0.0, num_decodes as u64]);
        }
        // Last, for there may be any number: they are no part of what is recorded.
        self.edits.clear();
        self.edits.extend(plan.table_edits.iter().map(|edit| {
            let TableEdit { group, slot, index, block } = *edit;
            let tables = cache.group_tables(group as usize);
            let table = tables.first + slot as usize * tables.blocks_per_seq;
            EntryEdit { entry: word(table + index as usize), block }
        }));
        let edits = staging.push(&self.edits)?;
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

/// [`AttentionPlan::recorded_decodes`] of so many rows.
fn recorded_decodes(
    params: &AttentionParams,
    room: AttentionRoom,
    rows: usize,
    limits: &StepLimits,
) -> Option<usize> {
    let (max_model_len, multiprocessors) = (limits.max_model_len, room.multiprocessors);
    AttentionPlan::recorded_decodes(params, rows, max_model_len, multiprocessors)
}

fn not_recorded(params: &AttentionParams) -> KernelError {
    KernelError::Unsupported {
        what: format!("{} heads to {} of K and V", params.num_heads, params.num_kv_heads),
        device: "CUDA graphs",
        accepted: "up to 16 to one are",
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        CacheDtype, KvLayer, KvLayout, Mask,
        cuda::{KernelParams, Matmul},
    };

    /// A device that gives out addresses and does nothing.
    struct Addresses;

    impl Driver for Addresses {
        type Memory = usize;
        type Graph = ();

        fn describe(&self) -> String {
            "nothing".to_owned()
        }

        fn multiprocessors(&self) -> usize {
            20
        }

        fn allocate(&self, bytes: usize, _: &str) -> Result<usize, KernelError> {
            Ok(bytes)
        }

        /// Memory of another size lies elsewhere.
        fn address(&self, memory: &usize) -> DevicePointer {
            DevicePointer((*memory as u64) << 20)
        }

        fn upload(&self, memory: &mut usize, at: usize, bytes: &[u8]) -> Result<(), KernelError> {
            assert!(at + bytes.len() <= *memory, "the lists fit the memory");
            Ok(())
        }

        fn download(&self, _: &usize, _: &mut [u8]) -> Result<(), KernelError> {
            Ok(())
        }

        fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
            Ok(None)
        }

        fn launch<P: KernelParams>(&mut self, _: &Launch<'_>, _: &P) -> Result<(), KernelError> {
            Ok(())
        }

        fn matmul(&mut self, _: &Matmul) -> Result<(), KernelError> {
            Ok(())
        }

        fn begin_capture(&mut self) -> Result<(), KernelError> {
            Ok(())
        }

        fn end_capture(&mut self) -> Result<(), KernelError> {
            Ok(())
        }

        fn replay(&mut self, (): &()) -> Result<(), KernelError> {
            Ok(())
        }

        fn memory_info(&self) -> Result<(usize, usize), KernelError> {
            Ok((0, 0))
        }
    }

    const LIMITS: StepLimits =
        StepLimits { max_num_batched_tokens: 40, max_num_seqs: 32, max_model_len: 20_000 };

    proptest! {
        /// What a recorded step reads lies at the same places in every step of its bucket,
        /// whatever its rows, contexts and table edits, and whatever was staged before; at other
        /// places in those of another bucket.
        #[test]
        fn lists_of_a_bucket_lie_where_they_did(
            steps in prop::collection::vec(
                (prop::collection::vec(0_usize..20_000, 1..=32), 0_usize..3, 0_usize..500),
                2..12,
            ),
        ) {
            let params = AttentionParams {
                num_heads: 8,
                num_kv_heads: 2,
                head_dim: 64,
                scale: 1.0,
                mask: Mask::Causal,
                soft_cap: None,
            };
            let local = AttentionParams { mask: Mask::Sliding(700), ..params };
            let kinds = [(params, 0), (local, 1)].map(|(params, group)| {
                let room = AttentionRoom {
                    multiprocessors: 20,
                    max_partials: 10_000,
                    max_decodes: usize::MAX,
                };
                (AttentionKind { params, group }, room)
            });
            let layer = |group| KvLayer { group, region: group, num_kv_heads: 2, head_dim: 64 };
            let layout = KvLayout {
                num_blocks: 8,
                num_groups: 2,
                layers: vec![layer(0), layer(1)],
                dtype: CacheDtype::Bf16,
            };
            let mut cache = CudaKvCache::new(&Addresses, &layout, &LIMITS).expect("it fits");
            let mut step = CudaStep::new(&Addresses, &LIMITS, &kinds).expect("it fits");
            let mut known: Vec<Vec<u64>> = Vec::new();
            for (positions, larger, num_edits) in steps {
                let mut plan = StepPlan::new(2);
                let table = vec![3; LIMITS.blocks_per_seq()];
                for (slot, &position) in (0..).zip(&positions) {
                    plan.push(slot, &[1], position, &[&table, &table]);
                    plan.logit_rows.push(slot);
                }
                plan.edit_table(1, 4, 0, &vec![5; num_edits]);
                let bucket = (positions.len() + 8 * larger).next_multiple_of(8).min(32);
                plan.bucket = Some(bucket);
                step.stage(&mut Addresses, &plan, &mut cache).expect("it fits");
                prop_assert_eq!(step.places[0], bucket as u64);
                match known.iter().find(|places| places[0] == bucket as u64) {
                    Some(places) => prop_assert_eq!(places, &step.places),
                    None => known.push(step.places.clone()),
                }
            }
            for (index, one) in known.iter().enumerate() {
                prop_assert!(known[..index].iter().all(|other| other != one));
            }
        }
    }
}
