//! Starting an engine: the one place where both halves are wired together.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sconce_engine::{
    Built, Engine, EngineHandle, EngineOptions, EngineRequest, PrefixKey, RecordSink, RequestError,
    SchedulerConfig, SchedulingPolicy, StartError, SubmitError,
};
use sconce_ledger::{Ledger, LedgerError};
use sconce_runner::{
    CacheDtype, DeviceChoice, Dtype, FormFault, Isa, LoadError, LoadOptions, LoadPhase, LoadTimes,
    ModelInfo, Quantization,
};
use sconce_server::{Generator, GrammarError, Refusal};
use sconce_text::{ReasoningFormat, TextConfig, TextError, TextModel, ToolFormat};
use sconce_types::{EmbeddingInfo, Executor, MeterSink, SamplingParams, Tenant};

use crate::{
    Builder, Completion, RecordingError, RecordingHead,
    hub::{self, HubError, HubOptions},
    null,
    recording::{Line, Recorder},
};

/// The largest chat template that is read.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;

/// What to start. The defaults suit a small model on a CPU.
#[derive(Clone, Debug)]
pub struct Options {
    /// A model directory, a GGUF file, a hub id, a known name, or `null`: no
    /// model at all, to measure everything else (`null:20ms`: with steps of that time).
    pub model: String,
    /// The name that requests and metrics use; the model's own if not given.
    pub served_model_name: Option<String>,
    /// Where models come from and are kept.
    pub hub: HubOptions,
    /// The chat template's file, if not the model's own.
    pub chat_template: Option<PathBuf>,
    /// The form of the model's calls of tools; found in its chat template if not given.
    pub tool_call_parser: Option<ToolFormat>,
    /// The form of its thoughts; found in its chat template if not given.
    pub reasoning_parser: Option<ReasoningFormat>,
    /// Where the model runs.
    pub device: DeviceChoice,
    /// The dtype it computes in; bf16 if not given.
    pub dtype: Option<Dtype>,
    /// How weights are quantized; if not given, they are not.
    pub quantization: Option<Quantization>,
    /// The dtype of the KV cache; `dtype` if not given.
    pub kv_cache_dtype: Option<CacheDtype>,
    /// Tokens of prompt and output; the model's own limit if not given.
    pub max_model_len: Option<usize>,
    /// Whether prompts that begin like earlier ones share what those computed.
    pub enable_prefix_caching: bool,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens computed in one step; a default for the device if not given.
    pub max_num_batched_tokens: Option<usize>,
    /// Requests that may wait beside those that run.
    pub max_num_queued_reqs: usize,
    /// The time between tokens that prefill leaves to decodes, if it is limited.
    pub target_itl: Option<Duration>,
    /// The longest that a request may wait for its prefill, if there is a limit.
    pub max_queue_wait: Option<Duration>,
    /// Whether a few steps are measured before the first request is taken.
    pub warm_up: bool,
    /// KV-cache memory in bytes; a default for the machine if not given.
    pub kv_cache_memory_bytes: Option<u64>,
    /// The share of a GPU's memory that everything together may take.
    pub gpu_memory_utilization: f64,
    /// Whether no decode steps are recorded as CUDA graphs on a GPU.
    pub enforce_eager: bool,
    /// Whether the first tokens that decodes have in common in the prefix cache are read once for
    /// all of them, where a GPU gains by it.
    pub cascade_attn: bool,
    /// The sequences of the decode steps that are recorded; if not given 1, 2, 4, 8 and every
    /// eighth up to `max_num_seqs`, at most 256.
    pub cuda_graph_sizes: Option<Vec<usize>>,
    /// Whether a step is launched on a GPU before the one before it is read back, which hides
    /// what the host does between steps.
    pub async_scheduling: bool,
    /// Threads that compute; one a core if not given.
    pub threads: Option<usize>,
    /// The highest level of a CPU's instructions to use; all that it has if not given.
    pub cpu_isa: Option<Isa>,
    /// Whether no token's numbers may depend on what is computed beside it, on a GPU at the
    /// cost of speed; on a CPU they never do.
    pub deterministic: bool,
    /// Whether a GPU's operations are tried by all their forms, when a model is first loaded on
    /// one of its kind, so that the fastest of those that are right are used.
    pub kernel_trials: bool,
    /// Whose request is admitted next.
    pub scheduling_policy: SchedulingPolicy,
    /// Who shares the engine.
    pub tenants: Vec<Tenant>,
    /// Where what each request used is kept, if it is.
    pub ledger: Option<PathBuf>,
    /// Where requests are recorded, if they are.
    pub record: Option<PathBuf>,
}

