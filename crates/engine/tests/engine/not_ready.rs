//! Requests that are not ready to be scheduled: they wait without a step, are woken, expire,
//! and are counted by what they wait for.

use std::{convert::Infallible, time::Duration};

use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, EngineRequest, FakeExecutor, RequestError,
    RequestEvent, RequestStream, SchedulerConfig, SchedulingPolicy, SubmitError, TokenConstraint,
};
use sconce_types::{NotReady, SamplingParams, TokenId};

const VOCAB_SIZE: u32 = 50;
const PATIENCE: Duration = Duration::from_secs(3600);
const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 2,
    max_num_batched_tokens: 16,
    max_model_len: 64,
    num_blocks: 12,
    groups: CacheGroups::ONE,
    depth: 1,
    max_queued: 2,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};

fn start() -> EngineHandle {
    let build = || -> Result<_, Infallible> {
        let executor = FakeExecutor::late(VOCAB_SIZE, &CONFIG, 1);
        let vocab_size = VOCAB_SIZE as usize;
        Ok(Built { executor, energy: None, config: CONFIG, vocab_size, info: () })
    };
    let (_, handle, ()) = Engine::start("fake", build).expect("the engine starts");
    handle
}

fn request() -> EngineRequest {
    let params = SamplingParams { max_tokens: 8, ..SamplingParams::default() };
    EngineRequest::new(vec![1, 2, 3], params)
}

fn tokens(mut stream: RequestStream) -> Result<Vec<TokenId>, RequestError> {
    let mut tokens = Vec::new();
    while let Some(event) = stream.blocking_next() {
        match event {
            RequestEvent::Token(token) => tokens.push(token.token),
            RequestEvent::Failed(error) => return Err(error),
            RequestEvent::Embedding(_) | RequestEvent::PromptLogprobs { .. } => {}
        }
    }
    Ok(tokens)
}

fn expected() -> Vec<TokenId> {
    let EngineRequest { prompt, params, .. } = request();
    FakeExecutor::expected_tokens(&prompt, &params, VOCAB_SIZE)
}

fn waiting(engine: &EngineHandle, reason: &str) -> i64 {
    let by_reason = &engine.metrics().num_requests_waiting_by_reason;
    by_reason.with_label_values(&[reason]).get()
}

#[test]
fn a_request_that_is_made_ready_runs_and_others_pass_it_meanwhile() {
    let engine = start();
    let taken = engine.submit_not_ready(request(), None, NotReady::Grammar, PATIENCE);
    let (stream, signal) = taken.expect("it is taken");
    let other = engine.submit(request()).expect("it is taken");
    assert_eq!(tokens(other), Ok(expected()));
    while (waiting(&engine, "grammar"), waiting(&engine, "capacity")) != (1, 0) {
        std::thread::yield_now();
    }
    signal.ready(None);
    assert_eq!(tokens(stream), Ok(expected()));
    while waiting(&engine, "grammar") > 0 {
        std::thread::yield_now();
    }
    let time = engine.metrics().not_ready_time.with_label_values(&["grammar"]);
    assert_eq!(time.get_sample_count(), 1);
}

#[test]
fn what_is_not_ready_in_time_ends_with_its_reason() {
    let engine = start();
    let patience = Duration::from_millis(20);
    let taken = engine.submit_not_ready(request(), None, NotReady::Adapter, patience);
    let (stream, signal) = taken.expect("it is taken");
    let error = tokens(stream).expect_err("nobody makes it ready");
    assert_eq!(error, RequestError::NotReady { reason: NotReady::Adapter, timeout: patience });
    assert_eq!(
        error.to_string(),
        "what the request waits for (adapter) was not ready within 0.02 s"
    );
    let expired = engine.metrics().not_ready_expired.with_label_values(&["adapter"]);
    assert_eq!(expired.get(), 1);
    // A signal that comes too late finds nothing.
    signal.ready(None);
    assert_eq!(tokens(engine.submit(request()).expect("it is taken")), Ok(expected()));
}

