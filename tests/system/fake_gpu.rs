//! The binary, unchanged, on the fake GPU of `kernels/shim`, over HTTP.

mod device_time;
mod faults;
mod forms;
mod fp8;
mod graphs;
mod models;
mod overlap;
mod planted;
mod prefixes;
#[cfg(feature = "nvtx")]
mod ranges;
mod serving;
mod start;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::process::Server;

/// Of a step, in tokens: prompts of many chunks need no more than a few hundred tokens.
const CHUNK: usize = 32;

/// For tests whose scripts count calls: of what is replayed there are none.
const EAGER: &str = "--enforce-eager";

/// A server on a fake GPU, and the folder with its log, its faults and its trace.
struct Gpu {
    server: Server,
    folder: TempDir,
}

impl Gpu {
    /// Serves a model with these options of `with-fake-gpu` and of `sconce serve`.
    fn start(model: &Path, fake_gpu: &[&str], args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let command = command(&folder, model, fake_gpu, args);
        let log = File::create(folder.path().join("log")).expect("the folder takes files");
        Self { server: Server::spawn_logging(command, Stdio::from(log)), folder }
    }

    /// The tiny model on an H100 with a script of faults.
    fn with_faults(script: &str, fake_gpu: &[&str], args: &[&str]) -> Self {
        let faults = script_file(script);
        let path = faults.path().to_str().expect("UTF-8");
        Self::start(&models::tiny(), &[&["--faults", path], fake_gpu].concat(), args)
    }

    /// What it logged, and what the fake driver said.
    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("the log")
    }

    /// Panics if the fake driver has found anything wrong.
    fn assert_clean(&self, label: &str) {
        let log = self.log();
        assert!(!log.contains("fake GPU: "), "{label}: {log}");
    }

    /// The work that the device has done: the trace's lines.
    fn trace(&self) -> Vec<Work> {
        let text = fs::read_to_string(self.folder.path().join("trace")).expect("a trace");
        text.lines().map(Work::of_line).collect()
    }
}

/// A script of faults in a file.
fn script_file(script: &str) -> NamedTempFile {
    let faults = NamedTempFile::new().expect("a file");
    fs::write(&faults, script).expect("the file can be written");
    faults
}

/// What a server that does not start says, and the code that it ends with.
fn refusal(model: &Path, script: &str, fake_gpu: &[&str], args: &[&str]) -> (Option<i32>, String) {
    let (folder, faults) = (tempfile::tempdir().expect("a folder"), script_file(script));
    let path = faults.path().to_str().expect("UTF-8");
    let mut command = command(&folder, model, &[&["--faults", path], fake_gpu].concat(), args);
    let log = folder.path().join("log");
    let file = File::create(&log).expect("the folder takes files");
    let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().expect("the binary runs");
    // Its first line is the banner's.
    let banner = BufReader::new(child.stdout.take().expect("it is piped")).lines().next();
    if banner.is_some() {
        child.kill().expect("it runs");
    }
    let status = child.wait().expect("it ends");
    assert!(banner.is_none(), "{script}: it has started");
    (status.code(), fs::read_to_string(log).expect("UTF-8"))
}

/// The script that runs a command on a fake GPU.
fn with_fake_gpu() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/shim/with-fake-gpu"))
}

/// A command that serves a model on a fake GPU, with small limits where `args` name no
/// others; an empty value leaves a flag out.
fn command(folder: &TempDir, model: &Path, fake_gpu: &[&str], args: &[&str]) -> Command {
    let mut command = with_fake_gpu();
    command.arg("--trace").arg(folder.path().join("trace")).args(fake_gpu);
    command.arg(env!("CARGO_BIN_EXE_sconce")).env("SCONCE_NO_HUB", "1");
    command.arg("serve").arg(model).args(["--port", "0"]);
    for (flag, value) in [
        ("--device", "cuda"),
        ("--max-num-seqs", "4"),
        ("--max-num-batched-tokens", &CHUNK.to_string()),
        ("--max-model-len", "256"),
        ("--kv-cache-memory-bytes", "1M"),
    ] {
        if !args.contains(&flag) {
            command.args([flag, value]);
        }
    }
    // Of the larger model they would take long.
    if !args.contains(&"--cache-dir") {
        command.arg("--no-kernel-trials");
    }
    // An option of `serve` and its value, or a flag.
    let is_left_out =
        |i: usize| args[i].is_empty() || args.get(i + 1).is_some_and(|v| v.is_empty());
    command.args((0..args.len()).filter(|&i| !is_left_out(i)).map(|i| args[i]));
    command
}

/// A line of a trace: what the device did, in virtual nanoseconds.
#[derive(Clone, Debug)]
struct Work {
    ns: u64,
    /// Which launch it was, from 1; 0 if it was none.
    launch: u64,
    name: String,
}

