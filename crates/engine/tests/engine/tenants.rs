//! Several tenants on one engine: what is metered, who is refused, what ends in time.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, EngineOptions, EngineRequest, FakeExecutor, Overload,
    RequestError, RequestEvent, RequestStream, SchedulerConfig, SchedulingPolicy, SubmitError,
    TokenEvent,
};
use sconce_types::{
    End, EnergyMeter, Executor, ExecutorError, MeterEntry, MeterSink, Metering, Prices, RequestId,
    SamplingParams, ScheduledBatch, StepResult, Tenant, TenantId, TokenMasks,
};

const VOCAB_SIZE: u32 = 50;
const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 4,
    max_num_batched_tokens: 32,
    max_model_len: 256,
    num_blocks: 64,
    max_queued: 60,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};

/// A fake executor whose tokens take a time each, and whose device uses energy.
struct Device {
    fake: FakeExecutor,
    token_time: Duration,
    tokens: u32,
    energy: Arc<Mutex<u64>>,
}

struct Meter(Arc<Mutex<u64>>);

impl EnergyMeter for Meter {
    fn total_uj(&mut self) -> Option<u64> {
        Some(*self.0.lock().expect("nothing panics with it"))
    }
}

impl Executor for Device {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        self.tokens = batch.num_tokens as u32;
        *self.energy.lock().expect("nothing panics with it") += 1_003 + batch.num_tokens as u64;
        self.fake.launch(batch)
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.fake.sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        if !self.token_time.is_zero() {
            std::thread::sleep(self.token_time * self.tokens);
        }
        self.fake.wait(result)
    }
}

/// Keeps every entry.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<MeterEntry>>>);

impl MeterSink for Kept {
    fn record(&mut self, entries: &mut Vec<MeterEntry>) {
        self.0.lock().expect("nothing panics with it").append(entries);
    }
}

struct Started {
    engine: EngineHandle,
    kept: Kept,
    energy: Arc<Mutex<u64>>,
}

fn start(tenants: Vec<Tenant>, token_time: Duration) -> Started {
    let (kept, energy) = (Kept::default(), Arc::new(Mutex::new(0)));
    let device_energy = Arc::clone(&energy);
    let build = move || -> Result<_, Infallible> {
        let fake = FakeExecutor::new(VOCAB_SIZE, CONFIG.num_blocks, CONFIG.max_num_seqs);
        let executor = Device { fake, token_time, tokens: 0, energy: Arc::clone(&device_energy) };
        Ok(Built {
            executor,
            energy: Some(Box::new(Meter(Arc::clone(&device_energy)))),
            config: CONFIG,
            vocab_size: VOCAB_SIZE as usize,
            info: (),
        })
    };
    let options = EngineOptions::new("fake").tenants(tenants).sink(Some(Box::new(kept.clone())));
    let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
    Started { engine, kept, energy }
}

fn tenant(id: u32) -> Tenant {
    Tenant { id: TenantId(id), name: format!("t{id}").into(), ..Tenant::sole() }
}

fn request(tenant: u32, prompt_len: u32, max_tokens: u32) -> EngineRequest {
    let prompt = (0..prompt_len).map(|i| (i * 7 + prompt_len) % VOCAB_SIZE).collect();
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    EngineRequest { tenant: TenantId(tenant), ..EngineRequest::new(prompt, params) }
}

/// The last token's event, or why there was none.
fn last(mut stream: RequestStream) -> Result<TokenEvent, RequestError> {
    let mut last = None;
    while let Some(event) = stream.blocking_next() {
        match event {
            RequestEvent::Token(token) => last = Some(token),
            RequestEvent::Failed(error) => return Err(error),
            RequestEvent::Embedding(_) | RequestEvent::PromptLogprobs { .. } => {}
        }
    }
    Ok(last.expect("a request that did not fail has a token"))
}

