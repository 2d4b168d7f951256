//! The CUDA backend: memory, steps, sampling. Its operations are in `ops.rs`.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use candle_core::Tensor;

use super::{
    AttentionPlan, AttentionRoom, CudaBuffer, CudaKvCache, CudaMatrix, CudaRoutes, CudaStep,
    CudaVector, DevicePointer, Driver, ProductForm, PromptForm,
    attention_plan::DECODE_ROWS,
    fp8_products::Fp8Room,
    head_trials::Heads,
    memory::{WeightKind, decode},
    names,
    sampler::SamplingBuffers,
};
use crate::{
    AttentionKind, AttentionParams, CacheDtype, Device, Dtype, Findings, Fp8Weight, KernelError,
    KvLayout, Mask, Routing, Sampler, SharedPrefix, StepLimits, StepPlan, WeightDtype,
    ops::sampling::{Logprobs, SampleRequest, Sampled},
    plan::below_in,
};

/// Bytes of attention's partial results, where more than two sequences could need them:
/// the longest are shared out among blocks then, the others are enough to fill the device.
const PARTIAL_BYTES: usize = 64 << 20;

/// A CUDA device as a [`crate::Backend`].
pub struct Cuda<D: Driver> {
    pub(super) driver: D,
    /// Of activations and weights.
    pub(super) dtype: Dtype,
    pub(super) sampling: SamplingBuffers<D::Memory>,
    pub(super) partials: Option<Partials<D::Memory>>,
    pub(super) is_deterministic: bool,
    /// The form of every product, where one was asked for.
    pub(super) product_form: Option<ProductForm>,
    /// Those that were found best, by rows, outputs, inputs and the weight's kind.
    pub(super) product_forms: HashMap<(usize, usize, usize, WeightKind), ProductForm>,
    /// Outputs, inputs and kind of the weights that were made.
    pub(super) weights: Mutex<BTreeSet<(usize, usize, WeightKind)>>,
    /// Rows that a product has at most.
    pub(super) max_rows: usize,
    /// The form of attention of prompts, where one was asked for.
    pub(super) prompt_form: Option<PromptForm>,
    /// Those that were found best, by the size of heads.
    pub(super) prompt_forms: HashMap<usize, PromptForm>,
    /// Whether attention shares prefixes, where that was asked for or refused.
    pub(super) shares_prefixes: Option<bool>,
    /// Whether Q, K and V of few rows are rotated in the launch of their product, where that was
    /// asked for or refused.
    pub(super) rotation: Option<bool>,
    /// Of operations with two forms those that were found best, by their names' beginnings and by
    /// heads.
    pub(super) forms_of_heads: HashMap<(&'static str, Heads), &'static str>,
    /// What products with weights in e4m3 work in.
    pub(super) fp8_room: Mutex<Fp8Room<D::Memory>>,
}

/// Room for attention's partial results and the tickets of the blocks that merge them.
/// Steps and layers take turns with it, in the stream's order.
pub(super) struct Partials<M> {
    bytes: usize,
    num_tickets: usize,
    pub(super) partials: DevicePointer,
    pub(super) tickets: DevicePointer,
    _memory: [M; 2],
}

/// Work that was recorded.
pub struct CudaGraph<G> {
    recorded: G,
    /// Where it reads what varies from step to step.
    places: Vec<u64>,
    /// Attention's partial results and tickets.
    partials: Option<[DevicePointer; 2]>,
}

impl<D: Driver> Cuda<D> {
    /// A backend that computes in `dtype`.
    ///
    /// # Errors
    /// A dtype that tensor cores do not take, no memory.
    pub fn new(mut driver: D, dtype: Dtype, limits: StepLimits) -> Result<Self, KernelError> {
        if dtype == Dtype::F32 {
            return Err(KernelError::Unsupported {
                what: "dtype float32".to_owned(),
                device: "CUDA",
                accepted: "bfloat16 and float16 are; float32 runs on the CPU",
            });
        }
        Ok(Self {
            sampling: SamplingBuffers::new(&mut driver, &limits)?,
            driver,
            dtype,
            partials: None,
            is_deterministic: false,
            product_form: None,
            product_forms: HashMap::new(),
            weights: Mutex::default(),
            max_rows: limits.max_num_batched_tokens.max(limits.max_num_seqs),
            fp8_room: Mutex::default(),
            prompt_form: None,
            prompt_forms: HashMap::new(),
            shares_prefixes: None,
            rotation: None,
            forms_of_heads: HashMap::new(),
        })
    }

