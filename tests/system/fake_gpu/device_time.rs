//! What requests are billed of the device, beside what it did: on virtual time both are exact.

use std::{collections::HashMap, path::Path, thread};

use serde_json::Value;

use super::{
    Ask, EAGER, Gpu, Work, models,
    serving::{FEW_BLOCKS, LEAVER, scenario},
};
use crate::process::sconce;

/// A server with a ledger, and the trace's length once it was ready.
fn start(fake_gpu: &[&str], args: &[&str], ledger: &Path) -> (Gpu, usize) {
    let ledger = ["--ledger", ledger.to_str().expect("UTF-8")];
    let gpu = Gpu::start(&models::tiny(), fake_gpu, &[&ledger, args].concat());
    let ready = gpu.trace().len();
    (gpu, ready)
}

/// Sends a request by a name, read to its end or until the client leaves.
fn send(gpu: &Gpu, name: &str, ask: &Ask, leave_after: Option<usize>) {
    let headers = format!("X-Request-Id: {name}\r\n");
    let body = ask.body(leave_after.is_some()).to_string();
    let stream = gpu.server.try_open("POST", "/v1/completions", &headers, &body);
    let text = super::read_until(stream.expect("it listens"), leave_after.unwrap_or(usize::MAX));
    assert!(text.starts_with("HTTP/1.1 200"), "{name}: {text}");
}

/// Ends the server and gives each request's nanoseconds of the device, and the device's own
/// since it was ready, without what rows took whose requests had ended.
fn bill(mut gpu: Gpu, ready: usize, ledger: &Path) -> (HashMap<String, u64>, u64) {
    while gpu.server.metric("vllm:num_requests_running") > 0.0 {
        thread::yield_now();
    }
    let sum = gpu.server.metric("sconce:step_time_seconds_sum");
    let discarded = gpu.server.metric("sconce:discarded_device_seconds_total");
    let discarded = (discarded * 1e9).round() as u64;
    let was_built_again = gpu.server.metric("sconce:engine_restarts_total") > 0.0;
    assert!(gpu.server.terminate().success());
    gpu.assert_clean("metering");
    let busy = gpu.trace()[ready..].iter().map(|work| work.ns).sum();
    // Of f64, with what steps took while the server warmed up.
    assert!(was_built_again || (sum * 1e9).round() as u64 >= busy, "{sum} s of steps");
    let mut command = sconce();
    command.args(["usage", "--by", "request", "--format", "json", "--ledger"]).arg(ledger);
    let output = command.output().expect("the binary runs");
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).expect("it writes JSON");
    let of = |row: &Value| {
        let seconds = row["device_seconds"].as_f64().expect("a number");
        (row["request"].as_str().expect("an id").to_owned(), (seconds * 1e9).round() as u64)
    };
    (rows.iter().map(of).collect(), busy - discarded)
}

/// With mixed batches, prompts of many chunks, what is computed twice after a preemption and
/// what a client that left had no use for. With steps timed as their launch the sums were off
/// by most of each chunk that samples nothing.
#[test]
fn the_requests_device_seconds_are_the_devices_to_the_nanosecond() {
    let mut preempted = 0.0;
    for (mode, seed) in [("eager", "1"), ("late", "1"), ("random", "7"), ("random", "8")] {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = folder.path().join("usage.db");
        let (gpu, ready) = start(&["--mode", mode, "--seed", seed], &FEW_BLOCKS, &ledger);
        let asks = scenario();
        thread::scope(|scope| {
            for (index, ask) in asks.iter().enumerate() {
                let (gpu, leaves) = (&gpu, (index == LEAVER.0).then_some(LEAVER.1));
                scope.spawn(move || send(gpu, &format!("r{index}"), ask, leaves));
            }
        });
        preempted += gpu.server.metric("vllm:num_preemptions_total");
        // After whatever was in flight for the client that left.
        send(&gpu, "last", &Ask::new(3, 1, 9), None);
        let (billed, busy) = bill(gpu, ready, &ledger);
        assert_eq!(billed.len(), asks.len() + 1, "{billed:?}");
        assert_eq!(billed.values().sum::<u64>(), busy, "{mode} {seed}: {billed:?}");
    }
    assert!(preempted > 0.0, "nothing was computed twice");
}

