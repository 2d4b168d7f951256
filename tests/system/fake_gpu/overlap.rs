//! Two steps in flight: what is served is what one step at a time serves, and mistakes that are
//! planted in how steps follow each other are found.
//!
//! `SCONCE_FAKE_GPU_STEPS` asks for another number of steps than a short run has.

use std::{
    env,
    io::Read as _,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use serde_json::{Value, json};

use super::{Answer, Ask, EAGER, Gpu, Work, models, read_until, refusal, serving::FEW_BLOCKS};
use crate::{process::Server, tiny::VOCAB};

/// One step at a time.
const ONE_BY_ONE: &str = "--no-async-scheduling";
/// In all modes together.
const STEPS: u64 = 1_200;
/// More than there are seats.
const CLIENTS: u64 = 6;

/// A request, and what it asks beside the usual.
struct Wanted {
    ask: Ask,
    more: Value,
}

/// Requests whose next step depends on what is sampled in more ways than by the token: penalties
/// count it, a form follows it, an end makes the rows of the next step dead.
fn wanted() -> Vec<Wanted> {
    let drawn = |ask: Ask| Ask { temperature: 0.9, ..ask };
    let penalties =
        json!({ "repetition_penalty": 1.2, "frequency_penalty": 0.6, "presence_penalty": 0.4 });
    let ends: Vec<usize> = (0..VOCAB).step_by(11).collect();
    let ends = json!({ "stop_token_ids": ends, "min_tokens": 4 });
    let form = json!({ "structured_outputs": { "regex": "[a-p]{30}" }, "ignore_eos": false });
    let all = [
        (Ask::new(5, 40, 1), &penalties),
        (drawn(Ask::new(30, 30, 2)), &penalties),
        (Ask::new(60, 30, 3), &ends),
        (drawn(Ask::new(17, 50, 4)), &ends),
        (Ask::new(9, 29, 5), &form),
        (drawn(Ask::new(40, 20, 6)), &json!({})),
        (Ask::new(33, 60, 7), &penalties),
        (Ask::new(80, 12, 8), &json!({ "prompt_logprobs": 1 })),
    ];
    all.into_iter().map(|(ask, more)| Wanted { ask, more: more.clone() }).collect()
}

impl Wanted {
    fn body(&self, stream: bool) -> String {
        let mut body = self.ask.body(stream);
        for (name, value) in self.more.as_object().expect("fields") {
            body[name] = value.clone();
        }
        body.to_string()
    }

    /// What comes of it, or of its first tokens where the client leaves after so many.
    fn answer(&self, server: &Server, leave_after: Option<usize>) -> Answer {
        if let Some(events) = leave_after {
            let stream = server.open("POST", "/v1/completions", &self.body(true));
            return Answer::of_events(&read_until(stream, events));
        }
        let (status, body) = server.send("POST", "/v1/completions", &self.body(false));
        assert_eq!(status, 200, "{body}");
        Answer::of_body(&body)
    }
}

/// What one step at a time answers, launched kernel by kernel on a device that does its work at
/// once: each request alone.
fn answers_alone(wanted: &[Wanted]) -> Vec<Answer> {
    let args = [&FEW_BLOCKS[..], &[EAGER, ONE_BY_ONE]].concat();
    let gpu = Gpu::start(&models::tiny(), &["--mode", "eager"], &args);
    assert!(!gpu.server.banner.contains("steps in flight"), "{}", gpu.server.banner);
    wanted.iter().map(|wanted| wanted.answer(&gpu.server, None)).collect()
}

fn steps(server: &Server) -> u64 {
    server.metric("sconce:step_time_seconds_count") as u64
}

/// Clients come, go on, and leave, until the device has computed so many steps.
fn serve(fake_gpu: &[&str], most: u64, wanted: &[Wanted], alone: &[Answer]) -> (usize, usize) {
    let mut gpu = Gpu::start(&models::tiny(), fake_gpu, &FEW_BLOCKS);
    assert!(gpu.server.banner.contains("2 steps in flight"), "{}", gpu.server.banner);
    let left = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, left) = (&gpu.server, &left);
            scope.spawn(move || {
                let mut number = client;
                while steps(server) < most {
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(12_345);
                    let index = (number >> 33) as usize % wanted.len();
                    let leaves = (number >> 40).is_multiple_of(4);
                    let leave_after = leaves.then_some(1 + (number >> 45) as usize % 9);
                    let answer = wanted[index].answer(server, leave_after);
                    let len = leave_after.map_or(usize::MAX, |_| answer.tokens.len());
                    let right = alone[index].first(len);
                    assert_eq!(answer, right, "{fake_gpu:?}, request {index}, {leave_after:?}");
                    left.fetch_add(usize::from(leaves), Ordering::Relaxed);
                }
            });
        }
    });
    let left = left.into_inner();
    let preempted = gpu.server.metric("vllm:num_preemptions_total") as usize;
    let discarded = gpu.server.metric("sconce:discarded_device_seconds_total");
    assert!(gpu.server.terminate().success(), "{fake_gpu:?}: {}", gpu.log());
    gpu.assert_clean("two steps in flight");
    assert!(discarded > 0.0, "no row of a step in flight was dead");
    (preempted, left)
}