    /// The device.
    #[must_use]
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// The device, to time what it does.
    pub fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Notes a weight whose products' forms are to be tried.
    fn note(&self, matrix: &CudaMatrix<D::Memory>) {
        let kind = WeightKind::of(matrix.scales);
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        weights.insert((matrix.n, matrix.k, kind));
    }

    fn partial_places(&self) -> Option<[DevicePointer; 2]> {
        self.partials.as_ref().map(|known| [known.partials, known.tickets])
    }

    /// Makes room for the partial results of the largest step, if it is not too much.
    fn make_room(
        &mut self,
        params: &AttentionParams,
        limits: &StepLimits,
    ) -> Result<AttentionRoom, KernelError> {
        let head_dim = params.head_dim;
        let of_sequence = AttentionPlan::most_partials(params, limits.max_model_len);
        let enough = PARTIAL_BYTES / AttentionPlan::partial_bytes(head_dim, 1);
        let max = (limits.max_num_seqs * of_sequence).min(enough.max(2 * of_sequence));
        let mut bytes = AttentionPlan::partial_bytes(head_dim, max);
        let mut num_tickets = AttentionPlan::most_tickets(params, limits.max_num_seqs);
        let has_room =
            |known: &Partials<_>| known.bytes >= bytes && known.num_tickets >= num_tickets;
        if !self.partials.as_ref().is_some_and(has_room) {
            if let Some(known) = &self.partials {
                bytes = bytes.max(known.bytes);
                num_tickets = num_tickets.max(known.num_tickets);
            }
            let what = "attention's partial results";
            let memory = [
                self.driver.allocate(bytes, what)?,
                self.driver.allocate(num_tickets * size_of::<u32>(), what)?,
            ];
            let [partials, tickets] = [0, 1].map(|i| self.driver.address(&memory[i]));
            self.partials =
                Some(Partials { bytes, num_tickets, partials, tickets, _memory: memory });
        }
        let multiprocessors = self.driver.multiprocessors();
        Ok(AttentionRoom { max_partials: max, multiprocessors, max_decodes: usize::MAX })
    }
}

impl<D: Driver> Device for Cuda<D> {
    type Buffer = CudaBuffer<D::Memory>;
    type Matrix = CudaMatrix<D::Memory>;
    type Vector = CudaVector<D::Memory>;
    type KvCache = CudaKvCache<D::Memory>;
    type Step = CudaStep<D::Memory>;
    type Routes = CudaRoutes<D::Memory>;
    type Graph = CudaGraph<D::Graph>;

    fn describe(&self) -> String {
        self.driver.describe()
    }

    fn setting(&self) -> Option<String> {
        Some(self.driver.setting())
    }

    fn try_forms(
        &mut self,
        heads: &[(usize, CacheDtype)],
        found: &mut Findings,
        keep: &mut dyn FnMut(&Findings),
    ) -> Result<(), KernelError> {
        // There is one form of products then.
        if !self.is_deterministic {
            let weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.try_products(&Vec::from_iter(weights), found, keep)?;
        }
        self.try_attention(heads, found, keep)?;
        self.try_prefixes(heads, found, keep)?;
        self.try_rotation(heads, found, keep)
    }

