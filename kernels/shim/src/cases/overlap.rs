//! Steps that are asked for before the one before them is read back, beside the same steps one
//! at a time.

use std::collections::VecDeque;

use sconce_kernels::{
    CacheDtype, Device as _, Dtype, KernelError, KvLayout, Ops as _, Sampler as _, StepLimits,
    StepPlan,
    cuda::{Cuda, CudaBuffer, CudaGraph, CudaKvCache, CudaMatrix, CudaStep, Driver},
    ops::sampling::{SampleRequest, Sampled, SeenToken},
};

use super::backend::tensor;

const HIDDEN: usize = 64;
const VOCAB: usize = 300;
const SLOTS: usize = 4;
const STEPS: usize = 24;
const LIMITS: StepLimits =
    StepLimits { max_num_batched_tokens: 16, max_num_seqs: SLOTS, max_model_len: 64 };

/// What a slot's requests ask: tokens depend on the one before, and three of four slots have
/// penalties on what was sampled so far.
fn asked(slot: usize) -> SampleRequest<'static> {
    let base = SampleRequest { temperature: 1.0, seed: 5, ..SampleRequest::default() };
    match slot {
        0 => SampleRequest {
            temperature: 0.0,
            repetition_penalty: 1.3,
            frequency_penalty: 2.0,
            ..base
        },
        1 => SampleRequest { top_k: 20, presence_penalty: 3.0, ..base },
        2 => SampleRequest { top_p: 0.9, frequency_penalty: 1.0, num_logprobs: Some(3), ..base },
        _ => base,
    }
}

/// The rows of a step: their slots, in an order that changes, now and then without one; and
/// which of them is skipped, as one whose mask is not ready.
fn rows_of(step: usize) -> (Vec<usize>, Option<usize>) {
    let slots = (0..SLOTS).map(|row| (row + step) % SLOTS);
    let slots: Vec<_> = slots.filter(|&slot| step % 3 != 2 || slot != step % SLOTS).collect();
    (slots, (step % 7 == 3).then_some(1))
}

#[derive(Clone, Default)]
struct Slot {
    len: usize,
    /// What was read of its tokens.
    tokens: Vec<u32>,
    seen: Vec<SeenToken>,
    /// Tokens that were sampled and not read.
    unread: usize,
}

impl Slot {
    fn read(&mut self, token: u32) {
        self.tokens.push(token);
        self.unread -= 1;
        match self.seen.iter_mut().find(|seen| seen.token == token) {
            Some(seen) => seen.output_count += 1,
            None => self.seen.push(SeenToken { token, output_count: 1 }),
        }
    }
}

/// An embedding and a head.
struct Model<D: Driver> {
    cuda: Cuda<D>,
    step: CudaStep<D::Memory>,
    cache: CudaKvCache<D::Memory>,
    parts: Parts<D>,
    slots: [Slot; SLOTS],
}

struct Parts<D: Driver> {
    matrices: [CudaMatrix<D::Memory>; 2],
    hidden: CudaBuffer<D::Memory>,
    logits: CudaBuffer<D::Memory>,
}

impl<D: Driver> Parts<D> {
    fn forward(
        &mut self,
        cuda: &mut Cuda<D>,
        step: &CudaStep<D::Memory>,
        rows: usize,
    ) -> Result<(), KernelError> {
        let Self { matrices: [embedding, head], hidden, logits } = self;
        cuda.embedding_gather(step, embedding, 1.0, hidden)?;
        cuda.linear(rows, hidden, head, None, logits)
    }
}

impl<D: Driver> Model<D> {
    fn new(driver: D) -> Result<Self, KernelError> {
        let mut cuda = Cuda::new(driver, Dtype::Bf16, LIMITS)?;
        let layout = KvLayout::uniform(1, 4, (1, 64), CacheDtype::Bf16);
        let matrix = |seed| cuda.matrix(&[tensor(seed, &[VOCAB, HIDDEN])], Dtype::Bf16.into());
        let parts = Parts {
            matrices: [matrix(1)?, matrix(2)?],
            hidden: cuda.buffer(SLOTS, HIDDEN)?,
            logits: cuda.logits_buffer(SLOTS, VOCAB)?,
        };
        let (cache, step) = (cuda.kv_cache(&layout, &LIMITS)?, cuda.step(&LIMITS, &[])?);
        let slots = std::array::from_fn(|_| Slot::default());
        Ok(Self { cuda, step, cache, parts, slots })
    }

    fn stage(&mut self, plan: &StepPlan) -> Result<(), KernelError> {
        self.cuda.stage(plan, &mut self.step, &mut self.cache)
    }

