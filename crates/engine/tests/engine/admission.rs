//! What is refused while a step runs, on the thread that submits.

use std::{
    convert::Infallible,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, EngineOptions, EngineRequest, FakeExecutor, Overload,
    RequestEvent, RequestStream, SchedulerConfig, SchedulingPolicy, SubmitError,
};
use sconce_types::{
    Executor, ExecutorError, SamplingParams, ScheduledBatch, StepResult, Tenant, TenantId,
    TokenMasks,
};

const VOCAB_SIZE: u32 = 50;
const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 16,
    max_num_batched_tokens: 32,
    max_model_len: 512,
    num_blocks: 512,
    max_queued: 200,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};
const TOKEN_TIME: Duration = Duration::from_millis(5);

/// An executor whose tokens take a time each, and that waits in every step for a test that
/// holds the gate.
struct Slow {
    fake: FakeExecutor,
    tokens: u32,
    begun: Sender<()>,
    gate: Receiver<()>,
}

impl Executor for Slow {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        self.tokens = batch.num_tokens as u32;
        let _ = self.begun.send(());
        let _ = self.gate.recv();
        self.fake.launch(batch)
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.fake.sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        std::thread::sleep(TOKEN_TIME * self.tokens);
        self.fake.wait(result)
    }
}

struct World {
    handle: EngineHandle,
    begun: Receiver<()>,
    gate: Sender<()>,
}

impl World {
    fn start(options: EngineOptions) -> Self {
        let (begun_sender, begun) = channel();
        let (gate, gate_receiver) = channel();
        let mut ends = Some((begun_sender, gate_receiver));
        let build = move || -> Result<_, Infallible> {
            let fake = FakeExecutor::new(VOCAB_SIZE, CONFIG.num_blocks, CONFIG.max_num_seqs);
            let (begun, gate) = ends.take().expect("it is built once");
            let executor = Slow { fake, tokens: 0, begun, gate };
            Ok(Built {
                executor,
                energy: None,
                config: CONFIG,
                vocab_size: VOCAB_SIZE as usize,
                info: (),
            })
        };
        let (_, handle, ()) = Engine::start(options, build).expect("the engine starts");
        Self { handle, begun, gate }
    }

    /// Measures some steps; then a step begins that does not end before the gate opens.
    fn stall(&self) -> RequestStream {
        let mut stream = self.handle.submit(request(8, 200, None)).expect("the engine is idle");
        for _ in 0..8 {
            self.begun.recv().expect("a step begins");
            self.gate.send(()).expect("the engine waits at the gate");
            assert!(matches!(stream.blocking_next(), Some(RequestEvent::Token(_))));
        }
        self.begun.recv().expect("a step begins");
        stream
    }
}

fn request(prompt_len: u32, max_tokens: u32, timeout_ms: Option<u64>) -> EngineRequest {
    let prompt = (0..prompt_len).map(|i| i % VOCAB_SIZE).collect();
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    let timeout = timeout_ms.map(Duration::from_millis);
    EngineRequest { timeout, ..EngineRequest::new(prompt, params) }
}

fn refusal(submitted: Result<RequestStream, SubmitError>) -> (Overload, Duration) {
    match submitted {
        Err(SubmitError::Overloaded { reason, retry_after }) => (reason, retry_after),
        other => panic!("it was to be refused: {:?}", other.map(|stream| stream.id())),
    }
}

#[test]
fn answers_that_cannot_end_in_time_are_refused_while_a_step_runs() {
    let world = World::start(EngineOptions::new("slow"));
    let _running = world.stall();
    for _ in 0..40 {
        // 64 steps take 320 ms and more.
        let (reason, retry_after) = refusal(world.handle.submit(request(8, 64, Some(200))));
        let Overload::EndsTooLate { expected, limit } = reason else { panic!("{reason:?}") };
        assert!(expected > limit && retry_after >= Duration::from_secs(1), "{expected:?}");
    }
    assert_eq!(world.handle.unfinished(), 1, "they hold no place");
    let refused = world.handle.metrics().render(true);
    assert!(refused.contains("tenant=\"default\"} 40"), "{refused}");
}

#[test]
fn a_burst_while_a_step_runs_fills_the_queue_once() {
    let max_queue_wait = Some(Duration::from_secs(10));
    let world = World::start(EngineOptions::new("slow").max_queue_wait(max_queue_wait));
    let _running = world.stall();
    // 1 s of prefill each, and the engine reads none of them meanwhile.
    let submitted: Vec<_> = (0..60).map(|_| world.handle.submit(request(200, 8, None))).collect();
    let taken = submitted.iter().take_while(|submitted| submitted.is_ok()).count();
    assert!((3..=20).contains(&taken), "{taken} waits of a second where ten fit");
    for submitted in submitted.into_iter().skip(taken) {
        let (reason, retry_after) = refusal(submitted);
        let Overload::QueueTooLong { expected, limit } = reason else { panic!("{reason:?}") };
        assert!(expected > limit && retry_after >= Duration::from_secs(1), "{expected:?}");
    }
}

/// A world with a limit of 300 tokens a minute in which a request for 208 of them runs.
fn stalled_in_a_minute_of_300() -> (World, RequestStream) {
    let limited = Tenant { tokens_per_minute: Some(300), ..Tenant::sole() };
    let world = World::start(EngineOptions::new("slow").tenants(vec![limited]));
    let running = world.stall();
    (world, running)
}

