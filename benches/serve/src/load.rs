//! Sends the requests and notes when their answers come.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use rand::{SeedableRng as _, rngs::StdRng};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    ClientError, Profile, Report, Server, ServerArgs,
    arrivals::arrivals,
    report::{Objectives, Sample, Samples},
    workload::{Ask, WorkloadArgs},
};

/// Requests at once in a closed loop, unless said otherwise.
const CONCURRENCY: usize = 8;

/// Flags of the load client, named as in `vllm bench serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Which endpoint is asked
    #[arg(long, value_enum, default_value_t = Backend::Openai)]
    backend: Backend,
    /// Requests in all
    #[arg(long, default_value_t = 100)]
    num_prompts: usize,
    /// Requests at once [default: 8, or any number with a --request-rate]
    #[arg(long)]
    max_concurrency: Option<usize>,
    /// Requests a second, arriving at random (Poisson); inf is as fast as they are answered
    #[arg(long, default_value_t = f64::INFINITY)]
    request_rate: f64,
    /// Requests before the measurement
    #[arg(long, default_value_t = 1)]
    num_warmups: usize,
    /// Seed of prompts and arrivals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fields to add to each request, a JSON object; null takes one away, such as ignore_eos
    #[arg(long, value_parser = object)]
    extra_body: Option<Map<String, Value>>,
    /// Objectives in ms, such as ttft:200 tpot:50 e2el:5000; goodput counts what meets all
    #[arg(long, num_args = 1.., value_parser = objective)]
    goodput: Vec<(String, f64)>,
    /// Keep each request's times in the result
    #[arg(long)]
    save_detailed: bool,
    /// Show no progress
    #[arg(long)]
    disable_tqdm: bool,
}

/// Which endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    /// /v1/completions
    Openai,
    /// /v1/chat/completions
    OpenaiChat,
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))
}

fn objective(text: &str) -> Result<(String, f64), String> {
    let parsed = text.split_once(':').and_then(|(name, ms)| {
        let known = ["ttft", "tpot", "e2el"].contains(&name);
        known.then(|| ms.parse().ok().map(|ms: f64| (name.to_owned(), ms))).flatten()
    });
    parsed.ok_or_else(|| "write ttft:MS, tpot:MS or e2el:MS".to_owned())
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A flag makes no sense.
    #[error("{flag} is {value}, but must be {accepted}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        accepted: &'static str,
    },
    /// The server did not answer at all.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The first request failed, so all would.
    #[error("the warm-up request failed")]
    WarmUp(#[source] ClientError),
    /// An interrupt cannot be listened for.
    #[error("cannot listen for an interrupt")]
    Signal(#[source] std::io::Error),
    /// There is nothing to report.
    #[error("no request succeeded: {0:?}")]
    AllFailed(BTreeMap<String, usize>),
}

impl BenchArgs {
    fn validate(&self) -> Result<(), BenchError> {
        let flag = |(flag, value, accepted)| BenchError::Flag { flag, value, accepted };
        self.workload.validate().map_err(flag)?;
        let counts = [
            ("--num-prompts", Some(self.num_prompts)),
            ("--max-concurrency", self.max_concurrency),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == Some(0)) {
            return Err(flag((name, "0".to_owned(), "at least 1")));
        }
        if self.request_rate.is_nan() || self.request_rate <= 0.0 {
            let rate = self.request_rate.to_string();
            return Err(flag(("--request-rate", rate, "above 0, or inf")));
        }
        Ok(())
    }

    fn path(&self) -> &'static str {
        match self.backend {
            Backend::Openai => "/v1/completions",
            Backend::OpenaiChat => "/v1/chat/completions",
        }
    }

    fn body(&self, model: &str, ask: &Ask) -> String {
        let mut body = json!({
            "model": model, "max_tokens": ask.max_tokens, "ignore_eos": true,
            "temperature": 0.0, "stream": true, "stream_options": { "include_usage": true },
        });
        match self.backend {
            Backend::Openai => body["prompt"] = json!(ask.prompt),
            Backend::OpenaiChat => {
                body["messages"] = json!([{ "role": "user", "content": ask.prompt }]);
            }
        }
        for (name, value) in self.extra_body.iter().flatten() {
            body[name] = value.clone();
        }
        if let Some(fields) = body.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        body.to_string()
    }
}

/// The prompts that [`bench()`] would send, warm-ups last, as a JSON array: for engines that
/// have no server.
///
/// # Errors
/// Flags that make no sense.
pub fn prompts(args: &BenchArgs) -> Result<String, BenchError> {
    args.validate()?;
    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut asks = args.workload.asks(args.num_prompts, &mut rng);
    // As `bench` draws them, between prompts and warm-ups.
    let _ = arrivals(args.request_rate, asks.len(), &mut rng);
    asks.extend(args.workload.asks(args.num_warmups, &mut rng));
    let asks = asks.iter().map(|ask| json!({"prompt": ask.prompt, "max_tokens": ask.max_tokens}));
    Ok(Value::from_iter(asks).to_string())
}

/// The server's last steps.
///
/// # Errors
/// As [`Profile::of`].
pub async fn profile(args: &BenchArgs) -> Result<Profile, ClientError> {
    let (server, _) = args.server.connect().await?;
    Profile::of(&server).await
}

