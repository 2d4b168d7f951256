//! Decode steps that are recorded once and replayed, beside the same steps launched kernel by
//! kernel.

use sconce_kernels::{
    AttentionKind, AttentionParams, CacheDtype, Device as _, Dtype, KernelError, KvLayout, Mask,
    Ops as _, StepLimits, StepPlan,
    cuda::{Cuda, CudaBuffer, CudaGraph, CudaKvCache, CudaMatrix, CudaStep, CudaVector, Driver},
};

use super::backend::tensor;

const HIDDEN: usize = 64;
const VOCAB: usize = 40;
const LIMITS: StepLimits =
    StepLimits { max_num_batched_tokens: 256, max_num_seqs: 6, max_model_len: 1100 };
const NUM_BLOCKS: usize = 6 * LIMITS.blocks_per_seq();
const PARAMS: AttentionParams = AttentionParams {
    num_heads: 2,
    num_kv_heads: 1,
    head_dim: 64,
    scale: 0.2,
    mask: Mask::Causal,
    soft_cap: None,
};

/// An embedding and a layer's attention.
struct Layer<D: Driver> {
    cuda: Cuda<D>,
    step: CudaStep<D::Memory>,
    parts: Parts<D>,
}

struct Parts<D: Driver> {
    cache: CudaKvCache<D::Memory>,
    table: CudaMatrix<D::Memory>,
    qkv: CudaMatrix<D::Memory>,
    rope: CudaVector<D::Memory>,
    o: CudaMatrix<D::Memory>,
    buffers: [CudaBuffer<D::Memory>; 4],
}

impl<D: Driver> Parts<D> {
    /// Asks for what is staged; of each row, what comes of it in the last buffer.
    fn forward(
        &mut self,
        cuda: &mut Cuda<D>,
        step: &CudaStep<D::Memory>,
        rows: usize,
        logit_rows: usize,
    ) -> Result<(), KernelError> {
        let Self { cache, table, qkv, rope, o, buffers } = self;
        let [hidden, projected, attended, last] = buffers;
        cuda.embedding_gather(step, table, 1.0, hidden)?;
        cuda.linear(rows, hidden, qkv, None, projected)?;
        cuda.rope_and_cache(step, &PARAMS, rope, None, 0, projected, cache)?;
        cuda.paged_attention(step, &PARAMS, 0, projected, cache, attended)?;
        cuda.linear_add(rows, attended, o, None, hidden)?;
        cuda.gather_rows(step, 0..logit_rows, hidden, last)
    }
}

impl<D: Driver> Layer<D> {
    fn new(driver: D) -> Result<Self, KernelError> {
        let mut cuda = Cuda::new(driver, Dtype::Bf16, LIMITS)?;
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = PARAMS;
        let heads = (num_heads + 2 * num_kv_heads) * head_dim;
        let layout = KvLayout::uniform(1, NUM_BLOCKS, (num_kv_heads, head_dim), CacheDtype::Bf16);
        let kind = AttentionKind { params: PARAMS, group: 0 };
        let rows = LIMITS.max_num_batched_tokens;
        let step = cuda.step(&LIMITS, &[kind])?;
        let matrix = |seed, n, k| cuda.matrix(&[tensor(seed, &[n, k])], Dtype::Bf16.into());
        let parts = Parts {
            cache: cuda.kv_cache(&layout, &LIMITS)?,
            table: matrix(1, VOCAB, HIDDEN)?,
            qkv: matrix(2, heads, HIDDEN)?,
            rope: cuda.vector(&[tensor(3, &[LIMITS.max_model_len * head_dim])])?,
            o: matrix(4, HIDDEN, num_heads * head_dim)?,
            buffers: [
                cuda.buffer(rows, HIDDEN)?,
                cuda.buffer(rows, heads)?,
                cuda.buffer(rows, num_heads * head_dim)?,
                cuda.buffer(rows, HIDDEN)?,
            ],
        };
        Ok(Self { cuda, step, parts })
    }

    fn stage(&mut self, plan: &StepPlan) -> Result<(), KernelError> {
        self.cuda.stage(plan, &mut self.step, &mut self.parts.cache)
    }

    fn eager(&mut self, plan: &StepPlan) -> Result<Vec<f32>, KernelError> {
        self.stage(plan)?;
        let Self { cuda, step, parts } = self;
        parts.forward(cuda, step, plan.num_tokens(), plan.logit_rows.len())?;
        cuda.read(&parts.buffers[3], plan.logit_rows.len())
    }

    fn record(&mut self, bucket: usize) -> Result<CudaGraph<D::Graph>, KernelError> {
        let mut plan = decodes(&[(0, 0)]);
        plan.bucket = Some(bucket);
        self.stage(&plan)?;
        let Self { cuda, step, parts } = self;
        parts.forward(cuda, step, bucket, bucket)?;
        Ok(cuda.capture(step, |cuda| parts.forward(cuda, step, bucket, bucket))?.0)
    }

