//! Gemma 3 270M with real weights, out of a GGUF file, against transformers
//! (`tests/reference/gemma.py`).

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use sconce::{
    Dtype,
    hub::{self, HubOptions},
};
use sconce_runner::LoadOptions;

use crate::{golden, model};

/// The model's directory: the file is fetched and converted once.
fn dir() -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gemma-3-270m.gguf");
    if !file.is_file() {
        let fetch = model::reference("fetch_gemma.py");
        let output = Command::new("python3").arg(fetch).arg(&file).output();
        let output = output.expect("Python 3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let options = HubOptions { cache_dir: model::cache_dir(), ..HubOptions::default() };
    let file = file.to_str().expect("UTF-8");
    hub::resolve(file, &options, &()).expect("the file is converted").path
}

/// Greedy tokens in f32, at once for twenty prompts, one of which is three times as long as
/// the layers' windows; then the perplexity of a text.
#[test]
fn gemma_computes_what_transformers_computes() {
    let reference = model::reference_json("gemma.json");
    let options = LoadOptions {
        max_num_seqs: 20,
        kv_cache_memory_bytes: Some(1 << 30),
        dtype: Some(Dtype::F32),
        max_model_len: Some(2048),
        max_num_batched_tokens: Some(512),
        ..LoadOptions::new(dir())
    };
    let engine = model::engine(options.clone(), None);
    let cases = reference["golden"].as_array().expect("a list of cases");
    assert_eq!(cases.len(), 20);
    assert!(cases.iter().any(|case| golden::ids(&case["prompt"]).len() == 1500));
    let close_calls: usize = thread::scope(|scope| {
        let engine = &engine;
        let check = |case| scope.spawn(move || golden::check_greedy(engine, case));
        let checks: Vec<_> = cases.iter().map(check).collect();
        checks.into_iter().map(|check| check.join().expect("the tokens are transformers'")).sum()
    });
    assert!(close_calls <= 5, "{close_calls} positions were too close to call");
    drop(engine);

    let tokens = golden::ids(&reference["perplexity_tokens"]);
    let mut runner = model::load(&options).runner;
    let perplexity = golden::perplexity_of(&mut runner, &tokens, 512);
    let theirs = reference["perplexity_f32"].as_f64().expect("a number");
    let ratio = perplexity / theirs;
    assert!((ratio - 1.0).abs() <= 0.005, "{perplexity}, transformers' {theirs}");
}