impl Options {
    /// The defaults for a model.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            served_model_name: None,
            hub: HubOptions::default(),
            chat_template: None,
            tool_call_parser: None,
            reasoning_parser: None,
            device: DeviceChoice::Auto,
            dtype: None,
            quantization: None,
            kv_cache_dtype: None,
            max_model_len: None,
            enable_prefix_caching: true,
            max_num_seqs: 256,
            max_num_batched_tokens: None,
            max_num_queued_reqs: 2048,
            target_itl: Some(EngineOptions::TARGET_ITL),
            max_queue_wait: None,
            warm_up: false,
            kv_cache_memory_bytes: None,
            gpu_memory_utilization: 0.9,
            enforce_eager: false,
            cascade_attn: true,
            cuda_graph_sizes: None,
            async_scheduling: true,
            threads: None,
            cpu_isa: None,
            deterministic: false,
            kernel_trials: true,
            scheduling_policy: SchedulingPolicy::Fair,
            tenants: vec![Tenant::sole()],
            ledger: None,
            record: None,
        }
    }
}

/// Told how far a start has come; `()` says nothing.
pub trait Progress: hub::Progress {
    /// So many of so many tensors are loaded.
    fn tensors(&self, loaded: usize, total: usize) {
        let _ = (loaded, total);
    }

    /// So many of so many decode steps are recorded as CUDA graphs.
    fn graphs(&self, recorded: usize, total: usize) {
        let _ = (recorded, total);
    }
}

impl Progress for () {}

/// Why Sconce did not start, or did not take a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be found or fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The tokenizer or chat template cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model could not be loaded, or the limits contradict each other.
    #[error(transparent)]
    Start(#[from] StartError<LoadError>),
    /// The ledger cannot be kept.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Requests cannot be recorded.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The engine refused a request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A request ended without finishing.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A request is not what it may be.
    #[error("{message}")]
    Invalid {
        /// The field at fault, with its place: `messages[1].calls[0].arguments`.
        field: Option<String>,
        /// What it is, and what would be accepted.
        message: String,
    },
    /// The form that a field of a request asks of its answer cannot be had.
    #[error("{field}: {reason}")]
    Form {
        /// The field.
        field: String,
        /// What is wrong with the form, and where.
        reason: GrammarError,
    },
    /// The model makes embeddings of texts.
    #[error("{0} makes embeddings and generates no text")]
    GeneratesNothing(String),
    /// The model generates text.
    #[error("{0} generates text and makes no embeddings")]
    MakesNoEmbeddings(String),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid { field, message } => Self::Invalid { field, message },
            Refusal::Form { field, reason } => Self::Form { field, reason },
            Refusal::Submit(error) => Self::Submit(error),
            Refusal::Request(error) => Self::Request(error),
        }
    }
}