#[test]
fn two_steps_in_flight_answer_as_one_at_a_time() {
    let steps = env::var("SCONCE_FAKE_GPU_STEPS").ok();
    let steps = steps.map_or(STEPS, |steps| steps.parse().expect("a number"));
    let wanted = wanted();
    let alone = answers_alone(&wanted);
    let modes: [&[&str]; 3] =
        [&["--mode", "late"], &["--mode", "random", "--seed", "11"], &["--mode", "eager"]];
    let ran = modes.map(|mode| serve(mode, steps.div_ceil(3), &wanted, &alone));
    assert!(ran.iter().all(|&(_, left)| left > 0), "{ran:?}: every client stayed");
    assert!(ran.iter().any(|&(preempted, _)| preempted > 0), "{ran:?}: nobody was preempted");
}

/// An answer of some decode steps, if the server lives and gives one.
fn answer(server: &Server) -> Option<Answer> {
    let mut text = String::new();
    let body = Ask::new(40, 12, 1).body(false).to_string();
    let mut stream = server.try_open("POST", "/v1/completions", "", &body)?;
    // The process may end in the midst of it.
    let _ = stream.read_to_string(&mut text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    (head.starts_with("HTTP/1.1 200") && body.contains("choices")).then(|| Answer::of_body(body))
}

const UPLOAD: &str = "cuMemcpyHtoDAsync_v2";
const LAUNCH: &str = "cuLaunchKernel";

/// Which call of a function does such work for the answer, by the trace: one in its middle.
fn in_the_middle(
    loading: &[Work],
    serving: &[Work],
    call: &str,
    is_such: impl Fn(&[Work]) -> bool,
) -> usize {
    let is_call = |work: &Work| work.name.starts_with(call);
    let calls = (0..serving.len()).filter(|&i| is_call(&serving[i]));
    let such = (1..).zip(calls).filter(|&(_, i)| is_such(&serving[i..])).map(|(nth, _)| nth);
    let such: Vec<usize> = such.collect();
    loading.iter().filter(|work| is_call(work)).count() + such[such.len() / 2]
}

/// Whether an upload is of a step's lists, which its first kernels read, not of sampling's.
fn is_of_a_step(work: &[Work]) -> bool {
    let mut next = work[1..].iter().map(|work| work.name.as_str());
    let next = next.find(|name| name.starts_with(UPLOAD) || name.contains("embedding_gather"));
    next.is_some_and(|name| !name.starts_with(UPLOAD))
}

#[test]
fn a_mistake_between_two_steps_is_found() {
    let gpu = Gpu::start(&models::tiny(), &[], &[EAGER, ONE_BY_ONE]);
    let right = answer(&gpu.server).expect("it is answered");
    drop(gpu);
    let gpu = Gpu::start(&models::tiny(), &["--mode", "late"], &[EAGER]);
    let loading = gpu.trace();
    assert_eq!(answer(&gpu.server).as_ref(), Some(&right));
    let serving = gpu.trace().split_off(loading.len());
    drop(gpu);
    let upload = in_the_middle(&loading, &serving, UPLOAD, is_of_a_step);
    let is_sampling = |work: &[Work]| work[0].name.contains("sampling");
    let sampling = in_the_middle(&loading, &serving, LAUNCH, is_sampling);
    for (mode, script, args) in [
        // A step's lists are those of the step before.
        ("late", format!("skip {UPLOAD} {upload}"), EAGER),
        // What the slot sampled last is what it sampled a step ago.
        ("late", format!("skip {LAUNCH} {sampling}"), EAGER),
        // Results are read before they are there.
        ("late", "skip cuEventSynchronize after cuGraphLaunch".to_owned(), ""),
        // The next step's results are written where this one's are yet to be read: pinned
        // buffers 5 and 6 are theirs, after those of uploads.
        ("eager", "again cuMemHostAlloc 6".to_owned(), ""),
    ] {
        let gpu = Gpu::with_faults(&script, &["--mode", mode], &[args]);
        assert_ne!(answer(&gpu.server).as_ref(), Some(&right), "{script} changed nothing");
    } // What slots sampled last is looked for elsewhere, from the first step on.
    let (code, log) =
        refusal(&models::tiny(), "stale 4 embedding_gather", &["--mode", "late"], &[]);
    assert_ne!(code, Some(0), "{log}");
    assert!(log.contains("embedding_gather") && log.contains("is outside all memory"), "{log}");
}
