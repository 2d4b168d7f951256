//! Decode steps that are recorded as graphs, on the fake GPU of `kernels/shim`: what is served
//! on them, what fails, and mistakes that are planted in them.

use std::{io::Read as _, thread};

use super::{
    Answer, Ask, Gpu, Work, models, refusal,
    serving::{FEW_BLOCKS, scenario},
};
use crate::process::Server;

/// A prompt of several chunks, and so many decode steps after the token that its end samples.
fn ask() -> Ask {
    Ask::new(100, 1 + DECODES, 1)
}

const DECODES: usize = 7;

/// What a server without graphs answers.
fn right(args: &[&str]) -> Answer {
    let gpu = Gpu::start(&models::tiny(), &[], &[args, &["--enforce-eager"]].concat());
    ask().answer(&gpu.server)
}

/// An answer, if the server lives and gives one.
fn answer(server: &Server) -> Option<Answer> {
    let mut text = String::new();
    let body = ask().body(false).to_string();
    let mut stream = server.try_open("POST", "/v1/completions", "", &body)?;
    // The process may end in the midst of it.
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    (head.starts_with("HTTP/1.1 200") && body.contains("choices")).then(|| Answer::of_body(body))
}

fn replayed(work: &[Work]) -> usize {
    // Each is of one step: attention in two layers.
    let attention = |work: &&Work| work.name.starts_with("cuGraphLaunch of decode_attention");
    work.iter().filter(attention).count() / 2
}

#[test]
fn decode_steps_are_replayed_unless_none_are_recorded() {
    let right = right(&[]);
    for (args, recorded, replays) in [
        (&[][..], "3 CUDA graphs", DECODES),
        (&["--enforce-eager"], "", 0),
        // One sequence is padded to three.
        (&["--cuda-graph-sizes", "3"], "1 CUDA graphs", DECODES),
        (&["--cuda-graph-sizes", "2,1,2"], "2 CUDA graphs", DECODES),
    ] {
        let gpu = Gpu::start(&models::tiny(), &["--mode", "late"], args);
        let ready = gpu.trace().len();
        assert_eq!(ask().answer(&gpu.server), right, "{args:?}");
        assert_eq!(replayed(&gpu.trace()[ready..]), replays, "{args:?}");
        assert_eq!(gpu.server.banner.contains("CUDA graphs"), !recorded.is_empty(), "{args:?}");
        assert!(gpu.server.banner.contains(recorded), "{args:?}: {}", gpu.server.banner);
        gpu.assert_clean("graphs");
    }
    let (code, said) = refusal(&models::tiny(), "", &[], &["--cuda-graph-sizes", "1,5"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cuda_graph_sizes has 5, but a step has 1 to 4 sequences"), "{said}");
}

/// Of several rows too, where steps of three are padded to four.
#[test]
fn a_step_that_is_padded_has_the_bits_of_one_that_is_not() {
    let gpu = Gpu::start(&models::tiny(), &["--mode", "late"], &FEW_BLOCKS);
    let alone: Vec<_> = scenario().iter().map(|ask| ask.answer(&gpu.server)).collect();
    thread::scope(|scope| {
        for ask in scenario().into_iter().zip(&alone) {
            let (server, (ask, alone)) = (&gpu.server, ask);
            scope.spawn(move || assert_eq!(ask.answer(server), *alone));
        }
    });
    gpu.assert_clean("padded");
}

#[test]
fn what_cannot_be_recorded_is_said_at_start() {
    for (fault, said) in [
        ("fail cuStreamBeginCapture_v2 1 CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "UNSUPPORTED"),
        ("fail cuStreamEndCapture 2 CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "INVALIDATED"),
        ("fail cuGraphInstantiateWithFlags 1 CUDA_ERROR_OUT_OF_MEMORY", "OUT_OF_MEMORY"),
    ] {
        let (code, message) = refusal(&models::tiny(), fault, &["--mode", "late"], &[]);
        assert_eq!(code, Some(1), "{fault}: {message}");
        assert!(message.contains(said) && message.contains("--enforce-eager"), "{message}");
        assert!(!message.contains("panicked"), "{fault}: {message}");
    }
    // A device that has no graphs at all does without.
    let fault = "fail cuStreamBeginCapture_v2 * CUDA_ERROR_NOT_SUPPORTED";
    let gpu = Gpu::with_faults(fault, &[], &[]);
    assert_eq!(ask().answer(&gpu.server), right(&[]));
    assert!(gpu.log().contains("launched kernel by kernel"), "{}", gpu.log());
}

#[test]
fn a_replay_that_fails_ends_what_ran_and_the_engine_is_built_anew() {
    let right = right(&[]);
    // Some steps are replayed before the server is ready.
    let gpu = Gpu::start(&models::tiny(), &["--mode", "late"], &[]);
    let script = format!("fail cuGraphLaunch {} 999", replayed(&gpu.trace()) + 3);
    drop(gpu);
    let gpu = Gpu::with_faults(&script, &["--mode", "late"], &[]);
    let (status, body) = ask().send(&gpu.server);
    assert!(status == 500 && body.contains("CUDA_ERROR_UNKNOWN"), "{status} {body}");
    assert_eq!(ask().answer(&gpu.server), right);
    assert_eq!(gpu.server.metric("sconce:engine_restarts_total"), 1.0);
}

/// An address in a graph that points elsewhere by the time it is replayed; a step's lists, or
/// its replay, left out.
#[test]
fn a_mistake_in_a_graph_is_found() {
    let right = right(&[]);
    let gpu = Gpu::start(&models::tiny(), &["--mode", "late"], &[]);
    let uploads = |work: &[Work]| {
        work.iter().filter(|work| work.name.starts_with("cuMemcpyHtoDAsync_v2")).count()
    };
    let (ready, loading) = (gpu.trace().len(), uploads(&gpu.trace()));
    let replays = replayed(&gpu.trace());
    assert_eq!(answer(&gpu.server).as_ref(), Some(&right));
    let serving = uploads(&gpu.trace()[ready..]);
    drop(gpu);
    for script in [
        // Which tokens, which positions and places in the cache, whose context.
        "stale 1 embedding_gather".to_owned(),
        "stale 3 rope_and_cache_bf16".to_owned(),
        "stale 4 rope_and_cache_bf16".to_owned(),
        "stale 1 decode_attention_bf16_d64_r8".to_owned(),
        format!("skip cuGraphLaunch {}", replays + 2),
        // The third decode step's batch; each has a copy for its sampling too.
        format!("skip cuMemcpyHtoDAsync_v2 {}", loading + serving - 2 * (DECODES - 3) - 1),
    ] {
        let gpu = Gpu::with_faults(&script, &["--mode", "late"], &[]);
        assert_ne!(answer(&gpu.server).as_ref(), Some(&right), "{script} changed nothing");
    }
}