#[test]
fn what_exceeds_the_minute_is_refused_while_a_step_runs() {
    let (world, _running) = stalled_in_a_minute_of_300();
    let limit = Overload::TokensPerMinute { tokens_per_minute: 300 };
    let (reason, retry_after) = refusal(world.handle.submit(request(8, 85, None)));
    assert_eq!(reason, limit, "93 tokens where 92 are left");
    assert!((1..=61).contains(&retry_after.as_secs()), "{retry_after:?}");
    let error = world.handle.submit(request(8, 293, None)).expect_err("it never fits");
    assert!(matches!(error, SubmitError::ExceedsMinute { tokens_per_minute: 300, .. }));
    // What is refused for another reason leaves the minute as it was.
    for _ in 0..3 {
        let (reason, _) = refusal(world.handle.submit(request(8, 84, Some(1))));
        assert!(matches!(reason, Overload::TooLate { .. }), "{reason:?}");
    }
    assert_eq!(world.handle.unfinished(), 1, "they hold no place");
    let _waiting = world.handle.submit(request(8, 84, None)).expect("92 tokens are left");
    assert_eq!(refusal(world.handle.submit(request(1, 1, None))).0, limit);
    // A limit that is changed holds at once.
    let raised = Tenant { tokens_per_minute: Some(302), ..Tenant::sole() };
    world.handle.set_tenants(&[raised]).expect("the engine listens");
    world.handle.submit(request(1, 1, None)).expect("two more tokens");
    let refused = world.handle.metrics().render(true);
    assert!(refused.contains("tenant=\"default\"} 6"), "{refused}");
}

#[test]
fn a_request_that_is_dropped_while_a_step_runs_is_given_back_to_the_minute() {
    let (world, running) = stalled_in_a_minute_of_300();
    for _ in 0..3 {
        let waiting = world.handle.submit(request(8, 84, None)).expect("92 tokens are left");
        refusal(world.handle.submit(request(1, 1, None)));
        // The engine reads it, and that it is gone, before the next step.
        drop(waiting);
        world.gate.send(()).expect("the engine waits at the gate");
        world.begun.recv().expect("a step begins");
    }
    // What has run has used what it computed: 8 of prompt, and 12 tokens with this step's.
    drop(running);
    world.gate.send(()).expect("the engine waits at the gate");
    let mut last = world.handle.submit(request(8, 84, None)).expect("92 tokens are left");
    world.begun.recv().expect("a step begins");
    refusal(world.handle.submit(request(8, 181, None)));
    let _all = world.handle.submit(request(8, 180, None)).expect("20 and 92 of 300 are used");
    world.gate.send(()).expect("the engine waits at the gate");
    assert!(matches!(last.blocking_next(), Some(RequestEvent::Token(_))));
}

#[test]
fn what_finds_the_inbox_full_is_given_back_to_the_minute() {
    let (world, _running) = stalled_in_a_minute_of_300();
    let limited = Tenant { tokens_per_minute: Some(300), ..Tenant::sole() };
    while world.handle.set_tenants(std::slice::from_ref(&limited)).is_ok() {}
    for _ in 0..3 {
        let error = world.handle.submit(request(8, 84, None)).expect_err("nothing is read");
        assert!(matches!(error, SubmitError::QueueFull { .. }), "{error:?}");
    }
    assert_eq!(world.handle.unfinished(), 1, "they hold no place");
}

#[test]
fn before_anything_is_measured_one_hurried_request_is_tried() {
    let world = World::start(EngineOptions::new("slow"));
    let first = world.handle.submit(request(8, 4, Some(3_000)));
    assert!(first.is_ok(), "{first:?}");
    assert_eq!(refusal(world.handle.submit(request(8, 4, Some(3_000)))).0, Overload::Unmeasured);
    assert!(world.handle.submit(request(8, 4, None)).is_ok(), "it is in no hurry");
}

#[test]
fn a_warm_up_measures_and_leaves_nothing_behind() {
    let build = || -> Result<_, Infallible> {
        let executor = FakeExecutor::new(VOCAB_SIZE, CONFIG.num_blocks, CONFIG.max_num_seqs);
        Ok(Built {
            executor,
            energy: None,
            config: CONFIG,
            vocab_size: VOCAB_SIZE as usize,
            info: (),
        })
    };
    let options = EngineOptions::new("warm").warm_up(true);
    let (_, handle, ()) = Engine::start(options, build).expect("the engine starts");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let capacity = runtime.block_on(handle.capacity(TenantId(0), 8)).expect("the engine answers");
    assert!(capacity.ttft.is_some(), "steps were measured");
    assert_eq!((capacity.total_running, capacity.free_blocks), (0, CONFIG.num_blocks));
    assert_eq!(handle.metrics().generation_tokens.get(), 0);
    let request = request(8, 30, None);
    let mut stream = handle.submit(request.clone()).expect("taken");
    let mut tokens = Vec::new();
    while let Some(event) = stream.blocking_next() {
        let RequestEvent::Token(token) = event else { panic!("{event:?}") };
        tokens.push(token.token);
    }
    assert_eq!(tokens, FakeExecutor::expected_tokens(&request.prompt, &request.params, VOCAB_SIZE));
}
