//! The whole engine under random load, by the step: one step in flight or two, several cache
//! groups, constraints whose masks are late, requests that are not ready, streams that are
//! dropped, steps that fail. The executor computes late and in any order, and says how long it
//! took, so that what is billed and what is discarded must sum to it.
//!
//! `SCONCE_SIM_SEED` and `SCONCE_SIM_STEPS` choose another run.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, EngineOptions, EngineRequest, FakeExecutor,
    PrefixKey, ReadySignal, RequestError, RequestEvent, RequestStream, SchedulerConfig,
    SchedulingPolicy, TokenConstraint,
};
use sconce_scheduler::{Fault, Span};
use sconce_types::{
    Executor, ExecutorError, MeterEntry, MeterSink, NotReady, RequestId, SamplingParams,
    ScheduledBatch, StepResult, TokenId, TokenMasks,
};

const VOCAB_SIZE: u32 = 40;

/// A device that takes a time of its own for each step that does not fail.
struct Timed {
    fake: FakeExecutor,
    steps: u64,
    device_ns: Arc<AtomicU64>,
    /// Whether some steps fail. Those are billed by the host's clock.
    fails: bool,
}

impl Executor for Timed {
    fn depth(&self) -> usize {
        self.fake.depth()
    }

    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        self.steps += 1;
        if self.fails && self.steps.is_multiple_of(701) {
            self.fake.inject(Fault::FailLate(batch.step));
        }
        self.fake.launch(batch)
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.fake.sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        self.fake.wait(result)?;
        let ns = 1_000_003 + self.steps * 7_919 % 1_000_000;
        result.device_time = Some(Duration::from_nanos(ns));
        self.device_ns.fetch_add(ns, Ordering::Relaxed);
        Ok(())
    }
}

/// Each request's last entry, as its sums.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<std::collections::HashMap<RequestId, MeterEntry>>>);

impl MeterSink for Ledger {
    fn record(&mut self, entries: &mut Vec<MeterEntry>) {
        let mut kept = self.0.lock().expect("nothing panics with it");
        for entry in entries.drain(..) {
            let before = kept.insert(entry.request, entry);
            assert!(before.is_none_or(|entry| entry.end.is_none()), "a request ends once");
        }
    }
}

/// Tokens that differ from the one before in parity; every seventh mask is late.
struct Parity {
    generated: Vec<TokenId>,
    asked: u32,
}

fn allows(generated: &[TokenId], token: TokenId) -> bool {
    generated.last().map_or(1, |last| last % 2) != token % 2 || token.is_multiple_of(5)
}

impl TokenConstraint for Parity {
    fn fill_mask(&mut self, words: &mut [u32]) -> bool {
        for token in (0..VOCAB_SIZE).filter(|&token| allows(&self.generated, token)) {
            words[token as usize / 32] |= 1 << (token % 32);
        }
        self.asked += 1;
        !self.asked.is_multiple_of(7)
    }

    fn accept(&mut self, token: TokenId) {
        self.generated.push(token);
    }
}

fn parity() -> Box<dyn TokenConstraint> {
    Box::new(Parity { generated: Vec::new(), asked: 0 })
}

struct Live {
    stream: RequestStream,
    signal: Option<ReadySignal>,
    is_constrained: bool,
    expected: Vec<TokenId>,
    got: usize,
}

