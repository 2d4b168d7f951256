//! The binary, unchanged, on the fake GPU of `kernels/shim`, over HTTP: the default model
//! with its weights cut to two layers.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use safetensors::SafeTensors;

use crate::{model, process::Server};

const NUM_LAYERS: usize = 2;
/// Of a step: the prompt below is computed in more than five.
const BATCHED_TOKENS: &str = "32";

/// The default model's folder without all but its first layers.
fn cut_model() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cut-{}", std::process::id()));
        fs::create_dir_all(&to).expect("the target folder takes files");
        for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(model::dir().join(name), to.join(name)).expect("a file of the model");
        }
        let config = fs::read(model::dir().join("config.json")).expect("a config");
        let mut config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        config["num_hidden_layers"] = NUM_LAYERS.into();
        fs::write(to.join("config.json"), config.to_string()).expect("the folder takes files");
        let bytes = fs::read(model::dir().join("model.safetensors")).expect("weights");
        let all = SafeTensors::deserialize(&bytes).expect("a checkpoint");
        let kept = all.tensors().into_iter().filter(|(name, _)| {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            layer.is_none_or(|(layer, _)| layer.parse::<usize>().is_ok_and(|n| n < NUM_LAYERS))
        });
        safetensors::serialize_to_file(kept, None, &to.join("model.safetensors"))
            .expect("the folder takes files");
        to
    })
}

/// A server of the cut model on the fake GPU, and the file that has its log.
fn serve(fake_gpu: &[&str], args: &[&str]) -> (Server, PathBuf) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/shim/with-fake-gpu");
    let mut command = Command::new(script);
    command.args(fake_gpu).arg(env!("CARGO_BIN_EXE_sconce")).env("SCONCE_NO_HUB", "1");
    let log = cut_model().join(format!("log{}", fake_gpu.join("").replace('/', "-")));
    let file = File::create(&log).expect("the folder takes files");
    command.arg("serve").arg(cut_model()).args(["--port", "0", "--max-model-len", "512"]);
    command.args(["--max-num-seqs", "4", "--max-num-batched-tokens", BATCHED_TOKENS]);
    command.args(["--kv-cache-memory-bytes", "32M"]).args(args);
    (Server::spawn_logging(command, Stdio::from(file)), log)
}

/// The response to a prompt of many chunks.
fn ask(server: &Server) -> (u16, String) {
    let prompt: Vec<String> = (0..60).map(|n| format!("{n} is a number,")).collect();
    let body = serde_json::json!({
        "prompt": prompt.join(" "), "max_tokens": 12, "temperature": 0, "ignore_eos": true,
        "logprobs": 1,
    });
    server.send("POST", "/v1/completions", &body.to_string())
}

/// The text of the answer and its tokens' log-probabilities.
fn answer(server: &Server) -> (String, Vec<f64>) {
    let (status, body) = ask(server);
    assert_eq!(status, 200, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let prompt_tokens = body["usage"]["prompt_tokens"].as_u64().expect("a number");
    assert!(prompt_tokens > 5 * 32, "{prompt_tokens} tokens are too few chunks");
    let choice = &body["choices"][0];
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().expect("a list");
    let logprobs: Vec<f64> = logprobs.iter().filter_map(serde_json::Value::as_f64).collect();
    assert_eq!(logprobs.len(), 12);
    (choice["text"].as_str().expect("a text").to_owned(), logprobs)
}

/// With uploads through a ring of pinned buffers that nothing waited for, the late mode said
/// "host memory was changed before an asynchronous copy had read it", and of which buffer.
/// With steps timed by the host's clock, their time was another at every run.
#[test]
fn a_prompt_of_many_chunks_gets_the_same_tokens_and_time_whenever_the_device_runs() {
    let of = |fake_gpu: &[&str]| {
        let (mut server, log) = serve(fake_gpu, &["--device", "cuda"]);
        let answer = answer(&server);
        let [seconds, steps] =
            ["sum", "count"].map(|what| server.metric(&format!("sconce:step_time_seconds_{what}")));
        let said = fs::read_to_string(&log).expect("the log");
        assert!(!said.contains("fake GPU: "), "{fake_gpu:?}: {said}");
        assert!(server.terminate().success());
        // Nanoseconds: sums of f64 differ in their last bits.
        (answer, (seconds * 1e9).round(), steps)
    };
    let eager = of(&["--mode", "eager"]);
    assert!(eager.1 > 0.0 && eager.2 > 12.0 + 5.0, "{eager:?}");
    assert_eq!(of(&["--mode", "late"]), eager);
    for seed in ["1", "2", "3"] {
        assert_eq!(of(&["--mode", "random", "--seed", seed]), eager, "seed {seed}");
    }
    let (server, _) = serve(&[], &["--device", "cpu", "--dtype", "bfloat16"]);
    let ((text, logprobs), (same, theirs)) = (eager.0, answer(&server));
    assert_eq!(text, same);
    // Rounded to bf16 elsewhere.
    let differ = logprobs.iter().zip(&theirs).any(|(own, other)| (own - other).abs() > 0.1);
    assert!(!differ, "{logprobs:?}, on the CPU {theirs:?}");
}

/// Other GPUs compute the same.
#[test]
fn every_profile_serves() {
    let of = |profile: &str| answer(&serve(&["--profile", profile], &["--device", "cuda"]).0);
    let h100 = of("h100");
    for profile in ["a100", "h200", "b200"] {
        assert_eq!(of(profile), h100, "{profile}");
    }
}

#[test]
fn a_device_that_is_lost_ends_the_process_with_a_code_of_its_own() {
    let script = cut_model().join("sticky");
    fs::write(&script, "sticky 100 CUDA_ERROR_ILLEGAL_ADDRESS").expect("the folder takes files");
    let script = script.to_str().expect("a name in UTF-8");
    let (mut server, log) = serve(&["--mode", "late", "--faults", script], &["--device", "cuda"]);
    let (status, body) = ask(&server);
    assert!(status == 500 || status == 503, "{status} {body}");
    assert_eq!(server.ended().code(), Some(3), "{}", fs::read_to_string(log).expect("the log"));
}
