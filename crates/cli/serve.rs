//! `sconce serve`: starts the engine and the HTTP server.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use futures::{Stream, StreamExt as _, stream};
use sconce::{
    AllowedOrigins, BatchLimits, Batches, ConnectionConfig, EmbeddingInfo, EngineHandle, Listener,
    Options, Quantization, ReasoningFormat, SchedulerConfig, Sconce, ServerConfig, Summary,
    TenantDirectory, ToolFormat, Traces, tenants::ApiKeys,
};

use crate::{
    engine_args::EngineArgs,
    flags::{cache_dtype_name, parse_bytes},
    logging::LogFormat,
    progress::Bars,
    traces,
};

/// How long the ledger may take to keep what it was told last.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the collector of traces may take for the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The tenants' file where none is named.
pub(crate) const TENANTS_FILE: &str = "sconce.toml";

/// What the exit code says of the requests that ran when the server was to end.
const EXIT_CODES: &str = "\
Exit codes:
  0  ended by SIGTERM or Ctrl-C, and every request was answered
  1  the server could not start
  2  wrong usage
  3  the device is lost
  4  requests were cut off: by --shutdown-timeout, or by a second signal";

/// Flags of `sconce serve`, named as in `vllm serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
    /// Names requests may use for the model; answers have the first where a request names none
    #[arg(long, num_args = 1.., value_name = "NAME")]
    served_model_name: Vec<String>,
    /// The address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// A Unix socket to listen on instead
    #[cfg(unix)]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    uds: Option<PathBuf>,
    /// Requests need this key, or another that is given so; for one tenant only
    #[arg(long, env = "SCONCE_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// Web pages that may read answers: *, or https://chat.example.com; several with commas or
    /// as a JSON list [default: none]
    #[arg(long, value_name = "ORIGINS")]
    allowed_origins: Vec<String>,
    /// A prefix that a proxy leaves on paths, such as /llm
    #[arg(long, value_name = "PATH", default_value = "")]
    root_path: String,
    /// The form of the model's tool calls [default: as its chat template has it]
    #[arg(long, value_name = "NAME", value_parser = tool_call_parser)]
    tool_call_parser: Option<ToolFormat>,
    /// Tool calls are always taken; here for command lines of vLLM's
    #[arg(long, hide = true)]
    enable_auto_tool_choice: bool,
    /// The form of the model's thoughts [default: as its chat template has it]
    #[arg(long, value_name = "NAME", value_parser = reasoning_parser)]
    reasoning_parser: Option<ReasoningFormat>,
    /// Memory for the latest responses of /v1/responses, from which later requests go on
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "64M")]
    response_store_bytes: u64,
    /// A folder for /v1/files and /v1/batches; batches that have not ended go on after a restart
    #[arg(long, value_name = "DIR")]
    batch_dir: Option<PathBuf>,
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
    /// Log no line for each request
    #[arg(long, alias = "disable-uvicorn-access-log")]
    disable_access_log: bool,
    /// Paths whose requests have no line in the log, such as /health,/metrics
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    disable_access_log_for_endpoints: Vec<String>,
    /// How log lines are written
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// A collector of traces, by OTLP over HTTP: http://localhost:4318/v1/traces. Without it
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT [default: no traces]
    #[arg(long, value_name = "URL")]
    otlp_traces_endpoint: Option<String>,
    /// Seconds that running requests get to finish after SIGTERM; a second SIGTERM cuts them off
    #[arg(long, default_value_t = 30)]
    shutdown_timeout: u64,
    /// Connections at once; one client may have three quarters of them
    #[arg(long, value_name = "N", default_value_t = 16_384,
        value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Seconds that a connection is kept open for another request
    #[arg(long, value_name = "SECONDS", default_value_t = 75,
        value_parser = clap::value_parser!(u64).range(1..))]
    timeout_keep_alive: u64,
}

