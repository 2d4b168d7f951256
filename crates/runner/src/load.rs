//! From a model directory to a ready runner.

use std::time::{Duration, Instant};

use sconce_kernels::{
    AttentionKind, BLOCK_SIZE, Backend, CacheDtype, Dtype, KernelError, KvLayout, StepLimits,
    WeightDtype,
    cpu::{Cpu, CpuConfig, Isa},
};
use sconce_models::{Loaded, ModelConfig, ModelError, Workspace};
use sconce_types::Executor;

use crate::{
    DeviceChoice, LoadError, LoadOptions, ModelRunner, Quantization, energy::Energy, memory,
};

/// Kernels and the scheduler count the same blocks.
const _: () = assert!(BLOCK_SIZE == sconce_types::BLOCK_SIZE);

/// A model that is ready to run, and what a person should know of it.
pub struct LoadedModel<E = Box<dyn Executor>> {
    /// The executor.
    pub runner: E,
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
    /// Bytes of the KV cache.
    pub kv_cache_bytes: usize,
    /// How long each phase of loading took.
    pub load_times: LoadTimes,
    /// What measures the device's energy, or why nothing does, in words.
    pub energy: String,
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
}

impl LoadTimes {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.device + self.weights + self.cache
    }
}

impl<B: Backend + 'static> LoadedModel<ModelRunner<B>> {
    fn measured_by(self, energy: Energy) -> LoadedModel {
        LoadedModel {
            runner: Box::new(self.runner.measured_by(energy.meter)),
            energy: energy.description,
            device: self.device,
            architecture: self.architecture,
            dtype: self.dtype,
            quantization: self.quantization,
            kv_cache_dtype: self.kv_cache_dtype,
            weight_bytes: self.weight_bytes,
            vocab_size: self.vocab_size,
            max_model_len: self.max_model_len,
            max_num_batched_tokens: self.max_num_batched_tokens,
            num_blocks: self.num_blocks,
            kv_cache_bytes: self.kv_cache_bytes,
            load_times: self.load_times,
        }
    }
}