/// A request's last token, or why there was none, also where it was refused at once.
fn ask(engine: &EngineHandle, request: EngineRequest) -> Result<TokenEvent, RequestError> {
    match engine.submit(request) {
        Ok(stream) => last(stream),
        Err(SubmitError::Overloaded { reason, retry_after }) => {
            Err(RequestError::Overloaded { reason, retry_after })
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_requests_used_sums_to_what_was_measured() {
    let prices = Prices { prompt: 1_000_000_000, generated: 3_000_000_000, ..Prices::default() };
    let tenants = vec![tenant(0), Tenant { prices: Some(prices), ..tenant(1) }];
    let Started { engine, kept, energy } = start(tenants, Duration::ZERO);
    let streams: Vec<_> = (0..40)
        .map(|i| engine.submit(request(i % 2, 10 + i, 5 + i)).expect("there is room"))
        .collect();
    let mut dropped = Vec::new();
    let mut told: HashMap<RequestId, Metering> = HashMap::new();
    for (index, stream) in streams.into_iter().enumerate() {
        let id = stream.id();
        if index % 5 == 4 {
            drop(stream);
            dropped.push(id);
            continue;
        }
        let event = last(stream).expect("it finishes");
        let used = event.usage;
        assert_eq!(used.prompt_tokens, 10 + index as u32);
        assert_eq!(used.generated_tokens, 5 + index as u32);
        assert!(used.device_ns > 0 && used.block_ns > 0 && used.energy_uj > Some(0));
        let price =
            u64::from(used.prompt_tokens) * 1_000 + u64::from(used.generated_tokens) * 3_000;
        assert_eq!(event.price_nano, (index % 2 == 1).then_some(price));
        told.insert(id, used);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.drain());
    runtime.block_on(engine.settle()).expect("the engine answers");
    let metrics = engine.metrics();
    let entries = kept.0.lock().expect("nothing panics with it").clone();
    let mut latest: HashMap<RequestId, Metering> = HashMap::new();
    for entry in &entries {
        assert_eq!(entry.label.is_some(), !latest.contains_key(&entry.request), "one label each");
        latest.insert(entry.request, entry.usage);
    }
    for (id, used) in &told {
        assert_eq!(latest[id], *used, "the ledger holds what the client was told");
    }
    let ends = entries.iter().filter_map(|entry| entry.end.map(|end| (entry.request, end)));
    for (id, end) in ends {
        let expected = if dropped.contains(&id) { End::Abort } else { End::Length };
        assert!(end == expected || dropped.contains(&id), "{id:?} ended by {end:?}");
    }
    let sum = |of: fn(&Metering) -> u64| latest.values().map(of).sum::<u64>();
    assert_eq!(sum(|used| u64::from(used.generated_tokens)), metrics.generation_tokens.get());
    assert_eq!(sum(|used| u64::from(used.prompt_tokens)), metrics.prompt_tokens.get());
    let device = metrics.step_time.get_sample_sum();
    let shared = sum(|used| used.device_ns) as f64 * 1e-9;
    assert!((shared / device - 1.0).abs() < 1e-6, "{shared} s of {device} s were shared out");
    let idle = (metrics.idle_energy_joules.get() * 1e6).round() as u64;
    let measured = *energy.lock().expect("nothing panics with it");
    assert_eq!(sum(|used| used.energy_uj.unwrap_or(0)) + idle, measured);
}

#[test]
fn a_tenants_limits_refuse_its_own_requests_only() {
    let limited = Tenant { max_queued: Some(1), max_running: Some(1), ..tenant(0) };
    let rated = Tenant { tokens_per_minute: Some(60), ..tenant(1) };
    let Started { engine, .. } = start(vec![limited, rated, tenant(2)], Duration::from_millis(2));
    let running = engine.submit(request(0, 8, 200)).expect("there is room");
    let streams: Vec<_> = (0..8).map(|_| engine.submit(request(0, 8, 2))).collect();
    let refused = streams.iter().filter(|submitted| {
        let Err(SubmitError::Overloaded { reason, .. }) = submitted else { return false };
        *reason == Overload::QueueFull { max_queued: 1 }
    });
    assert!(refused.count() >= 6, "one runs and one waits");
    drop(streams);
    drop(running);
    last(engine.submit(request(1, 40, 1)).expect("there is room")).expect("40 of 60 tokens");
    match ask(&engine, request(1, 40, 1)) {
        Err(RequestError::Overloaded {
            reason: Overload::TokensPerMinute { tokens_per_minute: 60 },
            retry_after,
        }) => assert!((50..=61).contains(&retry_after.as_secs()), "{retry_after:?}"),
        other => panic!("it was to be refused: {other:?}"),
    }
    last(engine.submit(request(2, 40, 1)).expect("there is room")).expect("it has no limit");
    // A file that is read again: the limit is gone.
    engine.set_tenants(&[tenant(0), tenant(1), tenant(2)]).expect("the engine listens");
    last(engine.submit(request(1, 40, 1)).expect("there is room")).expect("no limit is left");
}

#[test]
fn what_cannot_be_in_time_is_refused_or_ended() {
    let hurried = Tenant { ttft_target: Some(Duration::from_secs(2)), ..tenant(1) };
    let Started { engine, .. } = start(vec![tenant(0), hurried], Duration::from_millis(10));
    // So that what steps take is known.
    last(engine.submit(request(0, 190, 60)).expect("there is room")).expect("it finishes");
    last(engine.submit(request(1, 8, 2)).expect("there is room")).expect("it can be in time");
    let meanwhile = engine.submit(request(0, 8, 100)).expect("there is room");
    match ask(&engine, request(1, 254, 2)) {
        Err(RequestError::Overloaded { reason: Overload::TooLate { expected, limit }, .. }) => {
            assert!(expected > limit, "{expected:?}");
        }
        other => panic!("two seconds do not hold 254 tokens of 10 ms: {other:?}"),
    }
    drop(meanwhile);
    let timeout = Some(Duration::from_secs(1));
    let long = EngineRequest { timeout, ..request(0, 8, 200) };
    match ask(&engine, long.clone()) {
        Err(RequestError::Overloaded {
            reason: Overload::EndsTooLate { expected, limit }, ..
        }) => {
            assert!(expected > limit && limit == Duration::from_secs(1), "{expected:?}");
        }
        other => panic!("200 tokens do not fit a second: {other:?}"),
    }
    // An engine that has measured nothing tries it.
    let Started { engine, kept, .. } = start(vec![tenant(0)], Duration::from_millis(10));
    match ask(&engine, long) {
        Err(RequestError::TimedOut { timeout }) => {
            assert_eq!(timeout, Duration::from_secs(1));
        }
        other => panic!("200 tokens do not fit a second: {other:?}"),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(engine.settle()).expect("the engine answers");
    let ends = kept.0.lock().expect("nothing panics with it");
    let overdue = ends.iter().filter(|entry| entry.end == Some(End::Deadline));
    let used: Vec<_> = overdue.map(|entry| entry.usage.generated_tokens).collect();
    assert!(matches!(used[..], [tokens] if (1..200).contains(&tokens)), "{used:?}");
}

#[test]
fn capacity_tells_what_may_be_expected() {
    let Started { engine, .. } = start(vec![tenant(0), tenant(1)], Duration::from_millis(1));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let capacity = |prompt_len| {
        let capacity = engine.capacity(TenantId(1), prompt_len);
        runtime.block_on(capacity).expect("the engine answers")
    };
    assert_eq!(capacity(8).ttft, None, "nothing is measured yet");
    last(engine.submit(request(0, 8, 60)).expect("there is room")).expect("it finishes");
    let (short, long) = (capacity(8), capacity(250));
    assert!(short.ttft.expect("steps were measured") < long.ttft.expect("steps were measured"));
    assert_eq!((short.running, short.waiting, short.free_blocks), (0, 0, CONFIG.num_blocks));
    runtime.block_on(engine.settle()).expect("the engine answers");
}
