//! The scheduler under a million random steps: any limits, arrivals, cancels,
//! preemptions, failed steps, masks that are late; one step in flight or two, one cache group
//! or several with windows. The executor's next token is a hash of the
//! context that it reads back through the block tables, in steps that it computes late and in
//! any order, so a block that is shared, released or reused wrongly shows as a wrong token.
//!
//! `SCONCE_SIM_SEED` and `SCONCE_SIM_STEPS` choose another run.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use sconce_scheduler::{
    CacheGroups, FakeExecutor, Fault, Output, PrefixKey, Request, Scheduler, SchedulerConfig,
    SchedulingPolicy, Span, StepLimit, StepModel,
};
use sconce_types::{
    BLOCK_SIZE, BlockId, Executor as _, NotReady, RequestId, Sample, SamplingParams,
    ScheduledBatch, Slot, StepResult, Tenant, TenantId, TokenId, TokenMask, TokenMasks,
};

use crate::bills::Bills;

mod checks;

const VOCAB_SIZE: u32 = 40;
/// Tenants at most.
const TENANTS: u32 = 4;

/// What is done wrongly on purpose, to show that the checks can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    None,
    /// The executor is given another sequence's block, as by a pool that
    /// hands a block out twice or frees it before its last step has ended.
    ShareABlock,
    /// A cancelled request stays in the scheduler.
    ForgetACancel,
    /// The scheduler may compute one token more than the limit.
    ExceedTheBudget,
    /// A slot is given to two sequences of a step.
    ShareASlot,
    /// A sampled token is lost before it is committed.
    AlterAToken,
    /// A meter is not told of a preemption.
    ForgetAPreemption,
    /// The executor is not told of an entry of a block table.
    LoseATableEdit,
    /// A skipped row is not computed again.
    ForgetASkip,
    /// The executor's windows are a block wider than the scheduler's: as if the scheduler
    /// released blocks too early.
    WidenTheWindows,
    /// A request that is ready is not unblocked.
    LoseAWakeUp,
    /// What a row computed for a request that has ended is given to it.
    CommitADeadRow,
    /// The scheduler is told of more tokens than a request may have.
    RaiseMaxTokens,
    /// The scheduler frees what a step uses before the step has ended.
    FreeEarly,
    /// A row whose request has ended is billed to no request, and not discarded either.
    BillNobody,
    /// A step's time is billed twice.
    BillTwice,
}

/// What a request should get, and has got.
struct Expected {
    tokens: Vec<TokenId>,
    got: usize,
    prompt_len: usize,
    prompt_logprobs: Option<usize>,
    non_finite: bool,
}

struct Simulation {
    rng: StdRng,
    limits: SchedulerConfig,
    step_limit: Option<StepLimit>,
    preemptions: u64,
    scheduler: Scheduler,
    tenants: Vec<Tenant>,
    executor: FakeExecutor,
    live: HashMap<RequestId, Expected>,
    bills: Bills,
    /// Prompts that others may begin like, each with its salt.
    seen: Vec<(u64, Vec<TokenId>)>,
    next_id: u64,
    sabotage: Sabotage,
    /// Steps in flight, the oldest first.
    flight: VecDeque<ScheduledBatch>,
    /// Batches that were committed, kept for their memory.
    spare: Vec<ScheduledBatch>,
    /// Whether the newest step has yet to be sampled.
    is_unsampled: bool,
    masks: TokenMasks,
    result: StepResult,
    outputs: Vec<Output>,
    failed: Vec<RequestId>,
    step: u64,
    /// The block tables as the executor knows them: by slot and group.
    tables: HashMap<(Slot, u32), Vec<BlockId>>,
    dead_rows: u64,
    skips: u64,
    /// Requests that are not ready, and whether they are constrained.
    blocked: Vec<(RequestId, bool)>,
}

