//! `sconce bench`: loads a server and reports latency and throughput.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::client::{Server, ServerArgs};

/// Flags of `sconce bench`, named as in `vllm bench serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// Requests in all
    #[arg(long, default_value_t = 100)]
    num_prompts: usize,
    /// Requests at once [default: 8, or any number with a --request-rate]
    #[arg(long)]
    max_concurrency: Option<usize>,
    /// Requests a second, arriving at random (Poisson); inf is as fast as they are answered
    #[arg(long, default_value_t = f64::INFINITY)]
    request_rate: f64,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 128)]
    random_input_len: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128)]
    random_output_len: usize,
    /// Prompts are random token ids below this
    #[arg(long, default_value_t = 30_000)]
    random_vocab: u32,
    /// Requests before the measurement
    #[arg(long, default_value_t = 1)]
    num_warmups: usize,
    /// Seed of prompts and arrivals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the result here, as JSON
    #[arg(long)]
    save_result: Option<PathBuf>,
}

/// Loads the server and prints what came of it.
#[expect(clippy::print_stdout, reason = "what the command is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.num_prompts > 0, "--num-prompts is 0, but must be at least 1");
    ensure!(args.max_concurrency != Some(0), "--max-concurrency is 0, but must be at least 1");
    ensure!(args.random_input_len > 0, "--random-input-len is 0, but must be at least 1");
    ensure!(args.random_output_len > 0, "--random-output-len is 0, but must be at least 1");
    let rate = args.request_rate;
    ensure!(rate > 0.0, "--request-rate is {rate}, but must be above 0, or inf");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    println!("{}", table(&report));
    if let Some(path) = &args.save_result {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// One request's times.
struct Sample {
    ttft: Duration,
    /// Times between chunks after the first.
    itl: Vec<Duration>,
    e2e: Duration,
    output_tokens: usize,
}

async fn measure(args: &Args) -> anyhow::Result<Value> {
    let (server, model) = args.server.connect().await?;
    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut body = || {
        let prompt: Vec<u32> = (0..args.random_input_len)
            .map(|_| rng.random_range(100..args.random_vocab.max(101)))
            .collect();
        json!({
            "model": model, "prompt": prompt, "max_tokens": args.random_output_len,
            "ignore_eos": true, "temperature": 0.0, "stream": true,
            "stream_options": { "include_usage": true },
        })
    };
    for _ in 0..args.num_warmups {
        request(&server, &body()).await.context("the warm-up request failed")?;
    }
    let bodies: Vec<Value> = (0..args.num_prompts).map(|_| body()).collect();
    let arrivals = arrivals(args.request_rate, bodies.len(), &mut rng)?;
    let bar = ProgressBar::new(args.num_prompts as u64);
    if let Ok(style) = ProgressStyle::with_template("requests {wide_bar} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    let unbounded = if args.request_rate.is_finite() { Semaphore::MAX_PERMITS } else { 8 };
    let seats = args.max_concurrency.unwrap_or(unbounded).min(Semaphore::MAX_PERMITS);
    let seats = Arc::new(Semaphore::new(seats));
    let mut running = JoinSet::new();
    let started = Instant::now();
    for (body, arrival) in bodies.into_iter().zip(arrivals) {
        // Each request waits for its seat by itself: were arrivals to wait for
        // it, a slow server would be sent fewer of them.
        tokio::time::sleep_until((started + arrival).into()).await;
        let (server, bar, seats) = (server.clone(), bar.clone(), Arc::clone(&seats));
        running.spawn(async move {
            let _seat = seats.acquire().await?;
            let sample = request(&server, &body).await;
            bar.inc(1);
            sample
        });
    }
    let outcomes = running.join_all().await;
    let elapsed = started.elapsed();
    bar.finish_and_clear();
    report(args, &model, outcomes, elapsed)
}

/// When requests arrive after the start. The times between Poisson arrivals are
/// exponential; at an infinite rate all are there at once.
fn arrivals(rate: f64, count: usize, rng: &mut StdRng) -> anyhow::Result<Vec<Duration>> {
    let mut at = 0.0;
    let next = |_| {
        at -= (1.0 - rng.random::<f64>()).ln() / rate;
        Duration::try_from_secs_f64(at).with_context(|| format!("--request-rate {rate} is too low"))
    };
    (0..count).map(next).collect()
}

async fn request(server: &Server, body: &Value) -> anyhow::Result<Sample> {
    let started = Instant::now();
    let mut events = server.stream("/v1/completions", body).await?;
    let mut times = Vec::new();
    let mut output_tokens = 0;
    while let Some(event) = events.next().await? {
        if event["choices"].as_array().is_some_and(|choices| !choices.is_empty()) {
            times.push(Instant::now());
        }
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            output_tokens = usize::try_from(tokens)?;
        }
    }
    let e2e = started.elapsed();
    let asked = body["max_tokens"].as_u64().unwrap_or_default();
    if output_tokens as u64 != asked {
        bail!("asked for {asked} tokens, got {output_tokens}");
    }
    let first = times.first().context("the answer had no chunk")?;
    Ok(Sample {
        ttft: *first - started,
        itl: times.windows(2).map(|pair| pair[1] - pair[0]).collect(),
        e2e,
        output_tokens,
    })
}

fn report(
    args: &Args,
    model: &str,
    outcomes: Vec<anyhow::Result<Sample>>,
    elapsed: Duration,
) -> anyhow::Result<Value> {
    let mut errors = std::collections::BTreeMap::<String, usize>::new();
    let mut samples = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(sample) => samples.push(sample),
            Err(error) => *errors.entry(format!("{error:#}")).or_default() += 1,
        }
    }
    if samples.is_empty() {
        bail!("no request succeeded: {errors:?}");
    }
    let seconds = elapsed.as_secs_f64();
    let output: usize = samples.iter().map(|sample| sample.output_tokens).sum();
    let input = samples.len() * args.random_input_len;
    let ms = |durations: Vec<Duration>| summary(durations.iter().map(|d| d.as_secs_f64() * 1e3));
    let tpot = samples.iter().filter(|sample| sample.output_tokens > 1).map(|sample| {
        (sample.e2e - sample.ttft).as_secs_f64() * 1e3 / (sample.output_tokens - 1) as f64
    });
    Ok(json!({
        "model": model,
        "completed": samples.len(),
        "errors": errors,
        "max_concurrency": args.max_concurrency,
        // JSON has no infinity.
        "request_rate": args.request_rate.is_finite().then_some(args.request_rate),
        "input_len": args.random_input_len,
        "output_len": args.random_output_len,
        "duration_s": seconds,
        "request_throughput": samples.len() as f64 / seconds,
        "output_throughput": output as f64 / seconds,
        "total_token_throughput": (input + output) as f64 / seconds,
        "ttft_ms": ms(samples.iter().map(|sample| sample.ttft).collect()),
        "tpot_ms": summary(tpot),
        "itl_ms": ms(samples.iter().flat_map(|sample| sample.itl.iter().copied()).collect()),
        "e2el_ms": ms(samples.iter().map(|sample| sample.e2e).collect()),
    }))
}

