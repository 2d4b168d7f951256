//! What Sconce itself costs a token: `cargo bench --bench overhead`.
//!
//! A server of the null model, whose steps take no time, streams to 256 clients
//! of the load client in the same process, over HTTP. Linux counts the time of
//! each thread, and every stage has threads of its own: the engine's thread
//! schedules and delivers; the runtime's detokenize, write events and send them;
//! the client's reads them. First all tokens that are ready together share a
//! write; then steps of 1 ms make each token a write of its own.
#![expect(clippy::print_stdout, reason = "what the program is for")]

use std::{collections::BTreeMap, ffi::OsString, fmt::Write as _, path::Path, time::Instant};

use clap::Parser;
use sconce::{Options, Sconce, ServerConfig};
use sconce_bench::{BenchArgs, Report};
use sconce_scheduler::{
    CacheGroups, Output, Request, Scheduler, SchedulerConfig, SchedulingPolicy,
};
use sconce_types::{RequestId, Sample, SampleOutcome, SamplingParams, ScheduledBatch, StepResult};

const STREAMS: usize = 256;
const OUTPUT_LEN: u32 = 1000;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    bench: BenchArgs,
}

/// Each thread's name, and the nanoseconds that it has run.
fn thread_times() -> BTreeMap<OsString, (String, u64)> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux lists a process's threads");
    let times = tasks.flatten().filter_map(|task| {
        // A thread may end in between.
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
        let (name, stat) = (read("comm")?, read("schedstat")?);
        let ran = stat.split_ascii_whitespace().next().and_then(|ns| ns.parse().ok());
        Some((task.file_name(), (name.trim().to_owned(), ran.expect("schedstat has numbers"))))
    });
    times.collect()
}

/// Microseconds a token of the scheduler alone: 256 sequences that decode.
fn scheduler() -> f64 {
    let config = SchedulerConfig {
        max_num_seqs: STREAMS,
        max_num_batched_tokens: 512,
        max_model_len: 2048,
        num_blocks: STREAMS * 128,
        max_queued: STREAMS,
        groups: CacheGroups::ONE,
        depth: 1,
        prefix_cache: None,
        policy: SchedulingPolicy::Fair,
    };
    let mut scheduler = Scheduler::new(config).expect("the limits agree");
    for id in 0..STREAMS as u64 {
        let params = SamplingParams { max_tokens: OUTPUT_LEN, ..SamplingParams::default() };
        let prompt = vec![1; 16];
        let request = Request::new(RequestId(id), prompt, params.into());
        scheduler.add(request).expect("there is room");
    }
    let (mut batch, mut result) = (ScheduledBatch::default(), StepResult::default());
    let (mut outputs, mut tokens): (Vec<Output>, u64) = (Vec::new(), 0);
    let started = Instant::now();
    loop {
        scheduler.schedule(&mut batch);
        if batch.is_empty() {
            break;
        }
        result.clear(batch.step);
        for sequence in &batch.sequences {
            match sequence.sample {
                Sample::Nothing => result.push(SampleOutcome::Nothing),
                Sample::Token { .. } => result.push_token(7),
            }
        }
        scheduler.commit(&batch, &mut result, &mut outputs);
        tokens += outputs.len() as u64;
        outputs.clear();
    }
    assert_eq!(tokens, STREAMS as u64 * u64::from(OUTPUT_LEN), "every token was made");
    started.elapsed().as_secs_f64() * 1e6 / tokens as f64
}

/// Loads a server of a null model, and says what each thread name ran.
fn load(model: &str, requests: usize) -> (Report, BTreeMap<String, u64>) {
    let sconce = Sconce::start(&Options::new(model), &()).expect("the null model starts");
    let server = tokio::runtime::Builder::new_multi_thread()
        .thread_name("server")
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = server.block_on(sconce::listen("127.0.0.1", 0)).expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it listens"));
    let engine = sconce.engine().clone();
    let served_model_names = vec![model.to_owned()];
    let config = ServerConfig { served_model_names, ..ServerConfig::default() };
    let router = sconce::router(engine.clone(), sconce.text().clone(), config);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shutdown = futures::stream::once(async move { drop(stopped.await) });
    let connections = sconce::ConnectionConfig::default();
    let serving = server.spawn(sconce::serve(listener, router, engine, shutdown, connections));

    let flags = Flags::parse_from([
        "bench",
        "--disable-tqdm",
        "--base-url",
        &url,
        "--max-concurrency",
        &STREAMS.to_string(),
        "--num-prompts",
        &requests.to_string(),
        "--random-input-len",
        "16",
        "--random-output-len",
        &OUTPUT_LEN.to_string(),
    ]);
    let before = thread_times();
    let client = std::thread::Builder::new().name("client".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let report = runtime.block_on(sconce_bench::bench(&flags.bench)).expect("it answers");
        // Counted here, for a thread's times go with it.
        (report, thread_times())
    });
    let client = client.expect("a thread");
    let (report, after) = client.join().expect("it does not panic");
    let mut times = BTreeMap::<String, u64>::new();
    for (thread, (name, ran)) in after {
        let earlier = before.get(&thread).map_or(0, |(_, ran)| *ran);
        *times.entry(name).or_default() += ran - earlier;
    }
    drop(stop);
    server.block_on(serving).expect("it does not panic").expect("it serves");
    assert!(report.errors.is_empty() && report.short_answers == 0, "{report}");
    (report, times)
}

fn main() {
    let mut log = String::new();
    let mut say = |line: &str| {
        println!("{line}");
        writeln!(log, "{line}").expect("a string takes every line");
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    say(&format!("# {STREAMS} streams of {OUTPUT_LEN} tokens on {cores} cores, client included"));
    say(&format!("the scheduler alone {:>26.2} µs a token", scheduler()));
    load("null", STREAMS);
    for (model, requests) in [("null", 8 * STREAMS), ("null:1ms", 2 * STREAMS)] {
        let (report, times) = load(model, requests);
        let tokens = report.total_output_tokens as f64;
        say(&format!("# --model {model}"));
        say(&format!("streamed {:>37.0} tokens/s", report.output_throughput));
        for (what, name) in [
            ("engine: schedules, delivers", "sconce-engine"),
            ("server: text, events, HTTP", "server"),
            ("the load client", "client"),
        ] {
            let time = times.get(name).copied().unwrap_or(0) as f64;
            say(&format!("{what:<34} {:>11.2} µs a token", time / 1e3 / tokens));
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/overhead.log");
    std::fs::write(&path, log).expect("the log is written");
    println!("# log: {}", path.display());
}
