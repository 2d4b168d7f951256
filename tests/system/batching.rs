//! A request's tokens and log-probabilities are the same bits, whatever it is
//! batched with, however its prompt is cut up, and after preemption.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sconce::Dtype;
use sconce_engine::{EngineHandle, PrefixKey};
use sconce_runner::LoadOptions;
use sconce_types::SamplingParams;

use crate::model::{self, Answer};

const ALL: usize = 33;

/// Requests of many lengths and kinds.
fn requests() -> Vec<(Vec<u32>, SamplingParams)> {
    let mut rng = StdRng::seed_from_u64(11);
    (0..ALL)
        .map(|index| {
            let len = [1, 2, 15, 16, 17, 33, 100, 250][rng.random_range(0..8)];
            let prompt = (0..len).map(|_| rng.random_range(100..40_000)).collect();
            let params = SamplingParams {
                max_tokens: rng.random_range(1..24),
                temperature: [0.0, 0.7, 1.3][index % 3],
                top_p: [1.0, 0.9][index % 2],
                top_k: [0, 50][index / 2 % 2],
                repetition_penalty: [1.0, 1.2][index / 4 % 2],
                seed: index as u64,
                logprobs: Some(3),
                prompt_logprobs: (index % 5 == 0).then_some(1),
                ..SamplingParams::default()
            };
            (prompt, params)
        })
        .collect()
}

fn options(max_num_batched_tokens: usize) -> LoadOptions {
    LoadOptions {
        max_num_batched_tokens: Some(max_num_batched_tokens),
        max_model_len: Some(512),
        kv_cache_memory_bytes: Some(256 << 20),
        ..model::options(Dtype::Bf16)
    }
}

/// The first so many, one after another.
fn alone(engine: &EngineHandle, count: usize) -> Vec<Answer> {
    let requests = requests();
    let first = requests.iter().take(count);
    first.map(|(prompt, params)| model::run(engine, prompt, params)).collect()
}

/// The first so many at once, from as many threads, so they arrive in some random order.
fn together(engine: &EngineHandle, count: usize) -> Vec<Answer> {
    let requests = requests();
    std::thread::scope(|scope| {
        let running: Vec<_> = requests
            .iter()
            .take(count)
            .map(|(prompt, params)| scope.spawn(|| model::run(engine, prompt, params)))
            .collect();
        running.into_iter().map(|thread| thread.join().expect("it answers")).collect()
    })
}

#[test]
fn tokens_and_logprobs_do_not_depend_on_the_batch() {
    let expected = alone(&model::engine(options(256), None), ALL);
    for chunk in [16, 48, 256] {
        let engine = model::engine(options(chunk), None);
        assert_eq!(together(&engine, ALL), expected, "together, with steps of {chunk} tokens");
        if chunk == 16 {
            assert_eq!(alone(&engine, ALL), expected, "alone, with steps of {chunk} tokens");
        }
    }
    // Room for the longest request and little more.
    let engine = model::engine(options(64), Some(18));
    assert_eq!(together(&engine, ALL), expected, "with preemption");
    let preempted = engine.metrics().num_preemptions.get();
    assert!(preempted > 0, "so little cache must force a preemption");
}

#[test]
fn tokens_and_logprobs_do_not_depend_on_the_prefix_cache() {
    let expected = alone(&model::engine(options(64), None), ALL);
    let cache = Some(PrefixKey([1, 2]));
    let engine = model::engine_with(options(64), None, cache);
    assert_eq!(together(&engine, ALL), expected, "nothing was computed before");
    assert_eq!(together(&engine, ALL), expected, "all find what was computed before");
    let (hits, queries) =
        (&engine.metrics().prefix_cache_hits, &engine.metrics().prefix_cache_queries);
    assert!(hits.get() * 4 > queries.get(), "most is found the second time");
    // Where what is cached must give way all the time.
    let engine = model::engine_with(options(64), Some(20), cache);
    assert_eq!(together(&engine, ALL), expected, "with little room");
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let one = model::engine(LoadOptions { threads: Some(1), ..options(256) }, None);
    let three = model::engine(LoadOptions { threads: Some(3), ..options(256) }, None);
    assert_eq!(alone(&one, 8), together(&three, 8));
}
