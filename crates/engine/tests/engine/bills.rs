//! What requests are billed, beside what was computed for them.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use proptest::prelude::*;
use sconce_engine::{
    Built, CacheGroups, End, Engine, EngineHandle, EngineOptions, EngineRequest, FakeExecutor,
    Metrics, Overload, PrefixKey, RequestError, RequestEvent, RequestStream, SchedulerConfig,
    SchedulingPolicy, StopCheck, SubmitError, TokenEvent,
};
use sconce_scheduler::Fault;
use sconce_types::{
    EnergyMeter, Executor, ExecutorError, MeterEntry, MeterSink, Metering, Prices, RequestId,
    SamplingParams, ScheduledBatch, StepResult, Tenant, TenantId, TokenId, TokenMasks,
};

const VOCAB_SIZE: u32 = 50;
const CONFIG: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 4,
    max_num_batched_tokens: 32,
    max_model_len: 256,
    num_blocks: 64,
    max_queued: 200,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};

/// How the positions of prompts were processed first, as the executor saw it.
#[derive(Default)]
struct Seen {
    prompts: HashMap<RequestId, Vec<Option<Processed>>>,
    energy_uj: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Processed {
    Cached,
    Computed,
}

impl Seen {
    fn process(&mut self, request: RequestId, end: usize, how: Processed) {
        let prompt = self.prompts.get_mut(&request).expect("it was admitted");
        let end = end.min(prompt.len());
        prompt[..end].iter_mut().filter(|first| first.is_none()).for_each(|f| *f = Some(how));
    }

    /// Prompt tokens processed, and of those the cached.
    fn tokens(&self, request: RequestId) -> (usize, usize) {
        let Some(prompt) = self.prompts.get(&request) else { return (0, 0) };
        let cached = prompt.iter().filter(|how| **how == Some(Processed::Cached)).count();
        (prompt.iter().flatten().count(), cached)
    }
}

/// A fake executor that writes down what it computes, and may wait before each step.
struct Watched {
    fake: FakeExecutor,
    seen: Arc<Mutex<Seen>>,
    gate: Option<(Sender<Vec<RequestId>>, Receiver<()>)>,
}

struct Meter(Arc<Mutex<Seen>>);

impl EnergyMeter for Meter {
    fn total_uj(&mut self) -> Option<u64> {
        Some(self.0.lock().expect("nothing panics with it").energy_uj)
    }
}

impl Executor for Watched {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        if let Some((begun, gate)) = &self.gate {
            // A test that has let go of its ends lets every step run.
            let _ = begun.send(batch.sequences.iter().map(|row| row.request).collect());
            let _ = gate.recv();
        }
        let outcome = self.fake.launch(batch);
        let mut seen = self.seen.lock().expect("nothing panics with it");
        seen.energy_uj += 1_000 + batch.num_tokens as u64;
        for admitted in &batch.admitted {
            let prompt = seen.prompts.entry(admitted.request).or_default();
            prompt.resize(admitted.prompt_len, None);
        }
        for row in &batch.sequences {
            seen.process(row.request, row.num_computed_tokens, Processed::Cached);
            if outcome.is_ok() {
                let end = row.num_computed_tokens + row.input.len();
                seen.process(row.request, end, Processed::Computed);
            }
        }
        outcome
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.fake.sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        self.fake.wait(result)
    }
}

/// Keeps entries, and compares them at every step with what was seen and with the metrics.
#[derive(Clone, Default)]
struct Ledger {
    entries: Arc<Mutex<Vec<MeterEntry>>>,
    latest: Arc<Mutex<HashMap<RequestId, Metering>>>,
    wrong: Arc<Mutex<Vec<String>>>,
    seen: Arc<Mutex<Seen>>,
    metrics: Arc<OnceLock<Arc<Metrics>>>,
}

impl Ledger {
    fn sum(&self, of: impl Fn(&Metering) -> u64) -> u64 {
        self.latest.lock().expect("nothing panics with it").values().map(of).sum()
    }