/// Cache groups: usually one that keeps everything.
fn random_groups(rng: &mut StdRng) -> CacheGroups {
    if rng.random_bool(0.4) {
        return CacheGroups::ONE;
    }
    let spans: Vec<Span> = (0..rng.random_range(1..=3))
        .map(|_| match rng.random_range(0..3) {
            0 => Span::All,
            1 => Span::Window(rng.random_range(1..=20)),
            _ => Span::Window(rng.random_range(20..=70)),
        })
        .collect();
    CacheGroups::new(&spans)
}

/// A constrained request may generate only tokens that differ from the last one in parity,
/// and the first from an even number.
fn allows(generated: &[TokenId], token: TokenId) -> bool {
    generated.last().map_or(1, |last| last % 2) != token % 2 || token.is_multiple_of(5)
}

/// Up to four tenants, some with minima and limits.
fn random_tenants(rng: &mut StdRng, num_blocks: usize) -> Vec<Tenant> {
    let count = rng.random_range(1..=TENANTS);
    (0..count)
        .map(|index| Tenant {
            id: TenantId(index),
            weight: rng.random_range(1..=4),
            min_share: if rng.random_bool(0.3) { 1.0 / f64::from(count) } else { 0.0 },
            max_running: rng.random_bool(0.2).then(|| rng.random_range(1..=4)),
            max_queued: rng.random_bool(0.2).then(|| rng.random_range(1..=6)),
            max_kv_blocks: rng.random_bool(0.2).then(|| rng.random_range(1..=num_blocks)),
            ..Tenant::sole()
        })
        .collect()
}

