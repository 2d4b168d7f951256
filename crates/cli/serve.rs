//! `sconce serve`: starts the engine and the HTTP server.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use sconce::{EngineLimits, Options, Quantization, Sconce, ServerConfig, Summary, hub::HubOptions};

use crate::{
    flags::{
        CacheDtypeFlag, DeviceFlag, DtypeFlag, QuantizationFlag, cache_dtype_name, parse_bytes,
        parse_share,
    },
    progress::Bars,
};

/// Flags of `sconce serve`, named as in `vllm serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A model directory, a GGUF file, a hub id, a known name, or null: no model, steps take no time
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    model_positional: Option<String>,
    /// The same, as a flag
    #[arg(long, default_value = "smollm2-135m-instruct")]
    model: String,
    /// The name requests use for the model
    #[arg(long)]
    served_model_name: Vec<String>,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Requests need one of these keys
    #[arg(long, env = "SCONCE_API_KEY", hide_env_values = true, value_delimiter = ',')]
    api_key: Vec<String>,
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
    /// KV-cache memory, in bytes or with a suffix such as 512M or 4G [default: for this machine]
    #[arg(long, value_parser = parse_bytes)]
    kv_cache_memory_bytes: Option<u64>,
    /// The share of a GPU's memory that weights, KV cache and everything else may take
    #[arg(long, value_parser = parse_share, default_value_t = 0.9)]
    gpu_memory_utilization: f64,
    /// Seed of the sampling of requests that bring none [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// A chat template's file, instead of the model's own
    #[arg(long)]
    chat_template: Option<PathBuf>,
    /// Threads that compute [default: one a core]
    #[arg(long)]
    threads: Option<usize>,
    /// Largest request body
    #[arg(long, value_parser = parse_bytes, default_value = "4M")]
    max_body_bytes: u64,
    /// Seconds that running requests get to finish after SIGTERM
    #[arg(long, default_value_t = 30)]
    shutdown_timeout: u64,
    #[command(flatten)]
    cache: crate::pull::CacheArgs,
}

impl Args {
    fn options(&self, hub: HubOptions) -> Options {
        let model = self.model_positional.as_ref().unwrap_or(&self.model);
        Options {
            served_model_name: self.served_model_name.first().cloned(),
            hub,
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
            kv_cache_memory_bytes: self.kv_cache_memory_bytes,
            gpu_memory_utilization: self.gpu_memory_utilization,
            threads: self.threads,
            ..Options::new(model.clone())
        }
    }
}

/// Serves until SIGTERM or Ctrl-C, then drains.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // A taken port is told before a model is loaded.
        let listener = sconce::listen(&args.host, args.port).await.with_context(|| {
            format!("cannot listen on {}:{}; choose another --port", args.host, args.port)
        })?;
        let address = listener.local_addr()?;
        let options = args.options(args.cache.hub_options());
        let bars = Bars::new();
        let sconce = {
            let bars = bars.clone();
            tokio::task::spawn_blocking(move || Sconce::start(&options, &bars)).await??
        };
        bars.clear();
        // A reader that has gone away is no reason not to serve.
        let _ = std::io::stdout().write_all(banner(&sconce, address).as_bytes());
        let config = ServerConfig {
            served_model_names: if args.served_model_name.is_empty() {
                vec![sconce.summary().model_name.clone()]
            } else {
                args.served_model_name.clone()
            },
            api_keys: args.api_key.clone(),
            max_body_bytes: usize::try_from(args.max_body_bytes)?,
            seed: args.seed,
            ..ServerConfig::default()
        };
        let router = sconce::router(sconce.engine().clone(), sconce.text().clone(), config);
        let drain_timeout = Duration::from_secs(args.shutdown_timeout);
        sconce::serve(listener, router, sconce.engine().clone(), stop_signal(), drain_timeout)
            .await?;
        anyhow::Ok(())
    })
}

/// The lines that say what was loaded, where, and what to try.
fn banner(sconce: &Sconce, address: SocketAddr) -> String {
    let summary = sconce.summary();
    let limits = sconce.engine().limits();
    let weights = match summary.quantization {
        Some(Quantization::Int8) => "int8",
        None => cache_dtype_name(summary.dtype.map(Into::into)),
    };
    let cache = cache_dtype_name(summary.kv_cache_dtype);
    let mib = summary.weight_bytes as f64 / f64::from(1 << 20);
    let gib = summary.kv_cache_bytes as f64 / f64::from(1 << 30);
    let Summary { model_name, architecture, device, kv_cache_tokens, .. } = summary;
    let EngineLimits { num_blocks, max_model_len, max_num_seqs, max_queued, .. } = limits;
    format!(
        r#"sconce {version}
  model     {model_name} ({architecture})
  from      {dir}
  device    {device}
  weights   {weights}, {mib:.0} MiB
  loaded    in {total:.2} s: device {device_time:.2}, weights {weights_time:.2}, KV cache {cache_time:.2}
  KV cache  {cache}, {kv_cache_tokens} tokens in {num_blocks} blocks, {gib:.2} GiB
  limits    {max_model_len} tokens of context, {max_num_seqs} sequences at once, {max_queued} more waiting
  serving   http://{address}/v1

Try:
  curl -N http://{address}/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{{"model": "{model_name}", "stream": true, "temperature": 0, "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
"#,
        version = env!("CARGO_PKG_VERSION"),
        dir = summary.model_dir.display(),
        total = summary.load_times.total().as_secs_f64(),
        device_time = summary.load_times.device.as_secs_f64(),
        weights_time = summary.load_times.weights.as_secs_f64(),
        cache_time = summary.load_times.cache.as_secs_f64(),
    )
}

async fn stop_signal() {
    let ctrl_c = async {
        // Without a handler the process could only be killed; then nothing can be awaited.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending::<()>().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = ctrl_c => {}
        () = terminate => {}
    }
}