/// Loads the server as the flags say and reports what came of it; an interrupt
/// (Ctrl-C) ends the load early, and what was answered until then is reported.
///
/// # Errors
/// Flags that make no sense, a server that does not answer, no success at all.
pub async fn bench(args: &BenchArgs) -> Result<Report, BenchError> {
    args.validate()?;
    let (server, model) = args.server.connect().await?;
    let mut rng = StdRng::seed_from_u64(args.seed);
    // Drawn first, so that the measured prompts are the same with any number of them.
    let asks = args.workload.asks(args.num_prompts, &mut rng);
    let too_low = || BenchError::Flag {
        flag: "--request-rate",
        value: args.request_rate.to_string(),
        accepted: "higher",
    };
    let arrivals = arrivals(args.request_rate, asks.len(), &mut rng).ok_or_else(too_low)?;
    for ask in args.workload.asks(args.num_warmups, &mut rng) {
        let warm_up = request(&server, args.path(), args.body(&model, &ask), &ask).await;
        warm_up.map_err(BenchError::WarmUp)?;
    }
    let requests: Vec<_> =
        asks.into_iter().map(|ask| (args.body(&model, &ask), ask)).zip(arrivals).collect();

    let bar = if args.disable_tqdm {
        ProgressBar::hidden()
    } else {
        ProgressBar::new(requests.len() as u64)
    };
    if let Ok(style) = ProgressStyle::with_template("requests {wide_bar} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    let unbounded =
        if args.request_rate.is_finite() { Semaphore::MAX_PERMITS } else { CONCURRENCY };
    let slots = args.max_concurrency.unwrap_or(unbounded).min(Semaphore::MAX_PERMITS);
    let slots = Arc::new(Semaphore::new(slots));
    let mut running = JoinSet::new();
    let mut outcomes = Vec::new();
    let started = Instant::now();
    let load = async {
        for ((body, ask), arrival) in requests {
            // Each request waits for its slot by itself: were arrivals to wait for
            // it, a slow server would be sent fewer of them.
            if !arrival.is_zero() {
                tokio::time::sleep_until((started + arrival).into()).await;
            }
            let (server, bar, slots) = (server.clone(), bar.clone(), Arc::clone(&slots));
            let path = args.path();
            running.spawn(async move {
                let _slot = slots.acquire().await.expect("the slots are never closed");
                let outcome = request(&server, path, body, &ask).await;
                bar.inc(1);
                outcome.map_err(|error| error.to_string())
            });
        }
        while let Some(outcome) = running.join_next().await {
            outcomes.push(outcome);
        }
    };
    tokio::select! {
        () = load => {}
        // What was answered until then is reported.
        interrupt = tokio::signal::ctrl_c() => interrupt.map_err(BenchError::Signal)?,
    }
    let elapsed = started.elapsed();
    while let Some(outcome) = running.try_join_next() {
        outcomes.push(outcome);
    }
    running.abort_all();
    bar.finish_and_clear();
    let mut errors = BTreeMap::<String, usize>::new();
    let mut samples = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(Ok(sample)) => samples.push(sample),
            Ok(Err(error)) => *errors.entry(error).or_default() += 1,
            Err(panic) => *errors.entry(panic.to_string()).or_default() += 1,
        }
    }
    if samples.is_empty() {
        return Err(BenchError::AllFailed(errors));
    }
    let objectives = Objectives::new(&args.goodput);
    let mut report = Report::new(&model, &samples, errors, elapsed, &objectives);
    report.max_concurrency = args.max_concurrency;
    // JSON has no infinity.
    report.request_rate = args.request_rate.is_finite().then_some(args.request_rate);
    report.samples = Samples { of_requests: samples, are_saved: args.save_detailed };
    Ok(report)
}

/// What is read of a chunk; other fields are skipped.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    usage: Option<Usage>,
    error: Option<ChunkError>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    delta: Option<ChunkDelta>,
    #[serde(default)]
    finish_reason: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct ChunkDelta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
}

#[derive(Deserialize)]
struct ChunkError {
    message: String,
}

impl Chunk {
    fn has_content(&self) -> bool {
        let filled = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        self.choices.iter().any(|choice| {
            filled(&choice.text)
                || choice.delta.as_ref().is_some_and(|delta| filled(&delta.content))
        })
    }
}

async fn request(
    server: &Server,
    path: &str,
    body: String,
    ask: &Ask,
) -> Result<Sample, ClientError> {
    let started = Instant::now();
    let mut events = server.stream(path, body).await?;
    let mut sample = Sample { asked_tokens: ask.max_tokens, ..Sample::default() };
    let mut last: Option<Duration> = None;
    let mut chunks = 0;
    let mut finished = false;
    loop {
        let data = match events.next().await {
            Ok(Some(data)) => data,
            Ok(None) => break,
            // Some servers end their streams without [DONE].
            Err(ClientError::CutOff) if finished => break,
            Err(error) => return Err(error),
        };
        let now = started.elapsed();
        let chunk: Chunk = serde_json::from_str(&data)?;
        if let Some(error) = chunk.error {
            return Err(ClientError::Stream(error.message));
        }
        finished |= chunk.choices.iter().any(|choice| choice.finish_reason.is_some());
        if chunk.has_content() {
            chunks += 1;
            match last.replace(now) {
                None => sample.ttft = now,
                Some(last) => sample.itl.push(now - last),
            }
        }
        if let Some(usage) = chunk.usage {
            sample.prompt_tokens = usage.prompt_tokens;
            sample.output_tokens = usage.completion_tokens;
        }
    }
    sample.e2el = last.ok_or_else(|| ClientError::Stream("the answer was empty".to_owned()))?;
    if sample.output_tokens == 0 {
        // A server that counts nothing sends a chunk a token, or nearly.
        sample.output_tokens = chunks;
    }
    Ok(sample)
}