/// One seat: every step is one request's, and what it is billed does not depend on who came
/// before it.
#[test]
fn no_step_is_charged_to_another_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("usage.db");
    let args = ["--max-num-seqs", "1", "--no-enable-prefix-caching"];
    let (gpu, ready) = start(&["--mode", "late"], &args, &ledger);
    // Each prompt is another, of the same length where it is asked for again.
    let asks = [(150, 2), (9, 6), (70, 1), (200, 3)];
    let ask = |index: usize, round: u64| {
        let (prompt_len, max_tokens) = asks[index];
        Ask::new(prompt_len, max_tokens, 10 * round + index as u64)
    };
    let mut alone = HashMap::new();
    for index in 0..asks.len() {
        let before = gpu.trace().len();
        send(&gpu, &format!("alone{index}"), &ask(index, 1), None);
        let own: u64 = gpu.trace()[before..].iter().map(|work: &Work| work.ns).sum();
        alone.insert(index, own);
    }
    thread::scope(|scope| {
        for index in 0..asks.len() {
            let (gpu, ask) = (&gpu, ask(index, 2));
            scope.spawn(move || send(gpu, &format!("queued{index}"), &ask, None));
        }
    });
    let (billed, busy) = bill(gpu, ready, &ledger);
    for (index, own) in &alone {
        for way in ["alone", "queued"] {
            assert_eq!(billed[&format!("{way}{index}")], *own, "{way}, request {index}");
        }
    }
    assert_eq!(2 * alone.values().sum::<u64>(), busy);
}

/// A step that fails in its middle has kept the device until then, and its request pays for
/// that, not for what the host took. What the requests do not pay for is what building the
/// engine again takes: the same wherever the step failed, at a launch or at the copy that
/// brings back what was sampled.
#[test]
fn a_failed_step_is_billed_what_the_device_did() {
    let one_seat = ["--max-num-seqs", "1", EAGER];
    let ask = Ask::new(100, 8, 1);
    // Which calls are in the middle of the request.
    let gpu = Gpu::start(&models::tiny(), &[], &one_seat);
    let loading = gpu.trace();
    ask.answer(&gpu.server);
    let work = gpu.trace();
    drop(gpu);
    let loading_ns: u64 = loading.iter().map(|work| work.ns).sum();
    let mut rest = HashMap::new();
    let (launch, copy) = ("cuLaunchKernel", "cuMemcpyDtoHAsync_v2");
    for (call, later, error) in [(launch, 0, "701"), (launch, 7, "701"), (copy, 0, "1")] {
        let count = |of: &[Work]| of.iter().filter(|work| work.name.starts_with(call)).count();
        let nth = count(&loading).midpoint(count(&work)) + later;
        let script = super::script_file(&format!("fail {call} {nth} {error}\n"));
        let path = script.path().to_str().expect("UTF-8");
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = folder.path().join("usage.db");
        let faults = ["--mode", "late", "--faults", path];
        let (gpu, ready) = start(&faults, &one_seat, &ledger);
        assert_eq!(ask.send(&gpu.server).0, 500, "{call} {nth}: {}", gpu.log());
        ask.answer(&gpu.server);
        assert_eq!(gpu.server.metric("sconce:engine_restarts_total"), 1.0, "{call} {nth}");
        let (billed, busy) = bill(gpu, ready, &ledger);
        assert_eq!(billed.len(), 2, "{call} {nth}: {billed:?}");
        assert!(billed.values().all(|&ns| ns > 0), "{call} {nth}: {billed:?}");
        rest.insert((call, nth), busy - billed.values().sum::<u64>());
    }
    let same = *rest.values().next().expect("three");
    assert!(same <= loading_ns && rest.values().all(|&ns| ns == same), "{loading_ns}: {rest:?}");
}
