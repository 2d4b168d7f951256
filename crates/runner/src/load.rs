//! From a model directory to a ready runner.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use sconce_kernels::{
    BLOCK_SIZE, Backend, CacheDtype, Dtype, KernelError, StepLimits, WeightDtype,
    cpu::{Cpu, CpuConfig, Isa},
};
use sconce_models::{Checkpoint, EncoderCheckpoint, Loaded, ModelSpec, WeightDtypes};
use sconce_types::{CacheGroups, EmbeddingInfo, EnergyMeter, Executor};

use crate::{
    DeviceChoice, LoadError, LoadOptions, ModelRunner, Quantization, encoder,
    energy::Energy,
    forms::{self, Examined, FormFault},
    forward::Forward,
    graphs,
    kv_plan::KvPlan,
    memory,
    out_of_memory::{self, Stage},
    prefixes::Prefixes,
};

/// Kernels and the scheduler count the same blocks.
const _: () = assert!(BLOCK_SIZE == sconce_types::BLOCK_SIZE);

/// A model that is ready to run.
pub struct LoadedModel<E = Box<dyn Executor>> {
    /// The executor.
    pub runner: E,
    /// Measures the device's energy, where that can be measured.
    pub meter: Option<Box<dyn EnergyMeter>>,
    /// What is known of it.
    pub info: ModelInfo,
}

/// What is known of a model that was loaded.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The device, in words.
    pub device: String,
    /// The architecture's name.
    pub architecture: String,
    /// The dtype it computes in.
    pub dtype: Dtype,
    /// How weights are quantized, if they are.
    pub quantization: Option<Quantization>,
    /// The dtype of the KV cache.
    pub kv_cache_dtype: CacheDtype,
    /// Bytes of the matrices among the weights.
    pub weight_bytes: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Tokens of prompt and output.
    pub max_model_len: usize,
    /// Tokens computed in one step.
    pub max_num_batched_tokens: usize,
    /// Blocks in the KV cache.
    pub num_blocks: usize,
    /// What the cache's layers keep of a context.
    pub groups: CacheGroups,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: usize,
    /// How long each phase of loading took.
    pub load_times: LoadTimes,
    /// Decode steps that were recorded as CUDA graphs.
    pub num_graphs: usize,
    /// What measures the device's energy, or why nothing does, in words.
    pub energy: String,
    /// What it makes of texts, if it makes embeddings and generates nothing; it has no KV
    /// cache then.
    pub embedding: Option<EmbeddingInfo>,
    /// Forms of operations that the device does not compute right.
    pub form_faults: Vec<FormFault>,
}

/// Where the time of loading went.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadTimes {
    /// Starting the device.
    pub device: Duration,
    /// Reading the weights, packing or uploading them.
    pub weights: Duration,
    /// Finding out what a step takes, and allocating the KV cache.
    pub cache: Duration,
    /// Recording decode steps as CUDA graphs.
    pub graphs: Duration,
}

/// What loading is at, with how many of how many are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadPhase {
    /// Reading the weights' tensors.
    Tensors,
    /// Recording decode steps as CUDA graphs.
    Graphs,
}

impl LoadTimes {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.device + self.weights + self.cache + self.graphs
    }
}

impl<E: Executor + 'static> LoadedModel<E> {
    fn measured_by(self, energy: Energy) -> LoadedModel {
        LoadedModel {
            runner: Box::new(self.runner),
            meter: energy.meter,
            info: ModelInfo { energy: energy.description, ..self.info },
        }
    }
}

/// Loads a model onto the device that the options choose, an encoder onto the CPU, and
/// allocates all it will ever need.
///
/// `progress` is told what loading is at, and how many of how many are done.
///
/// # Errors
/// A checkpoint that cannot be used, limits that do not fit it, no device, no memory.
pub fn load(
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadPhase, usize, usize),
) -> Result<LoadedModel, LoadError> {
    if let Some(checkpoint) = EncoderCheckpoint::open(&options.dir)? {
        let loaded = encoder::load(options, &checkpoint, progress)?;
        return Ok(loaded.measured_by(Energy::of_cpu()));
    }
    match options.device {
        DeviceChoice::Cpu => on_cpu(options, progress),
        DeviceChoice::Cuda => cuda::load(options, progress),
        DeviceChoice::Auto => match cuda::load(options, progress) {
            Err(LoadError::NoDevice { reason }) => {
                tracing::info!("running on the CPU: {reason}");
                on_cpu(options, progress)
            }
            other => other,
        },
    }
}

fn on_cpu(
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadPhase, usize, usize),
) -> Result<LoadedModel, LoadError> {
    let loaded = load_on_cpu(options, progress)?;
    Ok(loaded.measured_by(Energy::of_cpu()))
}