/// What was started, for people to read.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The name that requests use.
    pub model_name: String,
    /// Where the model lies; empty for the null model.
    pub model_dir: PathBuf,
    /// The architecture's name.
    pub architecture: String,
    /// The device, in words.
    pub device: String,
    /// The dtype the model computes in; the null model computes nothing.
    pub dtype: Option<Dtype>,
    /// How weights are quantized, if they are.
    pub quantization: Option<Quantization>,
    /// The dtype of the KV cache; the null model has none.
    pub kv_cache_dtype: Option<CacheDtype>,
    /// Bytes of the matrices among the weights.
    pub weight_bytes: usize,
    /// Tokens of prompt and output.
    pub max_model_len: usize,
    /// Tokens that the KV cache holds.
    pub kv_cache_tokens: usize,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: usize,
    /// How long each phase of loading took.
    pub load_times: LoadTimes,
    /// Decode steps that were recorded as CUDA graphs.
    pub num_graphs: usize,
    /// What measures the device's energy, or why nothing does.
    pub energy: String,
    /// What it makes of texts, if it makes embeddings and generates nothing.
    pub embedding: Option<EmbeddingInfo>,
}

impl Summary {
    /// What else than a request its tokens follow from.
    #[must_use]
    pub fn recording_head(&self) -> RecordingHead {
        let Self { dtype, quantization, kv_cache_dtype, .. } = self;
        let device = self.device.split(',').next().unwrap_or_default();
        let computed_in = format!("{device}, {dtype:?}, {quantization:?}, {kv_cache_dtype:?}");
        RecordingHead::new(&self.model_name, computed_in)
    }
}

/// A chat template is a file of some kilobytes: reading a pipe would block, and a device
/// may have no end.
fn check_template(path: &Path) -> Result<(), TextError> {
    let invalid =
        |reason: &str| Err(TextError::Invalid { path: path.to_owned(), reason: reason.to_owned() });
    match path.metadata() {
        Err(source) => Err(TextError::Io { path: path.to_owned(), source }),
        Ok(found) if !found.is_file() => invalid("a chat template must be a regular file"),
        Ok(found) if found.len() > MAX_TEMPLATE_BYTES => invalid("too large for a chat template"),
        Ok(_) => Ok(()),
    }
}

/// What whoever built the executor tells of it.
pub(crate) struct Loaded {
    pub(crate) architecture: String,
    pub(crate) device: String,
    pub(crate) dtype: Option<Dtype>,
    pub(crate) quantization: Option<Quantization>,
    pub(crate) kv_cache_dtype: Option<CacheDtype>,
    pub(crate) weight_bytes: usize,
    pub(crate) kv_cache_bytes: usize,
    pub(crate) load_times: LoadTimes,
    pub(crate) num_graphs: usize,
    pub(crate) energy: String,
    pub(crate) embedding: Option<EmbeddingInfo>,
    pub(crate) form_faults: Vec<FormFault>,
}

impl From<ModelInfo> for Loaded {
    fn from(info: ModelInfo) -> Self {
        Self {
            architecture: info.architecture,
            device: info.device,
            dtype: Some(info.dtype),
            quantization: info.quantization,
            kv_cache_dtype: info.embedding.is_none().then_some(info.kv_cache_dtype),
            weight_bytes: info.weight_bytes,
            kv_cache_bytes: info.kv_cache_bytes,
            load_times: info.load_times,
            num_graphs: info.num_graphs,
            energy: info.energy,
            embedding: info.embedding,
            form_faults: info.form_faults,
        }
    }
}

/// A running engine with its tokenizer. Dropping it, once every
/// [`EngineHandle`] cloned from it is dropped too, ends the engine's thread.
pub struct Sconce {
    handle: EngineHandle,
    text: Arc<TextModel>,
    generator: Generator,
    summary: Summary,
}

impl Sconce {
    /// What to start, set one after another.
    pub fn builder(model: impl Into<String>) -> Builder {
        Builder::new(model)
    }

