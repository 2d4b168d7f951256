//! Decode and total throughput of the default model on this machine, through
//! the engine (no HTTP): `cargo bench --bench throughput`.
//!
//! Streams of 1, 8 and 32 run in turns, `ROUNDS` times; medians are printed and
//! the raw figures kept under benches/results/. With `-- int8` the weights are
//! quantized.
#![expect(clippy::print_stdout, reason = "what the program is for")]

use std::{fmt::Write as _, path::Path, time::Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sconce::{EngineRequest, Options, Quantization, RequestEvent, SamplingParams, Sconce};

const ROUNDS: usize = 5;
const STREAMS: [usize; 3] = [1, 8, 32];
const INPUT_LEN: usize = 128;
const OUTPUT_LEN: u32 = 128;

/// One run's figures.
struct Run {
    streams: usize,
    /// Output tokens a second over the whole run, prefill included.
    output: f64,
    /// Input and output tokens a second.
    total: f64,
    /// Tokens a second of one stream after its first token, the mean of all.
    decode: f64,
    /// Seconds to the first token, the mean of all.
    ttft: f64,
}

fn measure(sconce: &Sconce, streams: usize, rng: &mut StdRng) -> Run {
    let prompts: Vec<Vec<u32>> = (0..streams)
        .map(|_| (0..INPUT_LEN).map(|_| rng.random_range(100..40_000)).collect())
        .collect();
    let started = Instant::now();
    let times: Vec<(f64, f64)> = std::thread::scope(|scope| {
        let running: Vec<_> = prompts
            .into_iter()
            .map(|prompt| {
                scope.spawn(move || {
                    let params = SamplingParams {
                        max_tokens: OUTPUT_LEN,
                        temperature: 0.0,
                        ..SamplingParams::default()
                    };
                    let request = EngineRequest::new(prompt, params);
                    let mut stream = sconce.engine().submit(request).expect("it is taken");
                    let (mut first, mut tokens) = (None, 0);
                    while let Some(event) = stream.blocking_next() {
                        assert!(matches!(event, RequestEvent::Token(_)), "{event:?}");
                        first.get_or_insert_with(|| started.elapsed().as_secs_f64());
                        tokens += 1;
                    }
                    assert_eq!(tokens, OUTPUT_LEN, "every asked token was generated");
                    let first = first.expect("a first token");
                    (first, started.elapsed().as_secs_f64() - first)
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("it runs")).collect()
    });
    let seconds = started.elapsed().as_secs_f64();
    let output = streams as f64 * f64::from(OUTPUT_LEN) / seconds;
    let mean = |f: fn(&(f64, f64)) -> f64| times.iter().map(f).sum::<f64>() / streams as f64;
    Run {
        streams,
        output,
        total: output * (INPUT_LEN as f64 + f64::from(OUTPUT_LEN)) / f64::from(OUTPUT_LEN),
        decode: f64::from(OUTPUT_LEN - 1) / mean(|&(_, decode)| decode),
        ttft: mean(|&(first, _)| first),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The processor's name, where the system tells.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name"));
    name.and_then(|rest| rest.split_once(": ")).map_or("unknown", |(_, name)| name).to_owned()
}

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut options = Options::new("smollm2-135m-instruct");
    options.hub.cache_dir = root.join("target/tmp/models-cache");
    options.hub.use_hub = false;
    let int8 = std::env::args().any(|arg| arg == "int8");
    options.quantization = int8.then_some(Quantization::Int8);
    let sconce = Sconce::start(&options, &()).expect("the model starts");
    let summary = sconce.summary();
    let mut log = String::new();
    let mut say = |line: String| {
        println!("{line}");
        writeln!(log, "{line}").expect("a string takes every line");
    };
    say(format!("# {} on {}, {}", summary.model_name, processor(), summary.device));
    say(format!(
        "# {}, {INPUT_LEN} tokens in, {OUTPUT_LEN} out, {ROUNDS} rounds in turns, loaded in {:.2} s",
        if int8 { "int8 weights" } else { "bf16" },
        summary.load_times.total().as_secs_f64()
    ));
    let mut rng = StdRng::seed_from_u64(0);
    measure(&sconce, 1, &mut rng);
    let mut runs = Vec::new();
    say(format!(
        "{:>8} {:>12} {:>12} {:>18} {:>9}",
        "streams", "output/s", "total/s", "decode/s/stream", "TTFT, ms"
    ));
    let row = |run: &Run| {
        let Run { streams, output, total, decode, ttft } = run;
        format!("{streams:>8} {output:>12.1} {total:>12.1} {decode:>18.1} {:>9.1}", ttft * 1e3)
    };
    for _ in 0..ROUNDS {
        for streams in STREAMS {
            let run = measure(&sconce, streams, &mut rng);
            say(row(&run));
            runs.push(run);
        }
    }
    say("# medians".to_owned());
    let mut outputs = Vec::new();
    for streams in STREAMS {
        let of = |f: fn(&Run) -> f64| median(runs.iter().filter(|r| r.streams == streams).map(f));
        let run = Run {
            streams,
            output: of(|run| run.output),
            total: of(|run| run.total),
            decode: of(|run| run.decode),
            ttft: of(|run| run.ttft),
        };
        say(row(&run));
        outputs.push(run.output);
    }
    say(format!("# 32 streams give {:.2} times the tokens of 1", outputs[2] / outputs[0]));
    let path = root.join("benches/results").join(if int8 {
        "throughput-cpu-int8.log"
    } else {
        "throughput-cpu.log"
    });
    std::fs::write(&path, log).expect("the log is written");
    println!("# log: {}", path.display());
}
