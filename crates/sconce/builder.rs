//! Options one after another, and a start.

use std::{path::PathBuf, sync::Arc, time::Duration};

use sconce_engine::SchedulingPolicy;
use sconce_runner::{CacheDtype, DeviceChoice, Dtype, Isa, Quantization};
use sconce_text::{ReasoningFormat, ToolFormat};
use sconce_types::Tenant;

use crate::{
    Error, Options, Progress, Sconce,
    hub::{self, HubOptions},
};

/// [`Options`] that are set one after another.
///
/// ```no_run
/// # fn main() -> Result<(), sconce::Error> {
/// let sconce = sconce::Sconce::builder("smollm2-135m-instruct").max_model_len(4096).start()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is started before `start`"]
pub struct Builder {
    options: Options,
}

/// Setters of options; what they are given becomes the option's type.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $kind:ty => $of:expr,)*) => {
        $(
            $(#[$doc])*
            pub fn $name(mut self, $name: $kind) -> Self {
                self.options.$name = $of($name);
                self
            }
        )*
    };
}

impl Builder {
    pub(crate) fn new(model: impl Into<String>) -> Self {
        Self { options: Options::new(model) }
    }

    setters! {
        /// Where models come from and are kept.
        hub: HubOptions => std::convert::identity,
        /// Where the model runs.
        device: DeviceChoice => std::convert::identity,
        /// Whether prompts that begin like earlier ones share what those computed.
        enable_prefix_caching: bool => std::convert::identity,
        /// Sequences that run at once.
        max_num_seqs: usize => std::convert::identity,
        /// Requests that may wait beside those that run.
        max_num_queued_reqs: usize => std::convert::identity,
        /// The share of a GPU's memory that everything together may take.
        gpu_memory_utilization: f64 => std::convert::identity,
        /// Whether no decode steps are recorded as CUDA graphs on a GPU.
        enforce_eager: bool => std::convert::identity,
        /// Whether the first tokens that decodes have in common are read once for all of them,
        /// where a GPU gains by it.
        cascade_attn: bool => std::convert::identity,
        /// Whether a step is launched on a GPU before the one before it is read back.
        async_scheduling: bool => std::convert::identity,
        /// Whether no token's numbers may depend on what is computed beside it on a GPU.
        deterministic: bool => std::convert::identity,
        /// Whether a GPU's operations are tried by all their forms.
        kernel_trials: bool => std::convert::identity,
        /// Whose request is admitted next.
        scheduling_policy: SchedulingPolicy => std::convert::identity,
        /// Who shares the engine.
        tenants: Vec<Tenant> => std::convert::identity,
        /// The name that requests and metrics use.
        served_model_name: impl Into<String> => |value| Some(Into::into(value)),
        /// The chat template's file, if not the model's own.
        chat_template: impl Into<PathBuf> => |value| Some(Into::into(value)),
        /// The form of the model's calls of tools, if its chat template does not tell.
        tool_call_parser: ToolFormat => Some,
        /// The form of its thoughts, if its chat template does not tell.
        reasoning_parser: ReasoningFormat => Some,
        /// The dtype that the model computes in.
        dtype: Dtype => Some,
        /// How weights are quantized.
        quantization: Quantization => Some,
        /// The dtype of the KV cache.
        kv_cache_dtype: CacheDtype => Some,
        /// Tokens of prompt and output.
        max_model_len: usize => Some,
        /// Tokens computed in one step.
        max_num_batched_tokens: usize => Some,
        /// The time between tokens that prefill leaves to decodes.
        target_itl: Duration => Some,
        /// The longest that a request may wait for its prefill.
        max_queue_wait: Duration => Some,
        /// The sequences of the decode steps that are recorded as CUDA graphs on a GPU.
        cuda_graph_sizes: Vec<usize> => Some,
        /// KV-cache memory in bytes.
        kv_cache_memory_bytes: u64 => Some,
        /// Threads that compute.
        threads: usize => Some,
        /// The highest level of a CPU's instructions to use.
        cpu_isa: Isa => Some,
        /// Where what each request used is kept.
        ledger: impl Into<PathBuf> => |value| Some(Into::into(value)),
        /// Where requests are recorded.
        record: impl Into<PathBuf> => |value| Some(Into::into(value)),
    }

    /// What was set so far.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Loads the model and starts the engine.
    ///
    /// # Errors
    /// As [`Sconce::start`].
    pub fn start(self) -> Result<Sconce, Error> {
        self.start_with_progress(&())
    }

    /// The same, and tells how far it has come.
    ///
    /// # Errors
    /// As [`Sconce::start`].
    pub fn start_with_progress<P>(self, progress: &P) -> Result<Sconce, Error>
    where
        P: Progress + Clone + Send + 'static,
    {
        Sconce::start(&self.options, progress)
    }

    /// The same with a function that is told: what is done, how much of it, and of how much,
    /// which is 0 where it is not known.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), sconce::Error> {
    /// let sconce = sconce::Sconce::builder("smollm2-135m-instruct")
    ///     .start_with_callback(|stage, done, total| eprintln!("{stage:?}: {done} of {total}"))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Sconce::start`].
    pub fn start_with_callback<F>(self, callback: F) -> Result<Sconce, Error>
    where
        F: Fn(Stage, u64, u64) + Send + Sync + 'static,
    {
        self.start_with_progress(&Callback(Arc::new(callback)))
    }
}

/// What a start is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The model is fetched.
    Fetch(hub::Phase),
    /// Tensors are loaded.
    Tensors,
    /// Decode steps are recorded as CUDA graphs.
    Graphs,
}

#[derive(Clone)]
struct Callback(Arc<dyn Fn(Stage, u64, u64) + Send + Sync>);

impl hub::Progress for Callback {
    fn update(&self, phase: hub::Phase, done: u64, total: u64) {
        (self.0)(Stage::Fetch(phase), done, total);
    }
}

impl Progress for Callback {
    fn tensors(&self, loaded: usize, total: usize) {
        (self.0)(Stage::Tensors, loaded as u64, total as u64);
    }

    fn graphs(&self, recorded: usize, total: usize) {
        (self.0)(Stage::Graphs, recorded as u64, total as u64);
    }
}