    fn replayed(
        &mut self,
        plan: &mut StepPlan,
        bucket: usize,
        graph: &CudaGraph<D::Graph>,
    ) -> Result<Vec<f32>, KernelError> {
        plan.bucket = Some(bucket);
        self.stage(plan)?;
        self.cuda.replay(graph, &self.step)?;
        self.cuda.read(&self.parts.buffers[3], plan.logit_rows.len())
    }
}

/// The blocks of a slot, which are its own.
fn blocks(slot: u32) -> Vec<u32> {
    let per_seq = u32::try_from(LIMITS.blocks_per_seq()).expect("few");
    (0..per_seq).map(|block| (block * 6 + slot * 5) % (6 * per_seq)).collect()
}

/// One token for each slot, at a position.
fn decodes(slots: &[(u32, usize)]) -> StepPlan {
    let mut plan = StepPlan::new(1);
    for (row, &(slot, position)) in (0..).zip(slots) {
        plan.edit_table(0, slot, 0, &blocks(slot));
        let token = (slot * 13 + position as u32 * 7) % VOCAB as u32;
        plan.push(slot, &[token], position, &[blocks(slot)]);
        plan.logit_rows.push(row);
    }
    plan
}

/// A recorded step computes what is staged, whatever slots, contexts and number of rows that
/// has; what does not lie where it did, or is of another bucket, is refused.
///
/// # Panics
/// If it does not.
pub fn a_replayed_step_is_the_step_that_is_staged<D: Driver>(device: impl Fn() -> D) {
    let [mut eager, mut graphs] =
        [(); 2].map(|()| Layer::new(device()).expect("the device has a layer"));
    let recorded = [6, 4, 1].map(|rows| (rows, graphs.record(rows).expect("it is recorded")));
    // A prompt of each slot, cut short before chunks of attention end and after.
    let lens = [1, 255, 256, 40, 1031, 700];
    for (slot, len) in (0..).zip(lens) {
        for first in (0..len).step_by(LIMITS.max_num_batched_tokens) {
            let tokens: Vec<u32> = (first..len.min(first + LIMITS.max_num_batched_tokens))
                .map(|i| (i as u32 * 31 + slot) % VOCAB as u32)
                .collect();
            let mut plan = StepPlan::new(1);
            plan.edit_table(0, slot, 0, &blocks(slot));
            plan.push(slot, &tokens, first, &[blocks(slot)]);
            for layer in [&mut eager, &mut graphs] {
                layer.eager(&plan).expect("a chunk");
            }
        }
    }
    let mut lens = lens;
    for (index, slots) in [
        &[0, 1, 2, 3, 4, 5][..],
        &[4],
        &[5, 0, 4],
        &[2, 1],
        &[3],
        &[1, 5, 2, 0],
        &[4, 0, 1, 2, 3],
        &[0],
    ]
    .into_iter()
    .enumerate()
    {
        let at: Vec<_> = slots.iter().map(|&slot| (slot, lens[slot as usize])).collect();
        slots.iter().for_each(|&slot| lens[slot as usize] += 1);
        let mut plan = decodes(&at);
        let want = eager.eager(&plan).expect("a step");
        let fitting = recorded.iter().rev().find(|(rows, _)| *rows >= slots.len());
        let (rows, graph) = fitting.expect("a bucket");
        let got = graphs.replayed(&mut plan, *rows, graph).expect("a replay");
        assert!(want.iter().all(|x| x.is_finite()));
        assert_eq!(got, want, "step {index}, of {} rows in a bucket of {rows}", slots.len());
        // The other buckets' lists lie elsewhere.
        for (_, other) in recorded.iter().filter(|(other, _)| other != rows) {
            let refused = graphs.cuda.replay(other, &graphs.step).expect_err("another bucket");
            assert!(refused.to_string().contains("as when it was recorded"), "{refused}");
        }
    }
    let mut prompt = StepPlan::new(1);
    prompt.push(0, &[1, 2], 0, &[blocks(0)]);
    prompt.logit_rows = vec![1];
    prompt.bucket = Some(4);
    let refused = graphs.stage(&prompt).expect_err("it is no decode step");
    assert!(refused.to_string().contains("a step with a bucket"), "{refused}");
}

/// What may not be asked for while a step is recorded ends the recording with an error, and
/// the device goes on.
///
/// # Panics
/// If it does not.
pub fn what_cannot_be_recorded_is_refused<D: Driver>(device: impl Fn() -> D) {
    let mut layer = Layer::new(device()).expect("the device has a layer");
    let mut plan = decodes(&[(3, 0)]);
    let want = layer.eager(&plan).expect("a step");
    plan.bucket = Some(1);
    layer.stage(&plan).expect("it fits");
    let Layer { cuda, step, parts } = &mut layer;
    let read = |cuda: &mut Cuda<D>| cuda.read(&parts.buffers[3], 1);
    assert!(cuda.capture(step, read).is_err(), "the host does not wait for what is recorded");
    plan.bucket = None;
    assert_eq!(layer.eager(&plan).expect("a step"), want);
}