/// Loads a model onto the CPU, without what measures its energy.
///
/// # Errors
/// As [`load`].
pub fn load_on_cpu(
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadPhase, usize, usize),
) -> Result<LoadedModel<ModelRunner<Cpu>>, LoadError> {
    let config = CpuConfig { threads: options.threads, isa: options.cpu_isa.map(Isa::or_lower) };
    let mut device = String::new();
    let make = |dtype: Dtype, _: StepLimits| {
        let cpu = Cpu::new(config);
        let weights = weight_dtype(options.quantization, dtype);
        device = cpu.describe_for(weights);
        let isa = cpu.isa();
        // What was asked for needs no advice.
        if weights == WeightDtype::Bf16 && options.dtype.is_none() && !isa.has_bf16() {
            let int8 = if isa.has_int8() { "; --quantization int8 is faster here" } else { "" };
            tracing::info!(
                "{} has no bf16 instructions: bfloat16 weights are widened to float32 as they \
                 are used, which is exact, and computed as float32{int8}",
                isa.name()
            );
        }
        Ok(cpu)
    };
    let loaded = load_on(options, 512, make, progress)?;
    Ok(LoadedModel { info: ModelInfo { device, ..loaded.info }, ..loaded })
}

/// What weights of layers become of a model that computes in this dtype.
fn weight_dtype(quantization: Option<Quantization>, dtype: Dtype) -> WeightDtype {
    match quantization {
        None => dtype.into(),
        Some(Quantization::Int8) => WeightDtype::Int8,
        Some(Quantization::Fp8) => WeightDtype::Fp8E4m3,
    }
}

/// How weights are quantized on a device: as asked for, or as the checkpoint holds them, if the
/// device computes with such weights; else they are widened.
fn quantization<B: Backend + 'static>(
    backend: &B,
    options: &LoadOptions,
    checkpoint: &Checkpoint<B>,
) -> Result<Option<Quantization>, LoadError> {
    match options.quantization {
        Some(Quantization::Fp8) if !backend.takes_fp8() => {
            Err(LoadError::Kernel(no_fp8_on_a_cpu()))
        }
        None if checkpoint.is_fp8() && backend.takes_fp8() => Ok(Some(Quantization::Fp8)),
        None if checkpoint.is_fp8() => {
            tracing::info!("weights in fp8 are widened: this device does not compute with them");
            Ok(None)
        }
        asked => Ok(asked),
    }
}

/// What `--quantization fp8` gets there.
pub(crate) fn no_fp8_on_a_cpu() -> KernelError {
    KernelError::Unsupported {
        what: "--quantization fp8".to_owned(),
        device: "a CPU",
        accepted: "--quantization int8 is",
    }
}

