//! Flags that say what an engine is, named as in `vllm serve`.

use std::{path::PathBuf, time::Duration};

use sconce::{Isa, Options};

use crate::{
    flags::{
        CacheDtypeFlag, DeviceFlag, DtypeFlag, PolicyFlag, QuantizationFlag, cpu_isa, parse_bytes,
        parse_limit, parse_share,
    },
    pull::CacheArgs,
};

/// What model runs where, and within what limits.
#[derive(Debug, clap::Args)]
pub(crate) struct EngineArgs {
    /// A model directory, a GGUF file, a hub id, a known name, or null: no model, steps take no time
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    model_positional: Option<String>,
    /// The same, as a flag
    #[arg(long, default_value = "smollm2-135m-instruct")]
    model: String,
    /// Where the model runs
    #[arg(long, value_enum, default_value_t = DeviceFlag::Auto)]
    device: DeviceFlag,
    /// The dtype the model computes in
    #[arg(long, value_enum, default_value_t = DtypeFlag::Auto)]
    dtype: DtypeFlag,
    /// Quantize weights while loading [default: no]
    #[arg(long, short, value_enum)]
    quantization: Option<QuantizationFlag>,
    /// The dtype of the KV cache
    #[arg(long, value_enum, default_value_t = CacheDtypeFlag::Auto)]
    kv_cache_dtype: CacheDtypeFlag,
    /// Tokens of prompt and output together [default: the model's limit]
    #[arg(long)]
    max_model_len: Option<usize>,
    /// Prompts that begin like earlier ones share what those computed (the default)
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    enable_prefix_caching: bool,
    /// Every prompt is computed whole
    #[arg(long, overrides_with = "enable_prefix_caching")]
    no_enable_prefix_caching: bool,
    /// Sequences that run at once
    #[arg(long, default_value_t = 256)]
    max_num_seqs: usize,
    /// Tokens computed in one step [default: 512 on a CPU, 2048 on a GPU]
    #[arg(long)]
    max_num_batched_tokens: Option<usize>,
    /// Requests that may wait beside those that run
    #[arg(long, default_value_t = 2048)]
    max_num_queued_reqs: usize,
    /// Milliseconds between tokens that prefill leaves to decodes; inf for no limit
    #[arg(long, value_name = "MS", value_parser = parse_limit, default_value = "250")]
    target_itl_ms: f64,
    /// Seconds that a request may wait for its prefill, else it is refused; inf for no limit
    #[arg(long, value_name = "SECONDS", value_parser = parse_limit, default_value = "30")]
    max_queue_wait: f64,
    /// On a GPU compute products in tiles of 128 rows, so that no answer depends on what is
    /// computed beside it: prompts take about 1.6 times as long, decodes 1.1 times. On a CPU no
    /// answer ever does
    #[arg(long)]
    deterministic: bool,
    /// On a GPU compute every product by cuBLAS, without trying at the first start which forms
    /// are right and fastest
    #[arg(long)]
    no_kernel_trials: bool,
    /// Whose request is admitted next
    #[arg(long, value_enum, default_value_t = PolicyFlag::Fair)]
    scheduling_policy: PolicyFlag,
    /// KV-cache memory, in bytes or with a suffix such as 512M or 4G [default: for this machine]
    #[arg(long, value_parser = parse_bytes)]
    kv_cache_memory_bytes: Option<u64>,
    /// The share of a GPU's memory that weights, KV cache and everything else may take
    #[arg(long, value_parser = parse_share, default_value_t = 0.9)]
    gpu_memory_utilization: f64,
    /// Launch each kernel of a decode step by itself on a GPU: record no CUDA graphs
    #[arg(long)]
    enforce_eager: bool,
    /// On a GPU have each decode read all of its context, also the first tokens that it has in
    /// common with others in the prefix cache
    #[arg(long)]
    disable_cascade_attn: bool,
    /// Sequences of the decode steps that are recorded as CUDA graphs on a GPU, such as 1,2,4,8
    /// [default: 1,2,4,8 and every eighth up to --max-num-seqs, at most 256]
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    cuda_graph_sizes: Option<Vec<usize>>,
    /// On a GPU launch each step before the one before it is read back (the default)
    #[arg(long, overrides_with = "no_async_scheduling")]
    async_scheduling: bool,
    /// One step at a time, each launched once the one before it is read back
    #[arg(long, overrides_with = "async_scheduling")]
    no_async_scheduling: bool,
    /// A chat template's file, instead of the model's own
    #[arg(long)]
    chat_template: Option<PathBuf>,
    /// Threads that compute [default: one a core]
    #[arg(long)]
    threads: Option<usize>,
    /// Use no CPU instructions above this level [default: all that the processor has]
    #[arg(long, value_parser = cpu_isa(), env = "SCONCE_CPU_ISA")]
    cpu_isa: Option<Isa>,
    #[command(flatten)]
    cache: CacheArgs,
}

impl EngineArgs {
    pub(crate) fn options(&self) -> Options {
        let model = self.model_positional.as_ref().unwrap_or(&self.model);
        Options {
            hub: self.cache.hub_options(),
            chat_template: self.chat_template.clone(),
            device: self.device.choice(),
            dtype: self.dtype.dtype(),
            quantization: self.quantization.map(QuantizationFlag::quantization),
            kv_cache_dtype: self.kv_cache_dtype.dtype(),
            max_model_len: self.max_model_len,
            enable_prefix_caching: self.enable_prefix_caching || !self.no_enable_prefix_caching,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_num_queued_reqs: self.max_num_queued_reqs,
            // `inf` does not fit a Duration and becomes None: no limit.
            target_itl: Duration::try_from_secs_f64(self.target_itl_ms * 1e-3).ok(),
            max_queue_wait: Duration::try_from_secs_f64(self.max_queue_wait).ok(),
            kv_cache_memory_bytes: self.kv_cache_memory_bytes,
            gpu_memory_utilization: self.gpu_memory_utilization,
            enforce_eager: self.enforce_eager,
            cascade_attn: !self.disable_cascade_attn,
            cuda_graph_sizes: self.cuda_graph_sizes.clone(),
            async_scheduling: self.async_scheduling || !self.no_async_scheduling,
            threads: self.threads,
            cpu_isa: self.cpu_isa,
            deterministic: self.deterministic,
            kernel_trials: !self.no_kernel_trials,
            scheduling_policy: self.scheduling_policy.policy(),
            ..Options::new(model.clone())
        }
    }
}