/// Serves until SIGTERM or Ctrl-C, then drains.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let signals = Signals::catch()?;
        let api_keys = api_keys(&args.api_key)?;
        let allowed_origins = allowed_origins(&args.allowed_origins)?;
        let traces =
            traces::config(args.otlp_traces_endpoint.as_deref(), |name| std::env::var(name).ok())?;
        // A taken port is told before a model is loaded.
        let host = unbracketed(&args.host);
        let (listener, address) = listen(args).await?;
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
        if tenants_file.is_none() && api_keys.is_empty() && address.is_public() {
            tracing::warn!(
                "listening on {} without API keys: whoever reaches it may use and \
                 administrate it; set --api-key, or name tenants (sconce tenant add)",
                address.url()
            );
        }
        let batches = args.batch_dir.as_deref();
        let batches = batches.map(|folder| Batches::open(folder, BatchLimits::default()));
        let batches = batches.transpose().context("--batch-dir")?.map(Arc::new);
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
        let traces = traces.map(|config| Traces::start(&config, sconce.engine().metrics()));
        let traces = traces.map(Arc::new);
        let tenants = Arc::new(tenants);
        let directory = Arc::clone(&tenants);
        tokio::spawn(signals.reload_on_hangup(Arc::clone(&tenants), sconce.engine().clone()));
        let config = ServerConfig {
            served_model_names: if args.served_model_name.is_empty() {
                vec![sconce.summary().model_name.clone()]
            } else {
                args.served_model_name.clone()
            },
            embedding: sconce.summary().embedding.clone(),
            api_keys,
            host: host.to_owned(),
            allowed_origins,
            access_log: !args.disable_access_log,
            unlogged_paths: args.disable_access_log_for_endpoints.clone(),
            tenants,
            max_body_bytes: usize::try_from(args.max_body_bytes)?,
            root_path: args.root_path.clone(),
            tool_call_parser: args.tool_call_parser,
            reasoning_parser: args.reasoning_parser,
            response_store_bytes: usize::try_from(args.response_store_bytes)?,
            batches: batches.clone(),
            seed: args.seed,
            traces: traces.clone(),
            ..ServerConfig::default()
        };
        let router = sconce::router(sconce.engine().clone(), sconce.text().clone(), config);
        let max_connections = usize::try_from(args.max_connections)?;
        let connections = ConnectionConfig {
            max_connections,
            max_connections_per_client: max_connections.div_ceil(4) * 3,
            keep_alive_timeout: Duration::from_secs(args.timeout_keep_alive),
            drain_timeout: Duration::from_secs(args.shutdown_timeout),
            access_log: !args.disable_access_log,
            ..ConnectionConfig::default()
        };
        let engine = sconce.engine().clone();
        if let Some(batches) = batches {
            let max_body_bytes = usize::try_from(args.max_body_bytes)?;
            batches.start(router.clone(), engine.clone(), directory, max_body_bytes);
        }
        let served = sconce::serve(listener, router, engine, stop_signals(), connections).await;
        // An engine that is lost, or hangs in a step, has nothing more to keep.
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, sconce.engine().settle()).await;
        if let Some(traces) = traces {
            traces.shutdown(FLUSH_TIMEOUT).await;
        }
        Ok(served?)
    })
}

fn tool_call_parser(name: &str) -> Result<ToolFormat, String> {
    ToolFormat::from_name(name).ok_or_else(|| one_of(ToolFormat::names()))
}

fn reasoning_parser(name: &str) -> Result<ReasoningFormat, String> {
    ReasoningFormat::from_name(name).ok_or_else(|| one_of(ReasoningFormat::names()))
}

fn one_of(names: impl Iterator<Item = &'static str>) -> String {
    format!("it must be one of {}", names.collect::<Vec<_>>().join(", "))
}

/// What the banner says beside the engine.
struct About {
    address: Address,
    tenants: usize,
    tenants_file: Option<PathBuf>,
    ledger: Option<PathBuf>,
}