/// Tries the forms of a GPU's operations, those that its folder knows or usual ones, whether or
/// not they were tried before, and keeps what came of it.
///
/// # Errors
/// There is no GPU, or none that can be used.
pub fn examine(folder: &Path) -> Result<Examined, LoadError> {
    cuda::examine(folder)
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::path::Path;

    use sconce_kernels::{
        Dtype, KernelError, StepLimits,
        cuda::{Cuda, CudaDriver, Driver as _},
    };

    use super::{
        Energy, Examined, LoadError, LoadOptions, LoadPhase, LoadedModel, Stage, forms, load_on,
        out_of_memory,
    };

    fn open() -> Result<CudaDriver, LoadError> {
        CudaDriver::new(0).map_err(|error| match error {
            KernelError::NoDevice { reason } => LoadError::NoDevice { reason },
            error => LoadError::Device { error },
        })
    }

    pub(super) fn examine(folder: &Path) -> Result<Examined, LoadError> {
        let driver = open()?;
        let device = driver.describe();
        // As many rows as products are tried by.
        let limits =
            StepLimits { max_num_batched_tokens: 1024, max_num_seqs: 16, max_model_len: 16 };
        let mut cuda = Cuda::new(driver, Dtype::Bf16, limits)?;
        let (before, found, error) = forms::try_again(&mut cuda, folder);
        Ok(Examined { device, before, found, error })
    }

    pub(super) fn load(
        options: &LoadOptions,
        progress: &mut dyn FnMut(LoadPhase, usize, usize),
    ) -> Result<LoadedModel, LoadError> {
        let mut uuid = None;
        let make = |dtype, limits| {
            let driver = open()?;
            uuid = driver.uuid();
            let memory = driver.memory_info().ok();
            Cuda::new(driver, dtype, limits)
                .map(|cuda| cuda.deterministic(options.deterministic))
                .map_err(|error| out_of_memory::explain(error.into(), memory, &Stage::Device))
        };
        let loaded = load_on(options, 2048, make, progress)?;
        Ok(loaded.measured_by(Energy::of_gpu(uuid.as_deref())))
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use std::path::Path;

    use super::{Examined, LoadError, LoadOptions, LoadPhase, LoadedModel};

    fn missing() -> LoadError {
        let reason = "this build has no CUDA in it (cargo build --features cuda)".to_owned();
        LoadError::NoDevice { reason }
    }

    pub(super) fn load(
        _: &LoadOptions,
        _: &mut dyn FnMut(LoadPhase, usize, usize),
    ) -> Result<LoadedModel, LoadError> {
        Err(missing())
    }

    pub(super) fn examine(_: &Path) -> Result<Examined, LoadError> {
        Err(missing())
    }
}

/// Loads a model onto the backend that `make` gives for a dtype and limits, with steps
/// of `max_num_batched_tokens` unless the options say otherwise.
///
/// # Errors
/// As [`load`].
pub fn load_on<B: Backend + 'static>(
    options: &LoadOptions,
    max_num_batched_tokens: usize,
    make: impl FnOnce(Dtype, StepLimits) -> Result<B, LoadError>,
    progress: &mut dyn FnMut(LoadPhase, usize, usize),
) -> Result<LoadedModel<ModelRunner<B>>, LoadError> {
    options.check()?;
    let max_num_batched_tokens = options.max_num_batched_tokens.unwrap_or(max_num_batched_tokens);
    let checkpoint = Checkpoint::open(&options.dir)?;
    let limit = checkpoint.max_positions();
    let max_model_len = options.max_model_len.unwrap_or(limit);
    if max_model_len > limit {
        return Err(LoadError::MaxModelLen { asked: max_model_len, limit });
    }
    let dtype = options.dtype.unwrap_or(Dtype::Bf16);
    let max_num_seqs = options.max_num_seqs;
    let mut times = LoadTimes::default();
    let mut phase_started = Instant::now();
    let mut end_phase = |phase: &mut Duration| {
        *phase = phase_started.elapsed();
        phase_started = Instant::now();
    };
    let limits = StepLimits { max_num_batched_tokens, max_num_seqs, max_model_len };
    let backend = make(dtype, limits)?;
    end_phase(&mut times.device);
    let quantization = quantization(&backend, options, &checkpoint)?;
    let device = backend.describe();
    let checkpoint_bytes = out_of_memory::checkpoint_bytes(&options.dir);
    let mut at = (Stage::Weights { checkpoint_bytes }, backend.memory_info()?);
    let asked = Asked { options, checkpoint: &checkpoint, dtype, quantization, limits };
    let placed = place(backend, &asked, &mut at, progress, || end_phase(&mut times.weights))
        .map_err(|error| out_of_memory::explain(error, at.1, &at.0))?;
    let Placed { mut forward, spec, weight_bytes, kv, mut cache, depth, form_faults } = placed;
    end_phase(&mut times.cache);
    let num_graphs = record(&mut forward, &mut cache, options, &limits, progress)?;
    end_phase(&mut times.graphs);
    if kv.num_padded > 0 {
        tracing::info!(
            "the KV cache's {} groups of layers leave {} of {} pages empty",
            kv.groups.len(),
            kv.num_padded,
            kv.num_padded + spec.cache_layers.len()
        );
    }
    let prefixes = Prefixes::new(shared_groups(&forward.backend, options, &kv));
    Ok(LoadedModel {
        runner: ModelRunner::new(forward, cache, max_num_seqs, kv.groups, depth, prefixes),
        meter: None,
        info: ModelInfo {
            device,
            architecture: checkpoint.architecture().to_owned(),
            dtype,
            quantization,
            kv_cache_dtype: kv.layout.dtype,
            weight_bytes,
            vocab_size: spec.vocab_size,
            max_model_len,
            max_num_batched_tokens,
            num_blocks: kv.layout.num_blocks,
            groups: kv.groups,
            kv_cache_bytes: kv.layout.num_blocks * kv.layout.block_bytes(),
            load_times: times,
            num_graphs,
            energy: "not measured".to_owned(),
            embedding: None,
            form_faults,
        },
    })
}

/// The cache groups in which it may pay that sequences share prefixes, and from how many tokens
/// on.
fn shared_groups<B: Backend>(backend: &B, options: &LoadOptions, kv: &KvPlan) -> Vec<(u32, usize)> {
    let groups = (0..).take(kv.groups.len()).filter(|_| options.cascade_attn);
    let least = |group: u32| {
        let kinds = kv.attention.iter().filter(|kind| kind.group == group as usize);
        kinds.filter_map(|kind| backend.least_shared(kind, kv.layout.dtype)).max()
    };
    groups.filter_map(|group| Some((group, least(group)?))).collect()
}

