//! `sconce serve`: starts the engine and the HTTP server.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use sconce::{
    EngineHandle, EngineLimits, Options, Quantization, Sconce, ServerConfig, Summary,
    TenantDirectory,
};

use crate::{
    engine_args::EngineArgs,
    flags::{cache_dtype_name, parse_bytes},
    progress::Bars,
};

/// How long the ledger may take to keep what it was told last.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The tenants' file where none is named.
pub(crate) const TENANTS_FILE: &str = "sconce.toml";

/// Flags of `sconce serve`, named as in `vllm serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
    /// The name requests use for the model
    #[arg(long)]
    served_model_name: Vec<String>,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Requests need one of these keys; for one tenant only
    #[arg(long, env = "SCONCE_API_KEY", hide_env_values = true, value_delimiter = ',')]
    api_key: Vec<String>,
    /// Who the tenants are [default: sconce.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "SCONCE_CONFIG")]
    config: Option<PathBuf>,
    /// Where what each request used is kept [default: sconce-usage.db beside the tenants' file]
    #[arg(long, value_name = "FILE", env = "SCONCE_LEDGER")]
    ledger: Option<PathBuf>,
    /// Keep every request's tokens, seed and settings here, for sconce replay
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Seed of the sampling of requests that bring none [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Largest request body
    #[arg(long, value_parser = parse_bytes, default_value = "4M")]
    max_body_bytes: u64,
    /// Seconds that running requests get to finish after SIGTERM
    #[arg(long, default_value_t = 30)]
    shutdown_timeout: u64,
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
        let tenants_file = tenants_file(args.config.as_deref());
        let tenants = match &tenants_file {
            Some(path) => TenantDirectory::open(path)?,
            None => TenantDirectory::sole(),
        };
        anyhow::ensure!(
            tenants_file.is_none() || args.api_key.is_empty(),
            "--api-key is for a server of one tenant, but {} names tenants with their own keys",
            tenants_file.as_deref().unwrap_or(Path::new("")).display()
        );
        let ledger = args.ledger.clone().or_else(|| tenants_file.as_deref().map(default_ledger));
        let options = Options {
            served_model_name: args.served_model_name.first().cloned(),
            tenants: tenants.tenants(),
            ledger: ledger.clone(),
            record: args.record.clone(),
            warm_up: true,
            ..args.engine.options()
        };
        let options_tenants = options.tenants.len();
        let bars = Bars::new();
        let sconce = {
            let bars = bars.clone();
            tokio::task::spawn_blocking(move || Sconce::start(&options, &bars)).await??
        };
        bars.clear();
        // A reader that has gone away is no reason not to serve.
        let about = About { address, tenants: options_tenants, tenants_file, ledger };
        let _ = std::io::stdout().write_all(banner(&sconce, &about).as_bytes());
        let tenants = Arc::new(tenants);
        tokio::spawn(reload_on_hangup(Arc::clone(&tenants), sconce.engine().clone()));
        let config = ServerConfig {
            served_model_names: if args.served_model_name.is_empty() {
                vec![sconce.summary().model_name.clone()]
            } else {
                args.served_model_name.clone()
            },
            api_keys: args.api_key.clone(),
            tenants,
            max_body_bytes: usize::try_from(args.max_body_bytes)?,
            seed: args.seed,
            ..ServerConfig::default()
        };
        let router = sconce::router(sconce.engine().clone(), sconce.text().clone(), config);
        let drain_timeout = Duration::from_secs(args.shutdown_timeout);
        let served =
            sconce::serve(listener, router, sconce.engine().clone(), stop_signal(), drain_timeout);
        let served = served.await;
        // An engine that is lost, or hangs in a step, has nothing more to keep.
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, sconce.engine().settle()).await;
        Ok(served?)
    })
}

/// What the banner says beside the engine.
struct About {
    address: SocketAddr,
    tenants: usize,
    tenants_file: Option<PathBuf>,
    ledger: Option<PathBuf>,
}

/// The lines that say what was loaded, where, and what to try.
fn banner(sconce: &Sconce, about: &About) -> String {
    let summary = sconce.summary();
    let address = about.address;
    let (key, tenants) = match &about.tenants_file {
        Some(path) => (
            " -H \"Authorization: Bearer $KEY\"",
            format!("{} from {}", about.tenants, path.display()),
        ),
        None => ("", "one, without a file".to_owned()),
    };
    let ledger = match &about.ledger {
        Some(path) => format!("{}; sconce usage --ledger reads it", path.display()),
        None => "none; --ledger FILE keeps what each request used".to_owned(),
    };
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
  energy    {energy}
  tenants   {tenants}
  ledger    {ledger}
  serving   http://{address}/v1

Try:
  curl -N http://{address}/v1/chat/completions -H 'Content-Type: application/json'{key} \
    -d '{{"model": "{model_name}", "stream": true, "temperature": 0, "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'
"#,
        version = env!("CARGO_PKG_VERSION"),
        energy = summary.energy,
        dir = summary.model_dir.display(),
        total = summary.load_times.total().as_secs_f64(),
        device_time = summary.load_times.device.as_secs_f64(),
        weights_time = summary.load_times.weights.as_secs_f64(),
        cache_time = summary.load_times.cache.as_secs_f64(),
    )
}

/// The tenants' file: the one that is named, or the one that is there.
pub(crate) fn tenants_file(named: Option<&Path>) -> Option<PathBuf> {
    let default = || Some(PathBuf::from(TENANTS_FILE)).filter(|path| path.is_file());
    named.map(Path::to_owned).or_else(default)
}

/// Where the ledger of a tenants' file lies.
pub(crate) fn default_ledger(tenants_file: &Path) -> PathBuf {
    tenants_file.with_file_name("sconce-usage.db")
}

/// Reads the tenants' file again whenever SIGHUP comes.
async fn reload_on_hangup(tenants: Arc<TenantDirectory>, engine: EngineHandle) {
    #[cfg(unix)]
    if let Ok(mut hangups) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
    {
        while hangups.recv().await.is_some() {
            match tenants.reload(&engine) {
                Ok(count) => tracing::info!("tenants are read again: {count}"),
                Err(error) => tracing::error!("tenants stay as they were: {error}"),
            }
        }
    }
    #[cfg(not(unix))]
    drop((tenants, engine));
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