    fn check(&self) -> Result<(), String> {
        let Some(metrics) = self.metrics.get() else { return Ok(()) };
        let seen = self.seen.lock().expect("nothing panics with it");
        for (id, usage) in self.latest.lock().expect("nothing panics with it").iter() {
            let billed = (usage.prompt_tokens as usize, usage.cached_tokens as usize);
            if billed != seen.tokens(*id) {
                return Err(format!("{id:?}: {billed:?} of {:?}", seen.tokens(*id)));
            }
        }
        let prompt = self.sum(|usage| u64::from(usage.prompt_tokens));
        let generated = self.sum(|usage| u64::from(usage.generated_tokens));
        let counted = (metrics.prompt_tokens.get(), metrics.generation_tokens.get());
        if (prompt, generated) != counted {
            return Err(format!("{prompt} and {generated} tokens, the metrics have {counted:?}"));
        }
        let (device, steps) = (self.sum(|usage| usage.device_ns), &metrics.step_time);
        let difference = device as f64 - steps.get_sample_sum() * 1e9;
        if difference.abs() > 1.0 + steps.get_sample_count() as f64 * 1e-3 {
            return Err(format!("{device} ns of steps, the metrics have {difference} fewer"));
        }
        Ok(())
    }
}

impl MeterSink for Ledger {
    fn record(&mut self, entries: &mut Vec<MeterEntry>) {
        for entry in entries.iter() {
            self.latest.lock().expect("nothing panics with it").insert(entry.request, entry.usage);
        }
        self.entries.lock().expect("nothing panics with it").append(entries);
        if let Err(wrong) = self.check() {
            self.wrong.lock().expect("nothing panics with it").push(wrong);
        }
    }
}

struct Started {
    engine: EngineHandle,
    ledger: Ledger,
    seen: Arc<Mutex<Seen>>,
    /// Says which requests are in the step that waits for `open`.
    begun: Receiver<Vec<RequestId>>,
    open: Sender<()>,
}

fn start(config: SchedulerConfig, tenants: &[Tenant], faults: &[Fault], is_gated: bool) -> Started {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let ledger = Ledger { seen: Arc::clone(&seen), ..Ledger::default() };
    let (begun_sender, begun) = channel();
    let (open, gate) = channel();
    let mut gate = is_gated.then_some((begun_sender, gate));
    let (watched, faults) = (Arc::clone(&seen), faults.to_vec());
    let build = move || -> Result<_, Infallible> {
        let mut fake = FakeExecutor::new(VOCAB_SIZE, config.num_blocks, config.max_num_seqs);
        faults.iter().for_each(|fault| fake.inject(fault.clone()));
        let executor = Watched { fake, seen: Arc::clone(&watched), gate: gate.take() };
        let energy: Box<dyn EnergyMeter> = Box::new(Meter(Arc::clone(&watched)));
        Ok(Built {
            executor,
            energy: Some(energy),
            config,
            vocab_size: VOCAB_SIZE as usize,
            info: (),
        })
    };
    let sink: Option<Box<dyn MeterSink>> = Some(Box::new(ledger.clone()));
    let options = EngineOptions::new("fake").tenants(tenants.to_vec()).sink(sink);
    let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
    ledger.metrics.set(Arc::clone(engine.metrics())).expect("it is set once");
    Started { engine, ledger, seen, begun, open }
}

fn tenant(id: u32) -> Tenant {
    Tenant { id: TenantId(id), name: format!("t{id}").into(), ..Tenant::sole() }
}