impl Simulation {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let limits = SchedulerConfig {
            max_num_seqs: rng.random_range(1..=12),
            max_num_batched_tokens: [1, 2, 7, 16, 33, 64][rng.random_range(0..6)],
            max_model_len: rng.random_range(2..=120),
            num_blocks: rng.random_range(1..=24),
            groups: random_groups(&mut rng),
            depth: rng.random_range(1..=2),
            max_queued: rng.random_range(1..=20),
            prefix_cache: rng.random_bool(0.7).then(|| PrefixKey(rng.random())),
            policy: [SchedulingPolicy::Fcfs, SchedulingPolicy::Priority, SchedulingPolicy::Fair]
                [rng.random_range(0..3)],
        };
        let extra = usize::from(sabotage == Sabotage::ExceedTheBudget);
        let config = SchedulerConfig {
            max_num_batched_tokens: limits.max_num_batched_tokens + extra,
            ..limits
        };
        let mut scheduler = Scheduler::new(config).expect("the limits are valid");
        let tenants = random_tenants(&mut rng, limits.num_blocks);
        scheduler.set_tenants(&tenants);
        let step_limit = rng.random_bool(0.5).then(|| {
            let [step, decode] = [(); 2].map(|()| rng.random_range(0.0..0.1));
            let prefill = rng.random_range(0.001..0.1);
            let attended = rng.random_range(0.0..0.001);
            let model = StepModel::new(step, prefill, decode, attended);
            StepLimit::new(rng.random_range(0.01..2.0), &model)
        });
        scheduler.set_step_limit(step_limit);
        let mut executed = limits;
        if sabotage == Sabotage::WidenTheWindows {
            let wider = |span: &Span| match *span {
                Span::All => Span::All,
                Span::Window(window) => Span::Window(window + BLOCK_SIZE as u32),
            };
            let spans: Vec<_> = limits.groups.spans().iter().map(wider).collect();
            executed.groups = CacheGroups::new(&spans);
        }
        let executor = FakeExecutor::late(VOCAB_SIZE, &executed, rng.random());
        Self {
            step_limit,
            preemptions: 0,
            scheduler,
            tenants,
            executor,
            rng,
            limits,
            live: HashMap::new(),
            bills: Bills::default(),
            seen: Vec::new(),
            next_id: 0,
            sabotage,
            flight: VecDeque::new(),
            spare: Vec::new(),
            is_unsampled: false,
            masks: TokenMasks::default(),
            result: StepResult::default(),
            outputs: Vec::new(),
            failed: Vec::new(),
            step: 0,
            tables: HashMap::new(),
            dead_rows: 0,
            skips: 0,
            blocked: Vec::new(),
        }
    }

    fn arrive(&mut self) {
        let rng = &mut self.rng;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let prompt_len = rng.random_range(0..=self.limits.max_model_len);
        let mut cache_salt = rng.random_range(0..2);
        let mut prompt = Vec::new();
        if let Some((salt, seen)) = self.seen.iter().choose(rng).filter(|_| rng.random_bool(0.7)) {
            let len = rng.random_range(0..=seen.len()).min(prompt_len);
            prompt.extend(&seen[..len]);
            cache_salt = if rng.random_bool(0.9) { *salt } else { cache_salt };
        }
        prompt.resize_with(prompt_len, || rng.random_range(0..VOCAB_SIZE));
        if self.seen.len() < 8 {
            self.seen.push((cache_salt, prompt.clone()));
        } else {
            self.seen[rng.random_range(0..8)] = (cache_salt, prompt.clone());
        }
        let max_tokens = rng.random_range(0..=40);
        let params = Arc::new(SamplingParams {
            max_tokens,
            min_tokens: rng.random_range(0..=max_tokens.min(4)),
            seed: rng.random(),
            stop_token_ids: if rng.random_bool(0.3) { vec![3, 5] } else { Vec::new() },
            eos_token_ids: if rng.random_bool(0.7) { [1].into() } else { [].into() },
            logprobs: rng.random_bool(0.2).then_some(2),
            prompt_logprobs: rng.random_bool(0.2).then_some(0),
            ..SamplingParams::default()
        });
        let non_finite = rng.random_bool(0.02);
        let is_constrained = rng.random_bool(0.2);
        let allows = |generated: &[_], token| !is_constrained || allows(generated, token);
        let groups = &self.limits.groups;
        let expected = Expected {
            tokens: FakeExecutor::expected_under(&prompt, &params, VOCAB_SIZE, groups, allows),
            got: 0,
            prompt_len,
            prompt_logprobs: params.prompt_logprobs.map(|_| 0),
            non_finite,
        };
        let tenant = self.tenants.iter().choose(rng).expect("there is a tenant");
        let stats = self.scheduler.tenant_stats(tenant.id);
        let scheduler_stats = self.scheduler.stats();
        let slots = self.limits.max_num_seqs - scheduler_stats.running - scheduler_stats.leaving;
        let own_slots = tenant.max_running.map_or(slots, |most| most.saturating_sub(stats.running));
        let blocks = self.limits.peak_blocks(prompt_len + max_tokens as usize);
        let can_finish = prompt_len > 0
            && max_tokens > 0
            && prompt_len + max_tokens as usize <= self.limits.max_model_len
            && blocks <= self.limits.num_blocks
            && scheduler_stats.waiting + scheduler_stats.blocked < self.limits.max_queued
            && tenant.max_kv_blocks.is_none_or(|most| blocks <= most)
            && tenant
                .max_queued
                .is_none_or(|most| stats.waiting + stats.blocked < most + slots.min(own_slots));
        let priority = rng.random_range(-1..=1);
        let not_ready = rng.random_bool(0.2).then_some(NotReady::Grammar);
        let fits = prompt_len + max_tokens as usize + 1 < self.limits.max_model_len.min(BLOCK_SIZE);
        let params = if self.sabotage == Sabotage::RaiseMaxTokens && max_tokens > 0 && fits {
            Arc::new(SamplingParams { max_tokens: max_tokens + 1, ..(*params).clone() })
        } else {
            params
        };
        let taken = self.scheduler.add(Request {
            id,
            prompt,
            params,
            tenant: tenant.id,
            priority,
            cache_salt,
            is_constrained,
            not_ready,
        });
        assert_eq!(taken.is_ok(), can_finish, "what can finish is taken: {taken:?}");
        if can_finish {
            if non_finite {
                self.executor.inject(Fault::NonFinite(id));
            }
            if not_ready.is_some() {
                self.blocked.push((id, is_constrained));
            }
            self.live.insert(id, expected);
            self.bills.arrive(id, prompt_len);
        }
    }

    /// Weights, minima and limits change while requests run.
    fn change_tenants(&mut self) {
        self.tenants = random_tenants(&mut self.rng, self.limits.num_blocks);
        self.scheduler.set_tenants(&self.tenants);
    }

    fn cancel_somebody(&mut self) {
        let Some(&id) = self.live.keys().choose(&mut self.rng) else { return };
        self.live.remove(&id);
        if self.sabotage == Sabotage::ForgetACancel {
            return;
        }
        assert!(self.scheduler.cancel(id), "a live request can be cancelled");
        assert!(!self.scheduler.cancel(id), "a cancelled request is gone");
        self.bills.end(id);
    }

    /// One of those that are not ready is.
    fn unblock_somebody(&mut self) {
        if self.blocked.is_empty() {
            return;
        }
        let (id, is_constrained) =
            self.blocked.swap_remove(self.rng.random_range(0..self.blocked.len()));
        if self.sabotage == Sabotage::LoseAWakeUp {
            return;
        }
        let is_live = self.live.contains_key(&id);
        assert_eq!(self.scheduler.unblock(id, is_constrained), is_live, "what is live is ready");
        assert!(!self.scheduler.unblock(id, is_constrained), "it is ready once");
    }

    /// One turn of an engine's loop: fills the flight, then waits for its oldest step. Says
    /// whether there was anything to do.
    fn step(&mut self, may_fail: bool) -> bool {
        while self.flight.len() < self.limits.depth && !self.is_unsampled {
            let mut batch = self.spare.pop().unwrap_or_default();
            self.scheduler.schedule(&mut batch);
            self.scheduler.check_invariants();
            self.note_preempted();
            if batch.is_empty() {
                self.spare.push(batch);
                break;
            }
            self.bills.schedule(&batch);
            self.check_batch(&batch);
            self.tamper_with(&mut batch);
            if may_fail && self.rng.random_bool(0.01) {
                let fault = if self.rng.random() { Fault::FailStep } else { Fault::FailLate };
                self.executor.inject(fault(batch.step));
            }
            if self.executor.launch(&batch).is_err() {
                self.fail(batch);
                return true;
            }
            // The mask of a row that the step before samples follows from its token.
            self.is_unsampled = true;
            let is_early = batch.num_constrained > 0 && !self.flight.is_empty();
            self.flight.push_back(batch);
            if !is_early {
                self.sample_newest();
            }
        }
        if self.sabotage == Sabotage::FreeEarly
            && self.flight.len() > 1
            && let Some(batch) = self.flight.front().cloned()
        {
            // As if it had ended already; the executor computes it still.
            self.scheduler.fail_batch(&batch, &mut self.failed);
            for id in self.failed.drain(..) {
                self.live.remove(&id);
                self.bills.end(id);
            }
            let mut next = ScheduledBatch::default();
            self.scheduler.schedule(&mut next);
            self.check_batch(&next);
        }
        let Some(batch) = self.flight.pop_front() else {
            let blocked = self.scheduler.stats().blocked;
            assert_eq!(self.live.len(), blocked, "requests wait for nothing");
            return false;
        };
        let outcome = self.executor.wait(&mut self.result);
        let step_ns = self.rng.random_range(0..10_000_000);
        self.pass(step_ns);
        match outcome {
            Err(_) => self.fail_timed(batch, step_ns),
            Ok(()) => self.commit(batch, step_ns),
        }
        if self.is_unsampled {
            self.sample_newest();
        }
        self.scheduler.check_invariants();
        self.bills.check();
        true
    }

    fn sample_newest(&mut self) {
        self.is_unsampled = false;
        let batch = self.flight.back().expect("a step was launched");
        self.masks.clear();
        for (row, sequence) in batch.sequences.iter().enumerate() {
            let Sample::Token { constrained: true, .. } = sequence.sample else { continue };
            let expected = self.live.get(&sequence.request);
            let is_ready = self.rng.random_bool(0.9);
            self.masks.push(row, VOCAB_SIZE.div_ceil(32) as usize, |words| {
                // A request that has ended needs no mask.
                let Some(Expected { tokens, got, .. }) = expected else { return true };
                for token in (0..VOCAB_SIZE).filter(|&token| allows(&tokens[..*got], token)) {
                    words[token as usize / 32] |= 1 << (token % 32);
                }
                is_ready
            });
        }
        self.executor.sample(&self.masks).expect("it was launched");
        for row in self.masks.skipped() {
            assert_eq!(self.masks.get(row), TokenMask::Skip);
            self.skips += 1;
            if self.sabotage != Sabotage::ForgetASkip {
                self.scheduler.skip_sample(batch.sequences[row].request);
            }
        }
    }

    fn commit(&mut self, batch: ScheduledBatch, step_ns: u64) {
        self.bill(&batch, step_ns, true);
        if self.sabotage == Sabotage::AlterAToken && batch.step == 50 {
            self.result.tokens.iter_mut().for_each(|token| *token = (*token + 1) % VOCAB_SIZE);
        }
        let live = |request| self.live.contains_key(&request);
        let dead = batch.sequences.iter().filter(|sequence| !live(sequence.request));
        self.dead_rows += dead.count() as u64;
        self.scheduler.commit(&batch, &mut self.result, &mut self.outputs);
        if self.sabotage == Sabotage::CommitADeadRow
            && let Some(dead) = batch.sequences.iter().find(|s| !self.live.contains_key(&s.request))
        {
            let output = self.outputs.first().cloned();
            self.outputs.extend(output.map(|output| Output { request: dead.request, ..output }));
        }
        if self.limits.groups.has_windows() {
            for sequence in &batch.sequences {
                self.bills.hold(sequence.request, self.scheduler.num_blocks(sequence.request));
            }
        }
        self.check_outputs();
        self.note_preempted();
        self.spare.push(batch);
    }

    fn fail(&mut self, batch: ScheduledBatch) {
        self.fail_timed(batch, 0);
    }

    fn fail_timed(&mut self, batch: ScheduledBatch, step_ns: u64) {
        self.bill(&batch, step_ns, false);
        self.scheduler.fail_batch(&batch, &mut self.failed);
        for id in self.failed.drain(..) {
            self.bills.end(id);
            assert!(self.live.remove(&id).is_some(), "a failed request was live");
        }
        self.note_preempted();
        self.scheduler.check_invariants();
    }

    fn bill(&mut self, batch: &ScheduledBatch, step_ns: u64, is_computed: bool) {
        self.bills.forgets_discarded = self.sabotage == Sabotage::BillNobody;
        self.bills.run_device(step_ns);
        self.bills.step(batch, step_ns, is_computed);
        if self.sabotage == Sabotage::BillTwice && batch.step == 50 {
            self.bills.step(batch, step_ns, is_computed);
        }
    }

    fn note_preempted(&mut self) {
        if self.sabotage != Sabotage::ForgetAPreemption {
            self.bills.preempt(self.scheduler.preempted());
        }
    }

    /// Time passes; unfinished requests hold their blocks.
    fn pass(&mut self, ns: u64) {
        let held = self.live.keys().map(|&id| self.scheduler.num_blocks(id)).sum();
        self.bills.pass(ns, held);
    }

    /// Random steps, then none arrive any more and all that is there must end.
    fn run(&mut self, steps: u64) {
        let arrival = [0.05, 0.3, 1.0][self.rng.random_range(0..3)];
        let departure = [0.0, 0.02, 0.2][self.rng.random_range(0..3)];
        for _ in 0..steps {
            let ns = self.rng.random_range(0..1_000_000);
            self.pass(ns);
            if self.rng.random_bool(arrival) {
                self.arrive();
            }
            if self.rng.random_bool(departure) {
                self.cancel_somebody();
            }
            if self.rng.random_bool(0.1) {
                self.unblock_somebody();
            }
            if self.rng.random_bool(0.01) {
                self.change_tenants();
            }
            self.step(true);
        }
        while !self.blocked.is_empty() {
            self.unblock_somebody();
        }
        // Each step takes the oldest request at least one token further, unless its mask is
        // late or it waits for a step in flight.
        let bound = (self.live.len() * self.limits.max_model_len * 2 + 2) * 4;
        for _ in 0..bound {
            if !self.step(false) {
                break;
            }
        }
        assert!(self.live.is_empty(), "{} requests did not end", self.live.len());
        assert!(!self.step(false), "something is left to do");
        assert_eq!(self.scheduler.stats().used_blocks, 0, "blocks are still held");
    }
}

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().expect("the variable is a number"))
}

