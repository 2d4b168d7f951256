//! The engine's thread over an executor without a model: what requests get,
//! what faults cost, and what dropping frees.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use sconce_engine::{
    Built, CacheGroups, End, Engine, EngineHandle, EngineRequest, FakeExecutor, Health,
    RequestError, RequestEvent, RequestStream, SchedulerConfig, SchedulingPolicy, StartError,
    SubmitError, Unfit,
};
use sconce_scheduler::Fault;
use sconce_types::{
    Executor, ExecutorError, RequestId, SamplingParams, ScheduledBatch, StepResult, TokenId,
    TokenMasks,
};

const VOCAB_SIZE: u32 = 50;
const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 4,
    max_num_batched_tokens: 16,
    max_model_len: 64,
    num_blocks: 12,
    max_queued: 8,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};

pub(crate) fn start(faults: &[Fault]) -> (Engine, EngineHandle) {
    let faults = faults.to_vec();
    let build = move || -> Result<_, Infallible> {
        let mut executor = FakeExecutor::new(VOCAB_SIZE, CONFIG.num_blocks, CONFIG.max_num_seqs);
        faults.iter().for_each(|fault| executor.inject(fault.clone()));
        Ok(Built {
            executor,
            energy: None,
            config: CONFIG,
            vocab_size: VOCAB_SIZE as usize,
            info: (),
        })
    };
    let (engine, handle, ()) = Engine::start("fake", build).expect("the engine starts");
    (engine, handle)
}

fn request(prompt_len: u32, max_tokens: u32) -> EngineRequest {
    let prompt = (0..prompt_len).map(|i| (i * 7 + prompt_len) % VOCAB_SIZE).collect();
    EngineRequest::new(prompt, SamplingParams { max_tokens, ..SamplingParams::default() })
}

/// A request's tokens, and how it ended.
fn read(mut stream: RequestStream) -> (Vec<TokenId>, Result<End, RequestError>) {
    let mut tokens = Vec::new();
    let mut end = None;
    while let Some(event) = stream.blocking_next() {
        assert!(end.is_none(), "nothing follows the end");
        match event {
            RequestEvent::Token(token) => {
                tokens.push(token.token);
                end = token.finish.map(Ok);
            }
            RequestEvent::Failed(error) => end = Some(Err(error)),
            RequestEvent::Embedding(_) | RequestEvent::PromptLogprobs { .. } => {}
        }
    }
    (tokens, end.expect("a stream ends with a reason"))
}

#[test]
fn every_request_gets_the_tokens_it_would_get_alone() {
    let (engine, handle) = start(&[]);
    let requests: Vec<_> = (1..=12).map(|i| request(i * 3, 20)).collect();
    let streams: Vec<_> =
        requests.iter().map(|request| handle.submit(request.clone()).expect("taken")).collect();
    for (request, stream) in requests.iter().zip(streams) {
        let expected = FakeExecutor::expected_tokens(&request.prompt, &request.params, VOCAB_SIZE);
        assert_eq!(read(stream), (expected, Ok(End::Length)));
    }
    let metrics = handle.metrics();
    assert_eq!(metrics.generation_tokens.get(), 240);
    assert_eq!(metrics.prompt_tokens.get(), (1..=12).map(|i| i * 3).sum::<u64>());
    assert_eq!(metrics.time_to_first_token.get_sample_count(), 12);
    assert_eq!(metrics.inter_token_latency.get_sample_count(), 228);
    drop(handle);
    engine.join();
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let (_, handle) = start(&[]);
    let refused = |request| handle.submit(request).expect_err("it is refused");
    assert_eq!(refused(request(0, 1)), SubmitError::Unfit(Unfit::EmptyPrompt));
    assert!(matches!(
        refused(request(60, 5)),
        SubmitError::Unfit(Unfit::TooLong { prompt_len: 60, .. })
    ));
    assert!(matches!(refused(request(1, 0)), SubmitError::Params(_)));
    let mut unknown = request(3, 1);
    unknown.prompt[1] = VOCAB_SIZE;
    assert!(matches!(refused(unknown), SubmitError::UnknownToken { token: VOCAB_SIZE, .. }));
    assert_eq!(handle.unfinished(), 0);
}