    /// Fetches the model if need be, loads it, and starts the engine.
    ///
    /// # Errors
    /// What stands in the way, in the user's terms.
    pub fn start<P>(options: &Options, progress: &P) -> Result<Self, Error>
    where
        P: Progress + Clone + Send + 'static,
    {
        if let Some(step_time) = null::step_time(&options.model) {
            let (text, built_from) = (TextModel::bytes(), options.clone());
            let model_name = options.served_model_name.as_deref().unwrap_or(null::NAME).to_owned();
            let build = move || Ok(null::build(&built_from, step_time));
            return Self::start_engine(options, model_name, PathBuf::new(), text, build);
        }
        if let Some(path) = &options.chat_template {
            check_template(path)?;
        }
        let found = hub::resolve(&options.model, &options.hub, progress)?;
        let text_config = TextConfig { chat_template: options.chat_template.clone() };
        let text = TextModel::load(&found.path, &text_config)?;
        for fault in text.chat_template_faults() {
            tracing::warn!("chat requests will fail with conversations of {fault}");
        }
        let model_name = options.served_model_name.clone().unwrap_or_else(|| found.name.clone());
        let mut load_options = LoadOptions {
            dir: found.path.clone(),
            device: options.device,
            dtype: options.dtype,
            quantization: options.quantization,
            kv_cache_dtype: options.kv_cache_dtype,
            max_model_len: options.max_model_len,
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: options.max_num_batched_tokens,
            kv_cache_memory_bytes: options.kv_cache_memory_bytes,
            gpu_memory_utilization: options.gpu_memory_utilization,
            enforce_eager: options.enforce_eager,
            cascade_attn: options.cascade_attn,
            cuda_graph_sizes: options.cuda_graph_sizes.clone(),
            async_scheduling: options.async_scheduling,
            threads: options.threads,
            cpu_isa: options.cpu_isa,
            deterministic: options.deterministic,
            forms_dir: options.kernel_trials.then(|| options.hub.forms_dir()),
        };
        let (max_queued, policy) = (options.max_num_queued_reqs, options.scheduling_policy);
        let prefix_cache = options.enable_prefix_caching.then(|| PrefixKey(rand::random()));
        let progress = progress.clone();
        Self::start_engine(options, model_name, found.path, text, move || {
            let loaded = sconce_runner::load(&load_options, &mut |phase, done, all| match phase {
                LoadPhase::Tensors => progress.tensors(done, all),
                LoadPhase::Graphs => progress.graphs(done, all),
            })?;
            let ModelInfo { max_num_batched_tokens, max_model_len, num_blocks, groups, .. } =
                loaded.info;
            // If it has to be loaded again, then with a cache of the same size.
            load_options.kv_cache_memory_bytes = Some(loaded.info.kv_cache_bytes as u64);
            let config = SchedulerConfig {
                max_num_seqs: load_options.max_num_seqs,
                max_num_batched_tokens,
                max_model_len,
                num_blocks,
                groups,
                depth: loaded.runner.depth(),
                max_queued,
                // An encoder keeps nothing of a text that another could begin with.
                prefix_cache: prefix_cache.filter(|_| loaded.info.embedding.is_none()),
                policy,
            };
            let vocab_size = loaded.info.vocab_size;
            let info = Loaded::from(loaded.info);
            Ok(Built { executor: loaded.runner, energy: loaded.meter, config, vocab_size, info })
        })
    }