fn summary(values: impl Iterator<Item = f64>) -> Value {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    if values.is_empty() {
        return Value::Null;
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let at = |p| percentile(&values, p);
    json!({ "mean": mean, "p50": at(50.0), "p90": at(90.0), "p99": at(99.0) })
}

/// Between the two nearest ranks, as numpy does by default; `sorted` is not empty.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let rank = p / 100.0 * (sorted.len() - 1) as f64;
    let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * rank.fract()
}

fn table(report: &Value) -> String {
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |x| format!("{x:.2}"));
    let mut lines = vec![
        format!("completed             {:>12}", report["completed"]),
        format!("duration, s           {:>12}", number(&report["duration_s"])),
        format!("requests/s            {:>12}", number(&report["request_throughput"])),
        format!("output tokens/s       {:>12}", number(&report["output_throughput"])),
        format!("total tokens/s        {:>12}", number(&report["total_token_throughput"])),
        format!("{:<10}{:>12}{:>12}{:>12}{:>12}", "ms", "mean", "p50", "p90", "p99"),
    ];
    for (name, field) in
        [("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("ITL", "itl_ms"), ("E2EL", "e2el_ms")]
    {
        let [mean, p50, p90, p99] =
            ["mean", "p50", "p90", "p99"].map(|of| number(&report[field][of]));
        lines.push(format!("{name:<10}{mean:>12}{p50:>12}{p90:>12}{p99:>12}"));
    }
    for (error, count) in report["errors"].as_object().into_iter().flatten() {
        lines.push(format!("{count} failed: {error}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::{arrivals, percentile};

    proptest! {
        /// The definition: at least p percent of the values are no larger than
        /// the rank above, and at least 100 - p percent no smaller than the one below.
        #[test]
        fn percentiles_split_the_values(
            mut values in prop::collection::vec(-1e3..1e3, 1..40),
            p in 0.0..=100.0,
        ) {
            values.sort_unstable_by(f64::total_cmp);
            let at = percentile(&values, p);
            let share = |count: usize| 100.0 * count as f64 / values.len() as f64;
            let step = share(1);
            prop_assert!(share(values.iter().filter(|value| **value <= at).count()) >= p - step);
            prop_assert!(share(values.iter().filter(|value| **value >= at).count()) >= 100.0 - p - step);
            prop_assert!((values[0]..=values[values.len() - 1]).contains(&at));
        }
    }

    #[test]
    fn arrivals_keep_their_rate() {
        let mut rng = StdRng::seed_from_u64(7);
        let times = arrivals(50.0, 20_000, &mut rng).expect("the rate is fine");
        assert!(times.is_sorted());
        let gaps: Vec<_> =
            times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 50.0).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let square = gaps.iter().map(|gap| gap * gap).sum::<f64>() / gaps.len() as f64;
        // Of an exponential distribution: the mean is 1, that of the squares 2.
        assert!((mean - 1.0).abs() < 0.03 && (square - 2.0).abs() < 0.15, "{mean} {square}");
        let at_once = arrivals(f64::INFINITY, 3, &mut rng).expect("the rate is fine");
        assert!(at_once.iter().all(|time| time.is_zero()));
        assert!(arrivals(1e-300, 3, &mut rng).is_err());
    }

    #[test]
    fn percentiles_lie_between_the_nearest_ranks() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 50.0), 4.0);
        assert_eq!(percentile(&values, 90.0), 8.0 + 0.6 * 8.0);
        assert_eq!(percentile(&values, 100.0), 16.0);
        assert_eq!(percentile(&[3.0], 99.0), 3.0);
    }
}