/// The lines that say what was loaded, where, and what to try.
fn banner(sconce: &Sconce, about: &About) -> String {
    let summary = sconce.summary();
    let (url, curl) = (about.address.url(), about.address.curl_options());
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
        Some(Quantization::Fp8) => "fp8",
        None => cache_dtype_name(summary.dtype.map(Into::into)),
    };
    let cache = cache_dtype_name(summary.kv_cache_dtype);
    let mib = summary.weight_bytes as f64 / f64::from(1 << 20);
    let gib = summary.kv_cache_bytes as f64 / f64::from(1 << 30);
    let Summary { model_name, architecture, device, kv_cache_tokens, .. } = summary;
    let SchedulerConfig { num_blocks, max_model_len, max_num_seqs, max_queued, depth, .. } =
        limits.scheduler;
    let in_flight = if depth > 1 { format!(", {depth} steps in flight") } else { String::new() };
    let (makes, context, options, path, body) = match &summary.embedding {
        None => (
            format!(
                "KV cache  {cache}, {kv_cache_tokens} tokens in {num_blocks} blocks, {gib:.2} GiB"
            ),
            format!("{max_model_len} tokens of context"),
            "-N ",
            "chat/completions",
            example_body(model_name),
        ),
        Some(EmbeddingInfo { dimensions, is_normalized, max_tokens, .. }) => {
            let length = if *is_normalized { " of length 1" } else { "" };
            (
                format!("makes     embeddings of {dimensions} numbers{length}"),
                format!("{max_tokens} tokens of a text"),
                "",
                "embeddings",
                example_input(model_name),
            )
        }
    };
    let graphs = match summary.num_graphs {
        0 => String::new(),
        num => {
            format!(", {num} CUDA graphs {:.2}", summary.load_times.graphs.as_secs_f64())
        }
    };
    format!(
        r#"sconce {version}
  model     {model_name} ({architecture})
  from      {dir}
  device    {device}
  weights   {weights}, {mib:.0} MiB
  loaded    in {total:.2} s: device {device_time:.2}, weights {weights_time:.2}, KV cache {cache_time:.2}{graphs}
  {makes}
  limits    {context}, {max_num_seqs} sequences at once, {max_queued} more waiting{in_flight}
  energy    {energy}
  tenants   {tenants}
  ledger    {ledger}
  serving   {url}/v1{socket}

Try:
  curl {options}{curl}{url}/v1/{path} -H 'Content-Type: application/json'{key} \
    -d {body}
"#,
        version = env!("CARGO_PKG_VERSION"),
        energy = summary.energy,
        socket = about.address.socket(),
        dir = summary.model_dir.display(),
        total = summary.load_times.total().as_secs_f64(),
        device_time = summary.load_times.device.as_secs_f64(),
        weights_time = summary.load_times.weights.as_secs_f64(),
        cache_time = summary.load_times.cache.as_secs_f64(),
    )
}

/// The example's JSON, quoted for a shell: a model may be named anything.
fn example_body(model_name: &str) -> String {
    let model = serde_json::Value::from(model_name);
    let body = format!(
        r#"{{"model": {model}, "stream": true, "temperature": 0, "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}"#
    );
    quoted(&body)
}