    /// Some chunks' time for each multiprocessor: what a launch and more partial results cost, and
    /// that no graph is replayed.
    fn least_shared(&self, attention: &AttentionKind, cache: CacheDtype) -> Option<usize> {
        const CHUNKS: usize = 8;
        let AttentionParams { num_heads, num_kv_heads, head_dim, mask, .. } = attention.params;
        let has_kernel = num_heads / num_kv_heads <= DECODE_ROWS
            && !matches!(mask, Mask::Sliding(_))
            && names::prefix_attention((self.dtype, cache), head_dim).is_some();
        let chunks = (CHUNKS * self.driver.multiprocessors()).div_ceil(num_kv_heads);
        (has_kernel && self.shares((head_dim, cache))).then_some(chunks * SharedPrefix::UNIT)
    }

    fn memory_info(&self) -> Result<Option<(usize, usize)>, KernelError> {
        self.driver.memory_info().map(Some)
    }

    fn buffer(&self, capacity: usize, cols: usize) -> Result<Self::Buffer, KernelError> {
        CudaBuffer::new(&self.driver, self.padded_rows(capacity), cols, self.dtype)
    }

    fn logits_buffer(
        &self,
        capacity: usize,
        vocab_size: usize,
    ) -> Result<Self::Buffer, KernelError> {
        CudaBuffer::new(&self.driver, self.padded_rows(capacity), vocab_size, Dtype::F32)
    }

    fn routes(&self, capacity: usize, routing: Routing) -> Result<Self::Routes, KernelError> {
        CudaRoutes::new(&self.driver, capacity, routing)
    }

    fn matrix(&self, parts: &[Tensor], dtype: WeightDtype) -> Result<Self::Matrix, KernelError> {
        if dtype == WeightDtype::Fp8E4m3 {
            let parts = parts.iter().map(Fp8Weight::quantize).collect::<Result<Vec<_>, _>>()?;
            return self.fp8_matrix(&parts);
        }
        if dtype != self.dtype.into() {
            return Err(KernelError::Unsupported {
                what: format!("weights of {dtype:?}"),
                device: "CUDA",
                accepted: "weights of the dtype it computes in, and in fp8, are",
            });
        }
        let matrix = CudaMatrix::new(&self.driver, parts, self.dtype)?;
        self.note(&matrix);
        Ok(matrix)
    }

    fn takes_fp8(&self) -> bool {
        true
    }

    fn fp8_matrix(&self, parts: &[Fp8Weight]) -> Result<Self::Matrix, KernelError> {
        let matrix = CudaMatrix::fp8(&self.driver, parts)?;
        self.make_fp8_room(matrix.n, matrix.k)?;
        self.note(&matrix);
        Ok(matrix)
    }

    fn matrix_bytes(&self, matrix: &Self::Matrix) -> usize {
        matrix.bytes
    }

    fn vector(&self, parts: &[Tensor]) -> Result<Self::Vector, KernelError> {
        CudaVector::new(&self.driver, parts)
    }

    fn kv_cache(
        &self,
        layout: &KvLayout,
        limits: &StepLimits,
    ) -> Result<Self::KvCache, KernelError> {
        if names::rope_and_cache((self.dtype, layout.dtype)).is_none() {
            return Err(KernelError::Unsupported {
                what: format!("a KV cache of {:?} beside {:?}", layout.dtype, self.dtype),
                device: "CUDA",
                accepted: "one of the dtype it computes in, or of fp8_e4m3, is",
            });
        }
        for layer in &layout.layers {
            if names::prefill_attention((self.dtype, layout.dtype), layer.head_dim).is_none() {
                return Err(KernelError::Unsupported {
                    what: format!("head_dim {}", layer.head_dim),
                    device: "CUDA",
                    accepted: "64, 80, 96, 128 and 256 are",
                });
            }
        }
        CudaKvCache::new(&self.driver, layout, limits)
    }

    fn step(
        &mut self,
        limits: &StepLimits,
        attention: &[AttentionKind],
    ) -> Result<Self::Step, KernelError> {
        let rooms = attention
            .iter()
            .map(|kind| Ok((*kind, self.make_room(&kind.params, limits)?)))
            .collect::<Result<Vec<_>, KernelError>>()?;
        CudaStep::new(&self.driver, limits, &rooms)
    }