/// Loads a model onto the device that the options choose and allocates all it will
/// ever need.
///
/// `progress` is told the tensors loaded and their number.
///
/// # Errors
/// A checkpoint that cannot be used, limits that do not fit it, no device, no memory.
pub fn load(
    options: &LoadOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LoadedModel, LoadError> {
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
    progress: &mut dyn FnMut(usize, usize),
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
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LoadedModel<ModelRunner<Cpu>>, LoadError> {
    let config = CpuConfig { threads: options.threads, isa: options.cpu_isa.map(Isa::or_lower) };
    let mut device = String::new();
    let make = |dtype: Dtype, _: StepLimits| {
        let cpu = Cpu::new(config);
        let weights = weight_dtype(options, dtype);
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
    Ok(LoadedModel { device, ..loaded })
}

/// What weights become of a model that computes in this dtype.
fn weight_dtype(options: &LoadOptions, dtype: Dtype) -> WeightDtype {
    match options.quantization {
        None => dtype.into(),
        Some(Quantization::Int8) => WeightDtype::Int8,
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use sconce_kernels::{
        KernelError,
        cuda::{Cuda, CudaDriver},
    };

    use super::{Energy, LoadError, LoadOptions, LoadedModel, load_on};

    pub(super) fn load(
        options: &LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<LoadedModel, LoadError> {
        let mut uuid = None;
        let make = |dtype, limits| {
            let driver = CudaDriver::new(0).map_err(|error| match error {
                KernelError::NoDevice { reason } => LoadError::NoDevice { reason },
                error => LoadError::Device { error },
            })?;
            uuid = driver.uuid();
            Ok(Cuda::new(driver, dtype, limits)?)
        };
        let loaded = load_on(options, 2048, make, progress)?;
        Ok(loaded.measured_by(Energy::of_gpu(uuid.as_deref())))
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{LoadError, LoadOptions, LoadedModel};

    pub(super) fn load(
        _: &LoadOptions,
        _: &mut dyn FnMut(usize, usize),
    ) -> Result<LoadedModel, LoadError> {
        let reason = "this build has no CUDA in it (cargo build --features cuda)".to_owned();
        Err(LoadError::NoDevice { reason })
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
    progress: &mut dyn FnMut(usize, usize),
) -> Result<LoadedModel<ModelRunner<B>>, LoadError> {
    options.check()?;
    let max_num_batched_tokens = options.max_num_batched_tokens.unwrap_or(max_num_batched_tokens);
    let config = ModelConfig::read(&options.dir)?;
    let limit = config.max_position_embeddings;
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
    let mut backend = make(dtype, limits)?;
    end_phase(&mut times.device);
    let weight_dtype = weight_dtype(options, dtype);
    let Loaded { model, weight_bytes, warnings } =
        sconce_models::load(&options.dir, &config, &backend, weight_dtype, max_model_len, progress)
            .map_err(|error| short_of_memory(&backend, error.into()))?;
    for warning in warnings {
        tracing::warn!("{}: {warning}", options.dir.display());
    }
    end_phase(&mut times.weights);
    let shape = *model.shape();
    let heads = (shape.num_kv_heads, shape.head_dim);
    let cache_dtype = options.kv_cache_dtype.unwrap_or(dtype.into());
    let mut layout = KvLayout::uniform(shape.num_layers, 0, heads, cache_dtype);
    let mut workspace = Workspace::new(&backend, &shape, max_num_batched_tokens, max_num_seqs)
        .map_err(|error| short_of_memory(&backend, error.into()))?;
    let kind = AttentionKind { params: *model.attention(), group: 0 };
    let mut step =
        backend.step(&limits, &[kind]).map_err(|error| short_of_memory(&backend, error.into()))?;
    let measured = memory::left_for_cache(
        &mut backend,
        &*model,
        &mut workspace,
        &mut step,
        (&layout, &limits),
        options.gpu_memory_utilization,
    )
    .map_err(|error| short_of_memory(&backend, error.into()))?;
    let blocks_per_seq = limits.blocks_per_seq();
    layout.num_blocks = memory::num_blocks(
        options.kv_cache_memory_bytes.or(measured),
        layout.block_bytes(),
        blocks_per_seq.saturating_mul(max_num_seqs),
    );
    if layout.num_blocks < blocks_per_seq {
        return Err(LoadError::NoRoom {
            tokens: layout.num_blocks * BLOCK_SIZE,
            max_model_len,
            needed_bytes: blocks_per_seq * layout.block_bytes(),
        });
    }
    let cache = backend
        .kv_cache(&layout, &limits)
        .map_err(|error| short_of_memory(&backend, error.into()))?;
    end_phase(&mut times.cache);
    Ok(LoadedModel {
        device: backend.describe(),
        architecture: config.architecture.clone(),
        dtype,
        quantization: options.quantization,
        kv_cache_dtype: layout.dtype,
        weight_bytes,
        vocab_size: shape.vocab_size,
        max_model_len,
        max_num_batched_tokens,
        num_blocks: layout.num_blocks,
        kv_cache_bytes: layout.num_blocks * layout.block_bytes(),
        load_times: times,
        energy: "not measured".to_owned(),
        runner: ModelRunner::new(backend, model, (step, cache), workspace, max_num_seqs),
    })
}

/// An error, with what the device has where it had too little.
fn short_of_memory<B: Backend>(backend: &B, error: LoadError) -> LoadError {
    let (what, bytes) = match &error {
        LoadError::Kernel(KernelError::OutOfMemory { what, bytes })
        | LoadError::Model(ModelError::Kernel(KernelError::OutOfMemory { what, bytes })) => {
            (what.clone(), *bytes)
        }
        _ => return error,
    };
    match backend.memory_info() {
        Ok(Some((free, total))) => LoadError::NoMemory { what, bytes, free, total },
        _ => error,
    }
}