/// The same for a model that makes embeddings.
fn example_input(model_name: &str) -> String {
    let model = serde_json::Value::from(model_name);
    quoted(&format!(r#"{{"model": {model}, "input": "What is the capital of France?"}}"#))
}

/// In single quotes, as shells take them.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The tenants' file: the one given, else the default one if it exists. A default file that
/// exists but cannot be read is returned too, so that starting fails instead of serving
/// without authentication.
pub(crate) fn tenants_file(named: Option<&Path>) -> Option<PathBuf> {
    let default = PathBuf::from(TENANTS_FILE);
    let is_missing = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    match named {
        Some(path) => Some(path.to_owned()),
        None if default.symlink_metadata().is_err_and(is_missing) => None,
        None => Some(default),
    }
}

/// Where the ledger of a tenants' file lies.
pub(crate) fn default_ledger(tenants_file: &Path) -> PathBuf {
    tenants_file.with_file_name("sconce-usage.db")
}

/// The keys of a server of one tenant.
fn api_keys(given: &[String]) -> anyhow::Result<ApiKeys> {
    let keys = ApiKeys::new(given).context("--api-key or SCONCE_API_KEY cannot be used")?;
    if given.iter().any(|key| key.contains(',')) {
        tracing::warn!("an API key has a comma, which is part of it: it is one key, not several");
    }
    Ok(keys)
}

/// Origins one by one, between commas, or as vLLM takes them: a JSON list.
fn allowed_origins(given: &[String]) -> anyhow::Result<AllowedOrigins> {
    let mut origins = Vec::new();
    for text in given {
        if text.trim_start().starts_with('[') {
            let list: Vec<String> = serde_json::from_str(text)
                .with_context(|| format!("--allowed-origins {text} is no list of origins"))?;
            origins.extend(list);
        } else {
            origins.extend(text.split(',').map(ToOwned::to_owned));
        }
    }
    AllowedOrigins::new(origins).context("--allowed-origins")
}

/// A host without the brackets that IPv6 addresses have in URLs.
fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// What the server listens on.
enum Address {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl Address {
    fn url(&self) -> String {
        match self {
            Self::Tcp(address) => format!("http://{address}"),
            #[cfg(unix)]
            Self::Unix(_) => "http://localhost".to_owned(),
        }
    }

    /// What the banner says beside the URL.
    fn socket(&self) -> String {
        match self {
            Self::Tcp(_) => String::new(),
            #[cfg(unix)]
            Self::Unix(path) => format!(" on the socket {}", path.display()),
        }
    }

    fn curl_options(&self) -> String {
        match self {
            Self::Tcp(_) => String::new(),
            #[cfg(unix)]
            Self::Unix(path) => format!("--unix-socket {} ", quoted(&path.display().to_string())),
        }
    }

    /// Whether other machines reach it.
    fn is_public(&self) -> bool {
        match self {
            Self::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            #[cfg(unix)]
            Self::Unix(_) => false,
        }
    }
}

async fn listen(args: &Args) -> anyhow::Result<(Listener, Address)> {
    #[cfg(unix)]
    if let Some(path) = &args.uds {
        let listener = sconce::listen_on_path(path);
        let listener = listener.with_context(|| format!("cannot listen on {}", path.display()))?;
        return Ok((listener, Address::Unix(path.clone())));
    }
    let host = unbracketed(&args.host);
    let listener = sconce::listen(host, args.port).await;
    let listener = listener.map_err(|error| cannot_listen(host, args.port, error))?;
    let address = listener.local_addr()?;
    Ok((listener, Address::Tcp(address)))
}

fn cannot_listen(host: &str, port: u16, error: std::io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => "; choose another --port",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 may need privileges",
        _ => "",
    };
    let at = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    anyhow::Error::new(error).context(format!("cannot listen on {at}{hint}"))
}

/// Signals that would end the process if nothing caught them. They are caught before
/// anything is loaded, and taken up afterwards.
struct Signals {
    #[cfg(unix)]
    hangups: tokio::signal::unix::Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};

            /// On Linux, macOS and the BSDs, on every architecture that this builds for.
            const SIGXFSZ: i32 = 25;

            // Caught once, a file that may not grow further (RLIMIT_FSIZE) is an error of
            // that file for as long as the process lives.
            let _ = signal(SignalKind::from_raw(SIGXFSZ))?;
            Ok(Self { hangups: signal(SignalKind::hangup())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Reads the tenants' file again whenever SIGHUP has come, however often.
    async fn reload_on_hangup(self, tenants: Arc<TenantDirectory>, engine: EngineHandle) {
        #[cfg(unix)]
        {
            let mut hangups = self.hangups;
            while hangups.recv().await.is_some() {
                match tenants.reload(&engine).await {
                    Ok(count) => tracing::info!("tenants are read again: {count}"),
                    Err(error) => tracing::error!("tenants stay as they were: {error}"),
                }
            }
        }
        #[cfg(not(unix))]
        drop((tenants, engine));
    }
}

/// SIGTERM and Ctrl-C, as often as they come.
#[cfg(unix)]
fn stop_signals() -> impl Stream<Item = ()> + Send {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::terminate(), SignalKind::interrupt()];
    // Without a handler the process could only be killed; then nothing can be awaited.
    let signals = kinds.into_iter().filter_map(|kind| signal(kind).ok());
    stream::select_all(signals.map(|signal| {
        let next = |mut signal: tokio::signal::unix::Signal| async {
            signal.recv().await.map(|()| ((), signal))
        };
        stream::unfold(signal, next).boxed()
    }))
}

/// Ctrl-C, as often as it comes.
#[cfg(not(unix))]
fn stop_signals() -> impl Stream<Item = ()> + Send {
    stream::repeat(()).then(|()| async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{Address, allowed_origins, unbracketed};

    #[test]
    fn hosts_may_have_brackets() {
        for (given, host) in
            [("[::1]", "::1"), ("::1", "::1"), ("localhost", "localhost"), ("[x", "[x")]
        {
            assert_eq!(unbracketed(given), host);
        }
    }

    #[test]
    fn loopback_addresses_are_told_from_others() {
        let is_public =
            |address: &str| Address::Tcp(address.parse().expect("an address")).is_public();
        for own in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(!is_public(own), "{own}");
        }
        for open in ["0.0.0.0:1", "[::]:1", "192.168.0.1:1", "[::ffff:10.0.0.1]:1"] {
            assert!(is_public(open), "{open}");
        }
    }

    #[test]
    fn origins_come_in_lists_of_any_form() {
        let origins = |given: &[&str]| {
            let given: Vec<_> = given.iter().map(|&text| text.to_owned()).collect();
            allowed_origins(&given)
        };
        let two = origins(&["http://a", "http://b"]).expect("they are origins");
        assert_eq!(origins(&["http://a,http://b"]).expect("they are origins"), two);
        assert_eq!(origins(&[r#"["http://a", "http://b"]"#]).expect("they are origins"), two);
        assert!(origins(&[]).is_ok() && origins(&["*"]).is_ok() && origins(&[r#"["*"]"#]).is_ok());
        for bad in ["", "http://a/", "[", "http://a,"] {
            assert!(origins(&[bad]).is_err(), "{bad:?}");
        }
    }
}