#[test]
fn a_full_queue_refuses_and_recovers() {
    let (_, handle) = start(&[]);
    let mut streams = Vec::new();
    let full = loop {
        match handle.submit(request(4, 60)) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
    };
    let limit = CONFIG.max_num_seqs + CONFIG.max_queued;
    assert!(matches!(full, SubmitError::QueueFull { limit: l, .. } if l == limit), "{full:?}");
    assert!(streams.len() >= limit);
    drop(streams.split_off(1));
    let (_, end) = read(streams.pop().expect("the first"));
    assert_eq!(end, Ok(End::Length));
    // There is room again once the engine has read the cancellations.
    let stream = loop {
        match handle.submit(request(4, 3)) {
            Ok(stream) => break stream,
            Err(SubmitError::QueueFull { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(read(stream).0.len(), 3);
}

#[test]
fn who_has_its_last_token_finds_its_place_free() {
    let (_, handle) = start(&[]);
    let limit = CONFIG.max_num_seqs + CONFIG.max_queued;
    let submit = || handle.submit(request(4, 1));
    let mut streams: VecDeque<_> = (0..limit).map(|_| submit().expect("there is room")).collect();
    for _ in 0..500 {
        let stream = streams.pop_front().expect("as many as there are places");
        assert_eq!(read(stream).1, Ok(End::Length));
        streams.push_back(submit().expect("one has ended"));
    }
    streams.drain(..).for_each(|stream| assert_eq!(read(stream).1, Ok(End::Length)));
    assert_eq!(handle.unfinished(), 0);
}

/// An executor that says when a step has begun and waits before it computes it,
/// so that a test decides what arrives meanwhile.
struct Gated {
    fake: FakeExecutor,
    begun: Sender<()>,
    gate: Receiver<()>,
}

impl Executor for Gated {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        // A test that has let go of its ends lets every step run.
        let _ = self.begun.send(());
        let _ = self.gate.recv();
        self.fake.launch(batch)
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.fake.sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        self.fake.wait(result)
    }
}

#[test]
fn a_request_dropped_before_the_engine_reads_it_never_runs() {
    let (begun, has_begun) = channel();
    let (open, gate) = channel();
    let mut ends = Some((begun, gate));
    let build = move || -> Result<_, Infallible> {
        let fake = FakeExecutor::new(VOCAB_SIZE, CONFIG.num_blocks, CONFIG.max_num_seqs);
        let (begun, gate) = ends.take().expect("it is built once");
        let executor = Gated { fake, begun, gate };
        Ok(Built {
            executor,
            energy: None,
            config: CONFIG,
            vocab_size: VOCAB_SIZE as usize,
            info: (),
        })
    };
    let (_, handle, ()) = Engine::start("gated", build).expect("the engine starts");
    let first = handle.submit(request(4, 1)).expect("taken");
    has_begun.recv().expect("its step begins");
    drop(handle.submit(request(4, 60)).expect("taken"));
    drop(open);
    assert_eq!(read(first).1, Ok(End::Length));
    let (tokens, _) = read(handle.submit(request(5, 3)).expect("taken"));
    assert_eq!(tokens.len(), 3);
    let metrics = handle.metrics();
    assert_eq!(metrics.generation_tokens.get(), 4, "nothing is generated for nobody");
    assert_eq!(metrics.kv_blocks_used.get(), 0);
    assert_eq!(metrics.request_success.with_label_values(&["abort"]).get(), 1);
}

#[test]
fn a_failed_step_ends_its_requests_alone() {
    let (_, handle) = start(&[Fault::FailStep(3)]);
    let (tokens, end) = read(handle.submit(request(4, 10)).expect("taken"));
    assert_eq!(tokens.len(), 2);
    assert!(matches!(end, Err(RequestError::StepFailed(_))), "{end:?}");
    assert_eq!(handle.health(Duration::from_secs(60)), Health::Alive);
    let next = request(5, 10);
    let (tokens, _) = read(handle.submit(next.clone()).expect("taken"));
    assert_eq!(tokens, FakeExecutor::expected_tokens(&next.prompt, &next.params, VOCAB_SIZE));
    assert_eq!(handle.metrics().kv_blocks_used.get(), 0);
}

#[test]
fn logits_that_are_not_finite_end_their_request_alone() {
    let (_, handle) = start(&[Fault::NonFinite(RequestId(0))]);
    let bad = handle.submit(request(4, 10)).expect("taken");
    let good = handle.submit(request(6, 10)).expect("taken");
    assert_eq!(read(bad), (Vec::new(), Err(RequestError::NonFiniteLogits)));
    assert_eq!(read(good).1, Ok(End::Length));
    assert_eq!(handle.metrics().corrupted_requests.get(), 1);
}

#[test]
fn a_lost_executor_is_built_anew_and_what_waited_goes_on() {
    let (_, handle) = start(&[Fault::LoseExecutor(3)]);
    let first = handle.submit(request(4, 10)).expect("taken");
    let (tokens, end) = read(first);
    assert_eq!(tokens.len(), 2);
    assert!(matches!(end, Err(RequestError::StepFailed(_))), "{end:?}");
    let requests: Vec<_> = (1..=8).map(|i| request(i * 3, 20)).collect();
    let streams: Vec<_> =
        requests.iter().map(|request| handle.submit(request.clone()).expect("taken")).collect();
    for (request, stream) in requests.iter().zip(streams) {
        let expected = FakeExecutor::expected_tokens(&request.prompt, &request.params, VOCAB_SIZE);
        assert_eq!(read(stream), (expected, Ok(End::Length)));
    }
    assert_eq!(handle.metrics().engine_restarts.get(), 1);
    assert_eq!(handle.metrics().kv_blocks_used.get(), 0);
    assert_eq!(handle.health(Duration::from_secs(60)), Health::Alive);
}

#[test]
fn an_executor_that_does_not_come_back_ends_everything() {
    let mut times = 0;
    let build = move || -> Result<_, &'static str> {
        times += 1;
        let mut executor = FakeExecutor::new(VOCAB_SIZE, CONFIG.num_blocks, CONFIG.max_num_seqs);
        executor.inject(Fault::LoseExecutor(1));
        let built = Built {
            executor,
            energy: None,
            config: CONFIG,
            vocab_size: VOCAB_SIZE as usize,
            info: (),
        };
        if times == 1 { Ok(built) } else { Err("no memory") }
    };
    let (engine, handle, ()) = Engine::start("fake", build).expect("the engine starts");
    assert!(read(handle.submit(request(4, 10)).expect("taken")).1.is_err());
    engine.join();
    assert_eq!(handle.health(Duration::from_secs(60)), Health::Lost);
}

#[test]
fn a_lost_device_says_that_the_process_should_end() {
    let (engine, handle) = start(&[Fault::LoseDevice(2)]);
    let (_, end) = read(handle.submit(request(4, 10)).expect("taken"));
    assert!(matches!(end, Err(RequestError::StepFailed(_))), "{end:?}");
    engine.join();
    assert_eq!(handle.health(Duration::from_secs(60)), Health::DeviceLost);
    assert_eq!(handle.metrics().engine_restarts.get(), 0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(handle.ended());
}

#[test]
fn an_executor_lost_twice_ends_everything_and_says_so() {
    let (engine, handle) = start(&[Fault::LoseExecutor(2), Fault::LoseExecutor(4)]);
    assert!(read(handle.submit(request(4, 10)).expect("taken")).1.is_err());
    let first = handle.submit(request(4, 10)).expect("taken");
    let others: Vec<_> = (0..5).map(|_| handle.submit(request(4, 10))).collect();
    assert!(read(first).1.is_err());
    for other in others {
        match other {
            Ok(stream) => assert!(read(stream).1.is_err()),
            // The executor was lost before this one was submitted.
            Err(error) => assert_eq!(error, SubmitError::EngineLost),
        }
    }
    engine.join();
    assert_eq!(handle.health(Duration::from_secs(60)), Health::Lost);
    assert_eq!(handle.submit(request(4, 1)).expect_err("refused"), SubmitError::EngineLost);
}

#[tokio::test]
async fn draining_finishes_what_runs_and_takes_nothing_new() {
    let (_, handle) = start(&[]);
    let mut stream = handle.submit(request(4, 30)).expect("taken");
    let dropped = handle.submit(request(4, 60)).expect("taken");
    drop(dropped);
    handle.drain().await;
    assert_eq!(handle.submit(request(4, 1)).expect_err("refused"), SubmitError::Draining);
    let mut tokens = 0;
    while let Some(event) = stream.next().await {
        assert!(matches!(event, RequestEvent::Token(_)));
        tokens += 1;
    }
    assert_eq!(tokens, 30);
}

#[test]
fn a_build_that_fails_or_panics_is_an_error() {
    let failing = || -> Result<Built<FakeExecutor, ()>, &'static str> { Err("no model") };
    assert!(matches!(Engine::start("x", failing), Err(StartError::Build("no model"))));
    let panicking = || -> Result<Built<FakeExecutor, ()>, Infallible> { panic!("a bug") };
    assert!(matches!(Engine::start("x", panicking), Err(StartError::Panicked(m)) if m == "a bug"));
}
