//! Time to the first token of a prompt whose first 2,000 tokens were computed before,
//! beside that of one that is new, in turns.
//!
//! `cargo bench --bench prefix [-- MODEL]`

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sconce::{EngineRequest, Options, RequestEvent, SamplingParams, Sconce};

const PREFIX: usize = 2000;
const SUFFIX: usize = 16;
const ROUNDS: usize = 9;

#[expect(clippy::print_stdout, reason = "a bench prints")]
fn main() {
    let model = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let model = model.unwrap_or_else(|| "smollm2-135m-instruct".to_owned());
    let options = Options { max_num_seqs: 8, ..Options::new(model) };
    let sconce = Sconce::start(&options, &()).expect("the model starts");
    let summary = sconce.summary();
    println!("# {} on {}", summary.model_name, summary.device);
    println!("# a prompt of {PREFIX} + {SUFFIX} tokens, alone; {ROUNDS} rounds in turns");
    let vocab_size = sconce.engine().limits().vocab_size as u32;
    let mut rng = StdRng::seed_from_u64(1);
    let mut random =
        |len: usize| -> Vec<u32> { (0..len).map(|_| rng.random_range(100..vocab_size)).collect() };
    let (mut cold, mut cached) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let prefix = random(PREFIX);
        let mut ask = || first_token(&sconce, [&prefix[..], &random(SUFFIX)].concat());
        let (new, found) = (ask(), ask());
        assert_eq!((new.1, found.1), (0, PREFIX / 16 * 16), "the prefix is found, and only then");
        // The first warms up.
        if round > 0 {
            println!("new {:.1} ms, found {:.1} ms", ms(new.0), ms(found.0));
            cold.push(new.0);
            cached.push(found.0);
        }
    }
    let (cold, cached) = (median(cold), median(cached));
    let ratio = cached.as_secs_f64() / cold.as_secs_f64();
    println!("median: new {:.1} ms, found {:.1} ms, ratio {ratio:.3}", ms(cold), ms(cached));
}

/// The time to a prompt's first token, and how many tokens of it were cached.
fn first_token(sconce: &Sconce, prompt: Vec<u32>) -> (Duration, usize) {
    let params = SamplingParams { max_tokens: 1, temperature: 0.0, ..SamplingParams::default() };
    let started = Instant::now();
    let stream = sconce.engine().submit(EngineRequest::new(prompt, params));
    match stream.expect("it is taken").blocking_next() {
        Some(RequestEvent::Token(token)) => (started.elapsed(), token.usage.cached_tokens as usize),
        other => panic!("no token but {other:?}"),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