    fn stage(
        &mut self,
        plan: &StepPlan,
        step: &mut Self::Step,
        cache: &mut Self::KvCache,
    ) -> Result<(), KernelError> {
        step.stage(&mut self.driver, plan, cache)
    }

    fn records(&self, step: &Self::Step) -> bool {
        step.records()
    }

    fn capture<T>(
        &mut self,
        step: &Self::Step,
        work: impl FnOnce(&mut Self) -> Result<T, KernelError>,
    ) -> Result<(Self::Graph, T), KernelError> {
        self.driver.begin_capture()?;
        let done = work(self);
        // Whatever came of the work, the device goes on to do what it is asked for.
        let recorded = self.driver.end_capture();
        let (done, recorded) = (done?, recorded?);
        let (places, partials) = (step.places.clone(), self.partial_places());
        Ok((CudaGraph { recorded, places, partials }, done))
    }

    fn replay(&mut self, graph: &Self::Graph, step: &Self::Step) -> Result<(), KernelError> {
        if graph.places != step.places || graph.partials != self.partial_places() {
            return Err(KernelError::Shape {
                op: "replay",
                what: "the staged step's lists",
                got: format!("at {:x?}", step.places),
                expected: format!("at {:x?}, as when it was recorded", graph.places),
            });
        }
        self.driver.replay(&graph.recorded)
    }

    fn read(&mut self, buffer: &Self::Buffer, rows: usize) -> Result<Vec<f32>, KernelError> {
        buffer.check("read", "the buffer", (rows, buffer.cols), buffer.dtype)?;
        let mut bytes = vec![0; rows * buffer.cols * buffer.dtype.size()];
        self.driver.download(&buffer.memory, &mut bytes)?;
        Ok(decode(&bytes, buffer.dtype))
    }

    fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
        self.driver.finish()
    }
}

impl<D: Driver> Sampler for Cuda<D> {
    fn sample(
        &mut self,
        logits: &mut Self::Buffer,
        requests: &[SampleRequest<'_>],
        out: &mut Vec<Sampled>,
    ) -> Result<(), KernelError> {
        let vocab_size = logits.cols;
        logits.check("sample", "logits", (requests.len(), vocab_size), Dtype::F32)?;
        self.sampling.sample(&mut self.driver, logits.address, vocab_size, requests, out)
    }

    fn overlaps(&self) -> bool {
        self.driver.overlaps()
    }

    fn end_step(
        &mut self,
        sampled: Option<(&mut Self::Buffer, &[SampleRequest<'_>])>,
    ) -> Result<(), KernelError> {
        const OP: &str = "end_step";
        let sampled = match sampled {
            None => None,
            Some((logits, requests)) => {
                logits.check(OP, "logits", (requests.len(), logits.cols), Dtype::F32)?;
                let slots = requests.iter().filter_map(|request| request.slot);
                below_in(OP, "a slot", slots.max(), self.sampling.max_rows)?;
                Some((logits.address, logits.cols, requests))
            }
        };
        self.sampling.end_step(&mut self.driver, sampled)
    }

    fn wait_step(&mut self, out: &mut Vec<Sampled>) -> Result<Option<Duration>, KernelError> {
        self.sampling.wait_step(&mut self.driver, out)
    }

    fn logprobs(
        &mut self,
        logits: &Self::Buffer,
        tokens: &[u32],
        num_top: &[u32],
        out: &mut Vec<Logprobs>,
    ) -> Result<(), KernelError> {
        const OP: &str = "logprobs";
        let vocab_size = logits.cols;
        logits.check(OP, "logits", (tokens.len(), vocab_size), Dtype::F32)?;
        if tokens.len() != num_top.len() {
            return Err(KernelError::Shape {
                op: OP,
                what: "num_top",
                got: num_top.len().to_string(),
                expected: format!("{} as tokens", tokens.len()),
            });
        }
        below_in(OP, "a token id", tokens.iter().copied().max(), vocab_size)?;
        let address = logits.address;
        self.sampling.logprobs(&mut self.driver, address, vocab_size, tokens, num_top, out)
    }
}