#[test]
fn a_million_random_steps_break_nothing() {
    let seed = number("SCONCE_SIM_SEED", 1);
    let steps = number("SCONCE_SIM_STEPS", 1_000_000);
    const EPISODE: u64 = 1_000;
    let (mut preemptions, mut hits, mut dead_rows, mut skips, mut discarded) = (0, 0, 0, 0, 0);
    for episode in 0..steps.div_ceil(EPISODE) {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(episode);
        let mut simulation = Simulation::new(seed, Sabotage::None);
        let limits = simulation.limits;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            simulation.run(EPISODE);
        }));
        assert!(outcome.is_ok(), "episode with seed {seed} and {limits:?} failed, see above");
        preemptions += simulation.scheduler.stats().preemptions;
        hits += simulation.scheduler.stats().prefix_cache_hits;
        dead_rows += simulation.dead_rows;
        skips += simulation.skips;
        discarded += simulation.bills.discarded_ns();
    }
    assert!(hits > steps / 50, "prefixes were hardly shared: {hits} tokens");
    assert!(preemptions > steps / 1_000, "preemption was hardly tried: {preemptions} times");
    assert!(dead_rows > steps / 1_000, "requests hardly ended in flight: {dead_rows} rows");
    assert!(skips > steps / 1_000, "masks were hardly late: {skips} times");
    assert!(discarded > 0, "rows of ended requests take time");
}

/// Each fault is found in at least one of a few short runs.
#[test]
fn every_sabotage_is_found() {
    for sabotage in [
        Sabotage::ShareABlock,
        Sabotage::ForgetACancel,
        Sabotage::ExceedTheBudget,
        Sabotage::ShareASlot,
        Sabotage::AlterAToken,
        Sabotage::ForgetAPreemption,
        Sabotage::LoseATableEdit,
        Sabotage::ForgetASkip,
        Sabotage::WidenTheWindows,
        Sabotage::LoseAWakeUp,
        Sabotage::CommitADeadRow,
        Sabotage::RaiseMaxTokens,
        Sabotage::FreeEarly,
        Sabotage::BillNobody,
        Sabotage::BillTwice,
    ] {
        let found = (0..40).any(|seed| {
            let run = || Simulation::new(seed, sabotage).run(300);
            std::panic::catch_unwind(run).is_err()
        });
        assert!(found, "{sabotage:?} went unnoticed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Short runs, which shrink to a short failing one.
    #[test]
    fn short_runs_break_nothing(seed in any::<u64>(), steps in 1_u64..200) {
        Simulation::new(seed, Sabotage::None).run(steps);
    }
}
