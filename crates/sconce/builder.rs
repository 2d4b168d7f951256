//! Options one after another, and a start.

use std::{path::PathBuf, time::Duration};

use sconce_engine::SchedulingPolicy;
use sconce_runner::{CacheDtype, DeviceChoice, Dtype, Isa, Quantization};
use sconce_types::Tenant;

use crate::{Error, Options, Progress, Sconce, hub::HubOptions};

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

/// Setters of options that have a value, and of those that may have none.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)* ; $($(#[$some_doc:meta])* $some:ident: $some_kind:ty,)*) => {
        $(
            $(#[$doc])*
            pub fn $name(mut self, $name: impl Into<$kind>) -> Self {
                self.options.$name = $name.into();
                self
            }
        )*
        $(
            $(#[$some_doc])*
            pub fn $some(mut self, $some: impl Into<$some_kind>) -> Self {
                self.options.$some = Some($some.into());
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
        hub: HubOptions,
        /// Where the model runs.
        device: DeviceChoice,
        /// Whether prompts that begin like earlier ones share what those computed.
        enable_prefix_caching: bool,
        /// Sequences that run at once.
        max_num_seqs: usize,
        /// Requests that may wait beside those that run.
        max_num_queued_reqs: usize,
        /// The share of a GPU's memory that everything together may take.
        gpu_memory_utilization: f64,
        /// Whose request is admitted next.
        scheduling_policy: SchedulingPolicy,
        /// Who shares the engine.
        tenants: Vec<Tenant>,
        ;
        /// The name that requests and metrics use.
        served_model_name: String,
        /// The chat template's file, if not the model's own.
        chat_template: PathBuf,
        /// The dtype that the model computes in.
        dtype: Dtype,
        /// How weights are quantized.
        quantization: Quantization,
        /// The dtype of the KV cache.
        kv_cache_dtype: CacheDtype,
        /// Tokens of prompt and output.
        max_model_len: usize,
        /// Tokens computed in one step.
        max_num_batched_tokens: usize,
        /// The time between tokens that prefill leaves to decodes.
        target_itl: Duration,
        /// The longest that a request may wait for its prefill.
        max_queue_wait: Duration,
        /// KV-cache memory in bytes.
        kv_cache_memory_bytes: u64,
        /// Threads that compute.
        threads: usize,
        /// The highest level of a CPU's instructions to use.
        cpu_isa: Isa,
        /// Where what each request used is kept.
        ledger: PathBuf,
        /// Where requests are recorded.
        record: PathBuf,
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
}