/// Records decode steps, unless that is not wanted, or the device records nothing; tells how
/// many.
fn record<B: Backend>(
    forward: &mut Forward<B>,
    cache: &mut B::KvCache,
    options: &LoadOptions,
    limits: &StepLimits,
    progress: &mut dyn FnMut(LoadPhase, usize, usize),
) -> Result<usize, LoadError> {
    let StepLimits { max_num_batched_tokens, max_num_seqs, .. } = *limits;
    let asked = options.cuda_graph_sizes.as_deref();
    let buckets = graphs::buckets(asked, max_num_seqs, max_num_batched_tokens)?;
    if options.enforce_eager {
        return Ok(0);
    }
    let mut progress = |done, all| progress(LoadPhase::Graphs, done, all);
    match forward.record(&buckets, cache, &mut progress) {
        Ok(num) => Ok(num),
        Err(error @ KernelError::Unsupported { .. }) => {
            tracing::warn!("decode steps are launched kernel by kernel: {error}");
            Ok(0)
        }
        Err(error) => Err(LoadError::Graphs { error }),
    }
}

/// What is placed on a device.
struct Asked<'a, B: Backend> {
    options: &'a LoadOptions,
    checkpoint: &'a Checkpoint<B>,
    dtype: Dtype,
    quantization: Option<Quantization>,
    limits: StepLimits,
}

/// All that a runner keeps on a device.
struct Placed<B: Backend> {
    forward: Forward<B>,
    spec: ModelSpec,
    weight_bytes: usize,
    kv: KvPlan,
    cache: B::KvCache,
    /// Steps in flight.
    depth: usize,
    form_faults: Vec<FormFault>,
}

/// Places weights, what a step computes in, and the KV cache on a device; `at` says how far
/// it came, with the free and total bytes when that began. `weights_are_loaded` is called in
/// between.
fn place<B: Backend + 'static>(
    mut backend: B,
    asked: &Asked<'_, B>,
    at: &mut (Stage, Option<(usize, usize)>),
    progress: &mut dyn FnMut(LoadPhase, usize, usize),
    weights_are_loaded: impl FnOnce(),
) -> Result<Placed<B>, LoadError> {
    let &Asked { options, checkpoint, dtype, quantization, limits } = asked;
    let StepLimits { max_num_batched_tokens, max_num_seqs, max_model_len } = limits;
    let dtypes = match quantization {
        Some(Quantization::Fp8) => WeightDtypes::fp8(dtype),
        _ => weight_dtype(quantization, dtype).into(),
    };
    let Loaded { model, spec, weight_bytes, warnings } =
        checkpoint.load(&backend, dtypes, max_model_len, &mut |done, all| {
            progress(LoadPhase::Tensors, done, all);
        })?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", options.dir.display());
    }
    let cache_dtype = options.kv_cache_dtype.unwrap_or(dtype.into());
    let depth = if options.async_scheduling && backend.overlaps() { 2 } else { 1 };
    let mut kv = KvPlan::new(&spec, cache_dtype, &limits, depth)?;
    let form_faults = match &options.forms_dir {
        Some(folder) => {
            let heads = kv.attention.iter().map(|kind| (kind.params.head_dim, cache_dtype));
            forms::choose(&mut backend, &Vec::from_iter(heads), folder)?
        }
        None => Vec::new(),
    };
    weights_are_loaded();
    let blocks_per_seq = kv.groups.peak_blocks(max_model_len, max_num_batched_tokens, depth);
    let needed_bytes = blocks_per_seq * kv.layout.block_bytes();
    let share = options.gpu_memory_utilization;
    let free = backend.memory_info()?;
    let room = match (options.kv_cache_memory_bytes, free) {
        (Some(asked), Some((free, _))) => (free as u64).saturating_sub(asked),
        _ => memory::free_below(&backend, share)?.unwrap_or(0).saturating_sub(needed_bytes as u64),
    };
    *at = (Stage::Step { room, spec: Box::new(spec.clone()), limits }, free);
    let mut forward = Forward::new(backend, model, &limits, &kv.attention)?;
    let measured = memory::profile_kv_memory(&mut forward, (&kv.layout, &limits), share)?;
    *at = (Stage::Cache, forward.backend.memory_info()?);
    kv.layout.num_blocks = memory::num_blocks(
        options.kv_cache_memory_bytes.or(measured),
        kv.layout.block_bytes(),
        blocks_per_seq.saturating_mul(max_num_seqs),
    );
    if kv.layout.num_blocks < blocks_per_seq {
        let tokens = kv.groups.tokens_in(kv.layout.num_blocks, max_num_batched_tokens, depth);
        return Err(LoadError::NoRoom { tokens, max_model_len, needed_bytes });
    }
    let cache = forward.backend.kv_cache(&kv.layout, &limits)?;
    Ok(Placed { forward, spec, weight_bytes, kv, cache, depth, form_faults })
}