#[test]
fn what_cannot_be_made_ready_says_why() {
    let engine = start();
    let blocked = || {
        let taken = engine.submit_not_ready(request(), None, NotReady::Grammar, PATIENCE);
        taken.expect("it is taken")
    };
    let (stream, signal) = blocked();
    signal.fail("the schema is too large");
    let reason = "the schema is too large".to_owned();
    assert_eq!(tokens(stream), Err(RequestError::CannotRun { reason }));
    let (stream, signal) = blocked();
    drop(signal);
    assert!(matches!(tokens(stream), Err(RequestError::CannotRun { .. })));
}

/// With nothing but a blocked request the engine's thread waits for messages: dropping the
/// stream must wake it, or the request would never be gone.
#[test]
fn dropping_the_stream_wakes_an_engine_that_has_nothing_to_compute() {
    let engine = start();
    for _ in 0..100 {
        let taken = engine.submit_not_ready(request(), None, NotReady::Kv, PATIENCE);
        let (stream, _signal) = taken.expect("it is taken");
        while waiting(&engine, "kv") == 0 {
            std::thread::yield_now();
        }
        drop(stream);
        while engine.unfinished() > 0 {
            std::thread::yield_now();
        }
    }
    while waiting(&engine, "kv") > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_not_ready_counts_as_queued() {
    let engine = start();
    let blocked: Vec<_> = (0..4)
        .map(|_| engine.submit_not_ready(request(), None, NotReady::Encoder, PATIENCE))
        .collect::<Result<_, _>>()
        .expect("there is room for four");
    let refused = engine.submit(request()).expect_err("there is no room for five");
    assert!(matches!(refused, SubmitError::QueueFull { .. } | SubmitError::Overloaded { .. }));
    for (stream, signal) in blocked {
        signal.ready(None);
        assert_eq!(tokens(stream), Ok(expected()));
    }
}

/// A constraint that panics must not let its request go on without it.
struct Broken;

impl TokenConstraint for Broken {
    fn fill_mask(&mut self, _: &mut [u32]) -> bool {
        panic!("a bug in a grammar")
    }

    fn accept(&mut self, _: TokenId) {}
}

/// A constraint that allows so many tokens of any kind, and no more.
struct DeadEnd {
    left: usize,
    failure: Option<&'static str>,
}

impl TokenConstraint for DeadEnd {
    fn fill_mask(&mut self, words: &mut [u32]) -> bool {
        words.fill(if self.left > 0 { u32::MAX } else { 0 });
        true
    }

    fn accept(&mut self, _: TokenId) {
        self.left -= 1;
    }

    fn failure(&self) -> Option<String> {
        self.failure.map(str::to_owned)
    }
}

#[test]
fn a_constraint_that_allows_nothing_ends_its_request_and_no_other() {
    let engine = start();
    let other = engine.submit(request()).expect("it is taken");
    let end = |failure| {
        let constraint = Box::new(DeadEnd { left: 2, failure });
        let ended = engine.submit_constrained(request(), None, constraint);
        tokens(ended.expect("it is taken")).expect_err("there is no third token")
    };
    assert_eq!(end(None), RequestError::NothingAllowed);
    let reason = "it has become too complex".to_owned();
    assert_eq!(end(Some("it has become too complex")), RequestError::CannotRun { reason });
    assert_eq!(tokens(other), Ok(expected()));
    assert_eq!(engine.metrics().corrupted_requests.get(), 0);
}

#[test]
fn a_constraint_that_panics_ends_its_request_and_no_other() {
    let engine = start();
    let other = engine.submit(request()).expect("it is taken");
    let broken = engine.submit_constrained(request(), None, Box::new(Broken));
    let error = tokens(broken.expect("it is taken")).expect_err("its constraint has failed");
    let reason = "what bounds the request's tokens has failed".to_owned();
    assert_eq!(error, RequestError::CannotRun { reason });
    assert_eq!(tokens(other), Ok(expected()));
}