    fn start_engine<E: Executor>(
        options: &Options,
        model_name: String,
        model_dir: PathBuf,
        text: TextModel,
        build: impl FnMut() -> Result<Built<E, Loaded>, LoadError> + Send + 'static,
    ) -> Result<Self, Error> {
        let sink = options.ledger.as_deref().map(|path| -> Result<_, LedgerError> {
            let sink = Ledger::open(path, &model_name)?.sink()?;
            Ok(Box::new(sink) as Box<dyn MeterSink>)
        });
        let recorder = options.record.as_deref().map(Recorder::create).transpose()?;
        let (recorder, recording) = recorder.unzip();
        let engine_options = EngineOptions::new(&model_name)
            .tenants(options.tenants.clone())
            .target_itl(options.target_itl)
            .max_queue_wait(options.max_queue_wait)
            .warm_up(options.warm_up)
            .sink(sink.transpose()?)
            .recorder(recorder.map(|recorder| Box::new(recorder) as Box<dyn RecordSink>));
        let (_, handle, loaded) = Engine::start(engine_options, build)?;
        for FormFault { operation, form, .. } in &loaded.form_faults {
            handle.metrics().unused_form(operation, form);
        }
        let limits = *handle.limits();
        text.check_fits(limits.vocab_size)?;
        let summary = Summary {
            model_name,
            model_dir,
            architecture: loaded.architecture,
            device: loaded.device,
            dtype: loaded.dtype,
            quantization: loaded.quantization,
            kv_cache_dtype: loaded.kv_cache_dtype,
            weight_bytes: loaded.weight_bytes,
            max_model_len: limits.scheduler.max_model_len,
            kv_cache_tokens: limits.scheduler.kv_cache_tokens(),
            kv_cache_bytes: loaded.kv_cache_bytes,
            load_times: loaded.load_times,
            num_graphs: loaded.num_graphs,
            energy: loaded.energy,
            embedding: loaded.embedding,
        };
        if let Some(recording) = recording {
            // A thread that could not write has said so.
            let _ = recording.send(Line::Head(summary.recording_head()));
        }
        let text = Arc::new(text);
        let (tools, reasoning) = (options.tool_call_parser, options.reasoning_parser);
        let generator = Generator::new(handle.clone(), Arc::clone(&text), tools, reasoning);
        Ok(Self { handle, text, generator, summary })
    }

    /// The way into the engine, for token ids.
    #[must_use]
    pub fn engine(&self) -> &EngineHandle {
        &self.handle
    }

    /// The tokenizer and chat template.
    #[must_use]
    pub fn text(&self) -> &Arc<TextModel> {
        &self.text
    }

    /// What answers conversations and makes embeddings.
    pub(crate) fn generator(&self) -> &Generator {
        &self.generator
    }

    /// What was started.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Completes a prompt. The model's end tokens end it, unless `params` names
    /// others.
    ///
    /// # Errors
    /// A prompt or parameters that cannot run.
    pub fn complete(&self, prompt: &str, params: SamplingParams) -> Result<Completion, Error> {
        self.check_generates()?;
        let prompt = self.text.encode(prompt, true)?;
        self.submit(prompt, params)
    }

    /// Answers a conversation of `(role, content)` through the chat template, as the text that
    /// the model writes; [`Sconce::answer`] tells thoughts and calls of tools from it.
    ///
    /// # Errors
    /// A model without a chat template, messages it refuses, parameters that
    /// cannot run.
    pub fn chat(
        &self,
        messages: &[(&str, &str)],
        params: SamplingParams,
    ) -> Result<Completion, Error> {
        self.check_generates()?;
        let messages: Vec<_> = messages
            .iter()
            .map(|(role, content)| serde_json::json!({ "role": role, "content": content }))
            .collect();
        let prompt = self.text.apply_chat_template(&messages, &Default::default())?;
        let prompt = self.text.encode(&prompt, false)?;
        self.submit(prompt, params)
    }

    /// # Errors
    /// The model makes embeddings.
    pub(crate) fn check_generates(&self) -> Result<(), Error> {
        match &self.summary.embedding {
            None => Ok(()),
            Some(_) => Err(Error::GeneratesNothing(self.summary.model_name.clone())),
        }
    }

    fn submit(&self, prompt: Vec<u32>, mut params: SamplingParams) -> Result<Completion, Error> {
        if params.eos_token_ids.is_empty() {
            params.eos_token_ids = self.text.eos_token_ids();
        }
        let detokenizer = self.text.detokenizer(&prompt, true);
        let stream = self.handle.submit(EngineRequest::new(prompt, params))?;
        Ok(Completion::new(stream, detokenizer))
    }
}