impl Work {
    fn of_line(line: &str) -> Self {
        let mut words = line.splitn(4, ' ').skip(1);
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (ns, launch) = (number(), number());
        Self { ns, launch, name: words.next().expect("a name").to_owned() }
    }
}

/// A request for a completion.
#[derive(Clone, Debug)]
struct Ask {
    prompt: Vec<u32>,
    max_tokens: usize,
    temperature: f64,
    seed: u64,
}

/// A completion: its tokens with their log-probabilities, and those of the runner-up.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<String>,
    logprobs: Vec<f32>,
    second: Vec<f32>,
}

impl Ask {
    /// Of that many prompt tokens, which depend on `seed`, all below 256.
    fn new(prompt_len: usize, max_tokens: usize, seed: u64) -> Self {
        let token = |i: usize| (i as u32 * 37 + i as u32 * i as u32 * 11 + seed as u32 * 101) % 250;
        let prompt = (0..prompt_len).map(|i| 3 + token(i)).collect();
        Self { prompt, max_tokens, temperature: 0.0, seed }
    }

    fn body(&self, stream: bool) -> Value {
        let Self { prompt, max_tokens, temperature, seed } = self;
        json!({
            "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature, "seed": seed,
            "ignore_eos": true, "logprobs": 2, "stream": stream,
        })
    }

    /// Status and body.
    fn send(&self, server: &Server) -> (u16, String) {
        server.send("POST", "/v1/completions", &self.body(false).to_string())
    }

    fn answer(&self, server: &Server) -> Answer {
        let (status, body) = self.send(server);
        assert_eq!(status, 200, "{body}");
        let answer = Answer::of_body(&body);
        assert_eq!(answer.tokens.len(), self.max_tokens);
        answer
    }

    /// The same streamed, read until so many events have come; then the client leaves.
    fn stream(&self, server: &Server, leave_after: usize) -> Answer {
        let stream = server.open("POST", "/v1/completions", &self.body(true).to_string());
        Answer::of_events(&read_until(stream, leave_after))
    }
}

/// What a response says until so many of its events have come; then the client leaves.
fn read_until(stream: TcpStream, events: usize) -> String {
    let mut text = String::new();
    let mut left = events;
    for line in BufReader::new(stream).lines() {
        let line = line.expect("UTF-8");
        text.push_str(&line);
        text.push('\n');
        left -= usize::from(line.starts_with("data: "));
        if left == 0 {
            break;
        }
    }
    text
}

impl Answer {
    fn of_body(body: &str) -> Self {
        let body: Value = serde_json::from_str(body).expect("JSON");
        let mut answer = Self::default();
        answer.take(&body["choices"][0]["logprobs"]);
        answer
    }

    /// Of what a stream said.
    fn of_events(text: &str) -> Self {
        let mut answer = Self::default();
        let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
        for event in events.filter(|event| *event != "[DONE]") {
            let chunk: Value = serde_json::from_str(event).expect("JSON");
            assert!(chunk.get("error").is_none(), "{chunk}");
            answer.take(&chunk["choices"][0]["logprobs"]);
        }
        answer
    }

    fn take(&mut self, logprobs: &Value) {
        let list = |name: &str| logprobs[name].as_array().cloned().unwrap_or_default();
        let tokens = list("tokens");
        // Streams write an f32 with the digits that it needs.
        let number = |value: &Value| value.as_f64().expect("a number") as f32;
        self.logprobs.extend(list("token_logprobs").iter().map(number));
        for (token, top) in tokens.iter().zip(list("top_logprobs")) {
            let token = token.as_str().expect("a token");
            let others = top.as_object().expect("the likeliest tokens");
            let others = others.iter().filter(|(name, _)| *name != token);
            self.second.push(others.map(|(_, p)| number(p)).fold(f32::NEG_INFINITY, f32::max));
            self.tokens.push(token.to_owned());
        }
    }

    /// What came of it first.
    fn first(&self, tokens: usize) -> Self {
        let first = |list: &[f32]| list.iter().copied().take(tokens).collect();
        let Self { tokens: all, logprobs, second } = self;
        let all = all.iter().take(tokens).cloned().collect();
        Self { tokens: all, logprobs: first(logprobs), second: first(second) }
    }

    /// Whether `self`, greedy, is `other` but for rounding: the same tokens, up to one where the
    /// two likeliest are within `bound` of each other, with log-probabilities within it.
    fn assert_near(&self, other: &Self, bound: f32, label: &str) {
        for (i, (own, token)) in self.tokens.iter().zip(&other.tokens).enumerate() {
            let margin = (other.logprobs[i] - other.second[i]).abs();
            if own != token {
                assert!(margin <= bound, "{label}: token {i} is {own}, not {token}, by {margin}");
                return;
            }
            let apart = (self.logprobs[i] - other.logprobs[i]).abs();
            assert!(apart <= bound, "{label}: the log-probability of token {i} is off by {apart}");
        }
        assert_eq!(self.tokens.len(), other.tokens.len(), "{label}");
    }
}