fn request(tenant: u32, prompt_len: u32, max_tokens: u32) -> EngineRequest {
    let prompt = (0..prompt_len).map(|i| i * 7 % VOCAB_SIZE).collect();
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

impl Started {
    /// Waits until the ledger has all, and gives back each request's last entry.
    fn settle(&self) -> HashMap<RequestId, MeterEntry> {
        while self.engine.unfinished() > 0 {
            std::thread::yield_now();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(self.engine.settle()).expect("the engine answers");
        let wrong = self.ledger.wrong.lock().expect("nothing panics with it");
        assert!(wrong.is_empty(), "{wrong:?}");
        let entries = self.ledger.entries.lock().expect("nothing panics with it");
        entries.iter().map(|entry| (entry.request, entry.clone())).collect()
    }
}

#[derive(Clone, Debug)]
struct Op {
    tenant: u32,
    prompt_len: u32,
    max_tokens: u32,
    /// Tokens after which it is given up.
    reads: Option<usize>,
    timeout_us: Option<u64>,
    stops_after: Option<usize>,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = (
        0..3_u32,
        1..150_u32,
        1..60_u32,
        proptest::option::weighted(0.3, 0..20_usize),
        proptest::option::weighted(0.2, 1..5_000_u64),
        proptest::option::weighted(0.3, 1..20_usize),
    );
    let op = op.prop_map(|(tenant, prompt_len, max_tokens, reads, timeout_us, stops_after)| Op {
        tenant,
        prompt_len,
        max_tokens,
        reads,
        timeout_us,
        stops_after,
    });
    proptest::collection::vec(op, 1..60)
}

/// Ends a request after so many tokens.
struct After(usize);

impl StopCheck for After {
    fn ends_with(&mut self, _: TokenId) -> bool {
        self.0 -= 1;
        self.0 == 0
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Cancels, deadlines, prefix hits, preemptions, failed steps and a lost executor: at
    /// every step all that was used is billed, and nothing else.
    #[test]
    fn what_is_billed_is_what_was_used(
        ops in ops(),
        failing in proptest::collection::vec(1..200_u64, 0..4),
        lost in proptest::option::weighted(0.3, 1..100_u64),
        num_blocks in 14..40_usize,
    ) {
        let config =
            SchedulerConfig { num_blocks, prefix_cache: Some(PrefixKey([1, 2])), ..CONFIG };
        let mut faults: Vec<_> = failing.into_iter().map(Fault::FailStep).collect();
        faults.extend(lost.map(Fault::LoseExecutor));
        let tenants = [tenant(0), tenant(1), tenant(2)];
        let started = start(config, &tenants, &faults, false);
        let mut streams = Vec::new();
        for op in ops {
            let timeout = op.timeout_us.map(Duration::from_micros);
            let request =
                EngineRequest { timeout, ..request(op.tenant, op.prompt_len, op.max_tokens) };
            let stop = op.stops_after.map(|n| -> Box<dyn StopCheck> { Box::new(After(n)) });
            let stream = started.engine.submit_until(request, stop);
            // Refused only if the executor is lost twice, or it never fits.
            streams.extend(stream.ok().map(|stream| (stream, op.reads)));
        }
        for (mut stream, reads) in streams {
            let mut read = 0;
            while reads.is_none_or(|reads| read < reads) && stream.blocking_next().is_some() {
                read += 1;
            }
        }
        started.settle();
        let metrics = started.engine.metrics();
        let billed = started.ledger.sum(|usage| usage.energy_uj.unwrap_or(0));
        let idle = (metrics.idle_energy_joules.get() * 1e6).round() as u64;
        let used = started.seen.lock().expect("nothing panics with it").energy_uj;
        prop_assert_eq!(billed + idle, used);
        // Single tenants' counters sum to the whole.
        let text = metrics.render(true);
        let of_tenants = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().expect("it")).sum()
        };
        let prompt = of_tenants("sconce:tenant_prompt_tokens_total{");
        prop_assert_eq!(prompt as u64, metrics.prompt_tokens.get());
        let generated = of_tenants("sconce:tenant_generation_tokens_total{");
        prop_assert_eq!(generated as u64, metrics.generation_tokens.get());
        let device = of_tenants("sconce:tenant_device_seconds_total{");
        prop_assert!((device - metrics.step_time.get_sample_sum()).abs() < 1e-6);
        let blocks = of_tenants("sconce:tenant_kv_block_seconds_total{");
        let billed = started.ledger.sum(|usage| usage.block_ns) as f64 * 1e-9;
        prop_assert!((blocks - billed).abs() < 1e-6, "{} of {}", blocks, billed);
    }
}

#[test]
fn a_prompt_that_is_given_up_before_its_first_token_is_billed() {
    let prices = Prices { prompt: 1_000_000_000, ..Prices::default() };
    let tenants = [Tenant { prices: Some(prices), tokens_per_minute: Some(300), ..tenant(0) }];
    let started = start(CONFIG, &tenants, &[], true);
    let stream = started.engine.submit(request(0, 200, 10)).expect("there is room");
    let id = stream.id();
    for _ in 0..3 {
        started.begun.recv().expect("a step begins");
        started.open.send(()).expect("it waits");
    }
    started.begun.recv().expect("a step begins");
    // It leaves while its fourth chunk is computed.
    drop(stream);
    started.open.send(()).expect("it waits");
    let entry = started.settle().remove(&id).expect("it is billed");
    assert_eq!(entry.end, Some(End::Abort));
    assert_eq!((entry.usage.prompt_tokens, entry.usage.generated_tokens), (4 * 32, 0));
    assert_eq!(entry.price_nano, Some(4 * 32 * 1_000));
    assert!(entry.usage.device_ns > 0);
    // What it used of the minute is used: 172 tokens are left.
    let error = started.engine.submit(request(0, 172, 1)).expect_err("128 of 300 are used");
    assert!(is_minute(&error), "{error:?}");
    let taken = started.engine.submit(request(0, 171, 1)).expect("there is room");
    drop(started.open);
    last(taken).expect("the rest was given back");
}

/// Whether a request was refused because its tenant's minute has no room for it now.
fn is_minute(error: &SubmitError) -> bool {
    matches!(error, SubmitError::Overloaded { reason: Overload::TokensPerMinute { .. }, .. })
}

/// What a sequence holds while others' prompts keep it from running is billed, also if it
/// ends meanwhile.
#[test]
fn blocks_are_billed_while_a_sequence_is_paused_and_until_it_ends() {
    let started = start(CONFIG, &[tenant(0), tenant(1)], &[], true);
    let next = || started.begun.recv().expect("a step begins");
    let open = || started.open.send(()).expect("it waits");
    let mut borrower: Vec<_> =
        (0..3).map(|_| started.engine.submit(request(0, 8, 200)).expect("there is room")).collect();
    for _ in 0..20 {
        next();
        open();
    }
    // Its prompt takes whole steps, and whoever has more than its share waits.
    let prompt = started.engine.submit(request(1, 230, 2)).expect("there is room");
    let paused = loop {
        let rows = next();
        if rows == [prompt.id()] {
            break Instant::now();
        }
        open();
    };
    open();
    assert_eq!(next(), [prompt.id()]);
    let given_up = borrower.swap_remove(0);
    let id = given_up.id();
    drop(given_up);
    let held = paused.elapsed();
    drop((borrower, prompt));
    open();
    started.settle();
    let entries = started.ledger.entries.lock().expect("nothing panics with it");
    let bills: Vec<_> = entries.iter().filter(|entry| entry.request == id).collect();
    let [.., before, end] = &bills[..] else { panic!("it ran before it ended") };
    assert_eq!((before.end, end.end), (None, Some(End::Abort)));
    let billed = u128::from(end.usage.block_ns - before.usage.block_ns);
    // At least two blocks: its prompt and twenty tokens.
    assert!(billed >= 2 * held.as_nanos(), "{billed} block-ns in {held:?}");
}

#[test]
fn a_check_of_its_tokens_ends_a_request_in_the_same_step() {
    struct Broken;
    impl StopCheck for Broken {
        fn ends_with(&mut self, _: TokenId) -> bool {
            panic!("a bug")
        }
    }
    let started = start(CONFIG, &[tenant(0)], &[], false);
    let submit = |request: EngineRequest, stop: Box<dyn StopCheck>| {
        started.engine.submit_until(request, Some(stop)).expect("there is room")
    };
    let streams = [
        submit(request(0, 40, 100), Box::new(After(7))),
        submit(request(0, 10, 5), Box::new(Broken)),
    ];
    let ids = streams.each_ref().map(RequestStream::id);
    let [stopped, broken] = streams.map(|stream| last(stream).expect("it finishes"));
    assert_eq!(stopped.finish, Some(End::StopCheck));
    assert_eq!(stopped.usage.generated_tokens, 7);
    assert_eq!(broken.finish, Some(End::Length), "its own check is given up, no more");
    let entries = started.settle();
    assert_eq!(
        (entries[&ids[0]].end, entries[&ids[0]].usage),
        (Some(End::StopCheck), stopped.usage)
    );
    let metrics = started.engine.metrics();
    assert_eq!(metrics.generation_tokens.get(), 7 + 5);
    assert_eq!(metrics.kv_blocks_used.get(), 0);
    assert_eq!(metrics.request_success.with_label_values(&["stop"]).get(), 1);
}

#[test]
fn a_scored_prompt_generates_nothing() {
    let started = start(CONFIG, &[tenant(0)], &[], false);
    let scored = EngineRequest { scores_prompt: true, ..request(0, 70, 1) };
    let stream = started.engine.submit(scored).expect("there is room");
    let id = stream.id();
    let event = last(stream).expect("it finishes");
    assert_eq!((event.usage.prompt_tokens, event.usage.generated_tokens), (70, 0));
    assert_eq!(started.settle()[&id].usage, event.usage);
    assert_eq!(started.engine.metrics().generation_tokens.get(), 0);
}

#[test]
fn a_minutes_tokens_are_reserved_and_survive_a_reload() {
    let limited = |limit| Tenant { tokens_per_minute: Some(limit), ..tenant(1) };
    let tenants = [tenant(0), limited(1_000)];
    let started = start(CONFIG, &tenants, &[], false);
    let submit = |prompt_len, max_tokens| started.engine.submit(request(1, prompt_len, max_tokens));
    let flood = || {
        let streams: Vec<_> = (0..100).filter_map(|_| submit(2, 98).ok()).collect();
        streams.into_iter().map(last).filter(Result::is_ok).count()
    };
    assert_eq!(flood(), 10, "a hundred tokens each");
    // What names it, removes it or takes another limit leaves it what it used.
    started.engine.set_tenants(&tenants).expect("the engine listens");
    assert_eq!(flood(), 0);
    started.engine.set_tenants(&[tenant(0)]).expect("the engine listens");
    started.engine.set_tenants(&tenants).expect("the engine listens");
    assert_eq!(flood(), 0);
    started.engine.set_tenants(&[tenant(0), limited(1_250)]).expect("the engine listens");
    assert_eq!(flood(), 2, "what the limit was raised by");
    started.engine.set_tenants(&[tenant(0), limited(500)]).expect("the engine listens");
    assert_eq!(flood(), 0);
    // What is not used is given back: each of these reserves nearly all that is left.
    started.engine.set_tenants(&[tenant(0), limited(1_430)]).expect("the engine listens");
    for _ in 0..8 {
        let (request, stop) = (request(1, 2, 190), Box::new(After(3)));
        let stream = started.engine.submit_until(request, Some(stop)).expect("there is room");
        assert_eq!(last(stream).expect("it fits").usage.generated_tokens, 3);
    }
    let generated = started.engine.metrics().generation_tokens.get();
    assert_eq!(generated, 12 * 98 + 8 * 3);
    let error = submit(200, 56).expect_err("it is refused for now");
    assert!(is_minute(&error), "{error:?}");
    started.engine.set_tenants(&[tenant(0), limited(255)]).expect("the engine listens");
    let error = submit(200, 56).expect_err("it never fits");
    assert!(matches!(error, SubmitError::ExceedsMinute { tokens_per_minute: 255, .. }));
    assert!(error.to_string().contains("255 tokens a minute"), "{error}");
    assert!(error.to_string().contains("max_tokens to at most 55"), "{error}");
}

#[test]
fn what_a_failed_step_did_not_compute_is_given_back_to_the_minute() {
    let limited = Tenant { tokens_per_minute: Some(200), ..tenant(0) };
    let faults = [Fault::FailStep(1), Fault::NonFinite(RequestId(1))];
    let started = start(CONFIG, &[limited], &faults, false);
    let ask = |max_tokens| started.engine.submit(request(0, 20, max_tokens)).map(last);
    let failed = ask(180).expect("it is as large as the minute");
    assert!(matches!(failed, Err(RequestError::StepFailed(_))), "{failed:?}");
    let failed = ask(180).expect("all was given back");
    assert_eq!(failed.expect_err("its logits are not finite"), RequestError::NonFiniteLogits);
    let error = ask(161).expect_err("its prompt was computed");
    assert!(is_minute(&error), "{error:?}");
    assert!(ask(160).expect("the rest was given back").is_ok());
}