struct World {
    rng: StdRng,
    config: SchedulerConfig,
    engine: EngineHandle,
    ledger: Ledger,
    device_ns: Arc<AtomicU64>,
    fails: bool,
    live: Vec<Live>,
    finished: u64,
    failed: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let groups = match rng.random_range(0..3) {
            0 => CacheGroups::ONE,
            1 => CacheGroups::new(&[Span::All, Span::Window(20)]),
            _ => CacheGroups::new(&[Span::Window(7), Span::Window(40)]),
        };
        let config = SchedulerConfig {
            max_num_seqs: rng.random_range(1..=8),
            max_num_batched_tokens: rng.random_range(8..=64),
            max_model_len: 100,
            num_blocks: rng.random_range(20..=40),
            groups,
            depth: 1 + seed as usize % 2,
            max_queued: 24,
            prefix_cache: rng.random_bool(0.7).then(|| PrefixKey(rng.random())),
            policy: SchedulingPolicy::Fair,
        };
        let (device_ns, fails) = (Arc::new(AtomicU64::new(0)), rng.random_bool(0.3));
        let total = Arc::clone(&device_ns);
        let build = move || -> Result<_, Infallible> {
            let executor = Timed {
                fake: FakeExecutor::late(VOCAB_SIZE, &config, seed),
                steps: 0,
                device_ns: Arc::clone(&total),
                fails,
            };
            let vocab_size = VOCAB_SIZE as usize;
            Ok(Built { executor, energy: None, config, vocab_size, info: () })
        };
        let ledger = Ledger::default();
        let options =
            EngineOptions::new("fake").sink(Some(Box::new(ledger.clone()))).max_queue_wait(None);
        let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
        let (live, finished, failed) = (Vec::new(), 0, 0);
        Self { rng, config, engine, ledger, device_ns, fails, live, finished, failed }
    }

    fn submit(&mut self) {
        let rng = &mut self.rng;
        let prompt_len = rng.random_range(1..=50);
        // Few beginnings, so that prefixes are found.
        let first = rng.random_range(0..3);
        let prompt: Vec<_> = (0..prompt_len).map(|i| (first + i * 7) % VOCAB_SIZE).collect();
        let params = SamplingParams {
            max_tokens: rng.random_range(1..=40),
            seed: rng.random(),
            eos_token_ids: if rng.random() { [1].into() } else { [].into() },
            ..SamplingParams::default()
        };
        let is_constrained = rng.random_bool(0.3);
        let groups = &self.config.groups;
        let allowed = |generated: &[_], token| !is_constrained || allows(generated, token);
        let expected = FakeExecutor::expected_under(&prompt, &params, VOCAB_SIZE, groups, allowed);
        let request = EngineRequest::new(prompt, params);
        let (stream, signal) = if rng.random_bool(0.2) {
            let patience = Duration::from_secs(3600);
            let reason = NotReady::ALL[rng.random_range(0..4)];
            let taken = self.engine.submit_not_ready(request, None, reason, patience);
            let Ok((stream, signal)) = taken else { return };
            (stream, Some(signal))
        } else {
            let taken = if is_constrained {
                self.engine.submit_constrained(request, None, parity())
            } else {
                self.engine.submit(request)
            };
            let Ok(stream) = taken else { return };
            (stream, None)
        };
        self.live.push(Live { stream, signal, is_constrained, expected, got: 0 });
    }

    /// Makes a request ready, or says that it never will be.
    fn signal(&mut self, index: usize) {
        let live = &mut self.live[index];
        let Some(signal) = live.signal.take() else { return };
        match self.rng.random_range(0..20) {
            0 => signal.fail("it does not compile"),
            1 => drop(signal),
            _ => signal.ready(live.is_constrained.then(parity)),
        }
    }

    /// Takes an event of a request; says whether it goes on.
    fn take(&mut self, index: usize, event: RequestEvent) -> bool {
        let live = &mut self.live[index];
        match event {
            RequestEvent::Token(token) => {
                assert_eq!(token.token, live.expected[live.got], "{:?} goes wrong", live.stream);
                live.got += 1;
                if token.finish.is_some() {
                    assert_eq!(live.got, live.expected.len(), "it ends where it should");
                    self.finished += 1;
                }
                token.finish.is_none()
            }
            RequestEvent::Failed(RequestError::StepFailed(_) | RequestError::CannotRun { .. }) => {
                self.failed += 1;
                false
            }
            other => panic!("{other:?}"),
        }
    }

    /// Something happens on the clients' side.
    fn turn(&mut self) {
        if self.live.len() < 20 && self.rng.random_bool(0.5) {
            self.submit();
        }
        if self.live.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.live.len());
        if self.rng.random_bool(0.2) {
            self.signal(index);
        }
        if self.rng.random_bool(0.01) {
            self.live.swap_remove(index);
            return;
        }
        let live = &mut self.live[index];
        // One that is not ready has no event yet.
        let mut event = match live.signal {
            Some(_) => live.stream.try_next(),
            None => live.stream.blocking_next(),
        };
        while let Some(next) = event {
            if !self.take(index, next) {
                self.live.swap_remove(index);
                return;
            }
            event = self.live[index].stream.try_next();
        }
    }

    /// All that is left ends; then requests and what was discarded sum to the device's time.
    fn settle(mut self) {
        while let Some(index) = self.live.len().checked_sub(1) {
            self.signal(index);
            let event = self.live[index].stream.blocking_next().expect("it has not ended");
            if !self.take(index, event) {
                self.live.pop();
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(self.engine.settle()).expect("the engine answers");
        // Those that were dropped have ended, too.
        while self.engine.unfinished() > 0 {
            std::thread::yield_now();
        }
        runtime.block_on(self.engine.settle()).expect("the engine answers");
        let entries = self.ledger.0.lock().expect("nothing panics with it");
        assert!(entries.values().all(|entry| entry.end.is_some()), "every entry is closed");
        let billed: u64 = entries.values().map(|entry| entry.usage.device_ns).sum();
        let discarded = (self.engine.metrics().discarded_device_seconds.get() * 1e9).round() as u64;
        let used = self.device_ns.load(Ordering::Relaxed);
        if self.fails {
            assert!(billed + discarded > used, "{billed} + {discarded} of {used} and more");
        } else {
            assert_eq!(billed + discarded, used, "{billed} + {discarded} of {used}");
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().expect("the variable is a number"))
}

#[test]
fn an_engine_under_random_load_answers_right_and_bills_all() {
    let seed = number("SCONCE_SIM_SEED", 1);
    let steps = number("SCONCE_SIM_STEPS", 1_000_000);
    const EPISODE: u64 = 20_000;
    let (mut finished, mut failed, mut discarded) = (0, 0, 0.0);
    for episode in 0..steps.div_ceil(EPISODE) {
        let mut world = World::new(seed.wrapping_mul(1_000_003).wrapping_add(episode));
        let steps = |world: &World| world.engine.metrics().step_time.get_sample_count();
        while steps(&world) < EPISODE {
            world.turn();
        }
        finished += world.finished;
        failed += world.failed;
        discarded += world.engine.metrics().discarded_device_seconds.get();
        world.settle();
    }
    assert!(finished > 1_000 && failed > 1_000, "{finished} finished, {failed} failed");
    assert!(discarded > 0.0, "rows of ended requests take time");
}