    fn record(&mut self) -> Result<CudaGraph<D::Graph>, KernelError> {
        let mut plan = StepPlan::new(1);
        plan.push(0, &[0], 0, &[[0; 4]]);
        plan.logit_rows.push(0);
        plan.bucket = Some(SLOTS);
        self.stage(&plan)?;
        let Self { cuda, step, parts, .. } = self;
        parts.forward(cuda, step, SLOTS)?;
        Ok(cuda.capture(step, |cuda| parts.forward(cuda, step, SLOTS))?.0)
    }

    /// Computes a step's logits; tokens that slots sampled are the device's, if it keeps them.
    fn launch(
        &mut self,
        index: usize,
        keeps: bool,
        graph: Option<&CudaGraph<D::Graph>>,
    ) -> Result<(), KernelError> {
        let mut plan = StepPlan::new(1);
        for (row, slot) in (0..).zip(rows_of(index).0) {
            let Slot { len, tokens, unread, .. } = &self.slots[slot];
            let at = slot as u32;
            if keeps && tokens.len() + unread > 0 {
                plan.push_last_sampled(at, *len, &[[0; 4]]);
            } else {
                let token = tokens.last().copied().unwrap_or(at * 7 + 3);
                plan.push(at, &[token], *len, &[[0; 4]]);
            }
            plan.logit_rows.push(row);
            self.slots[slot].len += 1;
        }
        plan.bucket = graph.map(|_| SLOTS);
        self.stage(&plan)?;
        let Self { cuda, step, parts, .. } = self;
        match graph {
            Some(graph) => cuda.replay(graph, step),
            None => parts.forward(cuda, step, plan.num_tokens()),
        }
    }

    /// Samples a step's rows, and waits for them if `out` is there.
    fn sample(&mut self, index: usize, out: Option<&mut Vec<Sampled>>) -> Result<(), KernelError> {
        let (rows, skipped) = rows_of(index);
        let Self { cuda, parts, slots, .. } = self;
        let request = |slot: &usize| {
            let Slot { seen, unread, .. } = &slots[*slot];
            if skipped == Some(*slot) {
                return SampleRequest::default();
            }
            let mut request = asked(*slot);
            request.seen = if *slot == 3 { &[] } else { seen };
            request.last_is_uncounted = *unread > 0 && *slot != 3;
            request.slot = Some(*slot as u32);
            request.index = index as u32;
            request
        };
        let requests: Vec<_> = rows.iter().map(request).collect();
        match out {
            Some(out) => cuda.sample(&mut parts.logits, &requests, out)?,
            None => cuda.end_step(Some((&mut parts.logits, &requests)))?,
        }
        let sampled = rows.iter().filter(|&&slot| skipped != Some(slot));
        sampled.for_each(|&slot| slots[slot].unread += 1);
        Ok(())
    }

    /// Gives slots what was read of a step.
    fn read(&mut self, index: usize, sampled: &[Sampled]) {
        let (rows, skipped) = rows_of(index);
        assert_eq!(sampled.len(), rows.len(), "a row gives something");
        for (slot, sampled) in rows.into_iter().zip(sampled) {
            let Sampled::Token { token, .. } = sampled else { panic!("{sampled:?}") };
            if skipped != Some(slot) {
                self.slots[slot].read(*token);
            }
        }
    }
}

/// Steps of which two are in flight sample what steps sample that are read back one by one: each
/// takes its tokens, and counts them, where the step before it left them. Rows that are skipped
/// leave nothing.
///
/// # Panics
/// If they do not.
pub fn steps_in_flight_sample_as_one_by_one<D: Driver>(device: impl Fn() -> D) {
    let mut alone = Model::new(device()).expect("the backend");
    let mut want = Vec::new();
    for index in 0..STEPS {
        let mut sampled = Vec::new();
        alone.launch(index, false, None).expect("a step");
        alone.sample(index, Some(&mut sampled)).expect("tokens");
        alone.read(index, &sampled);
        want.push(sampled);
    }
    let mut model = Model::new(device()).expect("the backend");
    let graph = model.record().expect("it is recorded");
    let mut flight = VecDeque::new();
    for index in 0..STEPS + 1 {
        if index < STEPS {
            let graph = (index % 4 < 2).then_some(&graph);
            model.launch(index, true, graph).expect("a step");
            model.sample(index, None).expect("it is asked for");
            flight.push_back(index);
        }
        if flight.len() == 2 || index == STEPS {
            let oldest = flight.pop_front().expect("a step in flight");
            let mut sampled = Vec::new();
            model.cuda.wait_step(&mut sampled).expect("tokens");
            assert_eq!(sampled, want[oldest], "step {oldest}");
            model.read(oldest, &sampled);
        }
    }
    let penalised = &alone.slots[0].tokens;
    assert!(penalised.windows(2).any(|two| two[0] != two[1]), "{penalised:?} shows nothing");
}
