//! The scheduler under a million random steps: any limits, arrivals, cancels,
//! preemptions, failed steps. The executor's next token is a hash of the
//! context that it reads back through the block tables, so a block that is
//! shared or reused wrongly shows as a wrong token.
//!
//! `SCONCE_SIM_SEED` and `SCONCE_SIM_STEPS` choose another run.

use std::{collections::HashMap, sync::Arc};

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng, seq::IteratorRandom as _};
use sconce_scheduler::{
    FakeExecutor, Fault, Finish, Output, PrefixKey, Request, Scheduler, SchedulerConfig,
    SchedulingPolicy, StepLimit, StepModel, StepWork,
};
use sconce_types::{
    BLOCK_SIZE, Executor as _, Input, RequestId, SampledTokens, SamplingParams, ScheduledBatch,
    Tenant, TenantId, TokenId,
};

use crate::bills::Bills;

const VOCAB_SIZE: u32 = 40;
/// Tenants at most.
const TENANTS: u32 = 4;

/// What is done wrongly on purpose, to show that the checks can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    None,
    /// The executor is given another sequence's first block, as by a pool that
    /// hands a block out twice.
    ShareABlock,
    /// A cancelled request stays in the scheduler.
    ForgetACancel,
    /// The scheduler may compute one token more than the limit.
    ExceedTheBudget,
    /// A seat is given to two sequences of a step.
    ShareASeat,
    /// A sampled token is lost before it is committed.
    AlterAToken,
    /// A meter is not told of a preemption.
    ForgetAPreemption,
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
    batch: ScheduledBatch,
    sampled: SampledTokens,
    outputs: Vec<Output>,
    failed: Vec<RequestId>,
    step: u64,
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
        Self {
            step_limit,
            preemptions: 0,
            scheduler,
            tenants,
            executor: FakeExecutor::new(VOCAB_SIZE, limits.num_blocks, limits.max_num_seqs),
            rng,
            limits,
            live: HashMap::new(),
            bills: Bills::default(),
            seen: Vec::new(),
            next_id: 0,
            sabotage,
            batch: ScheduledBatch::default(),
            sampled: SampledTokens::default(),
            outputs: Vec::new(),
            failed: Vec::new(),
            step: 0,
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
        let expected = Expected {
            tokens: FakeExecutor::expected_tokens(&prompt, &params, VOCAB_SIZE),
            got: 0,
            prompt_len,
            prompt_logprobs: params.prompt_logprobs.map(|_| 0),
            non_finite,
        };
        let tenant = self.tenants.iter().choose(rng).expect("there is a tenant");
        let stats = self.scheduler.tenant_stats(tenant.id);
        let seats = self.limits.max_num_seqs - self.scheduler.stats().running;
        let own_seats = tenant.max_running.map_or(seats, |most| most.saturating_sub(stats.running));
        let blocks = (prompt_len + max_tokens as usize).div_ceil(BLOCK_SIZE);
        let can_finish = prompt_len > 0
            && max_tokens > 0
            && prompt_len + max_tokens as usize <= self.limits.max_model_len
            && blocks <= self.limits.num_blocks
            && self.scheduler.stats().waiting < self.limits.max_queued
            && tenant.max_kv_blocks.is_none_or(|most| blocks <= most)
            && tenant.max_queued.is_none_or(|most| stats.waiting < most + seats.min(own_seats));
        let priority = rng.random_range(-1..=1);
        let taken = self.scheduler.add(Request {
            id,
            prompt,
            params,
            tenant: tenant.id,
            priority,
            cache_salt,
        });
        assert_eq!(taken.is_ok(), can_finish, "what can finish is taken: {taken:?}");
        if can_finish {
            if non_finite {
                self.executor.inject(Fault::NonFinite(id));
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

    /// One step; says whether there was anything to do.
    fn step(&mut self, may_fail: bool) -> bool {
        self.scheduler.schedule(&mut self.batch);
        self.scheduler.check_invariants();
        if self.sabotage != Sabotage::ForgetAPreemption {
            self.bills.preempt(self.scheduler.preempted());
        }
        if self.batch.is_empty() {
            assert!(self.live.is_empty(), "{} requests wait for nothing", self.live.len());
            return false;
        }
        self.check_batch();
        self.tamper_with_the_batch();
        if may_fail && self.rng.random_bool(0.01) {
            self.executor.inject(Fault::FailStep(self.batch.step));
        }
        let launched = self.executor.launch(&self.batch);
        let outcome = launched.and_then(|()| self.executor.wait(&mut self.sampled));
        let step_ns = self.rng.random_range(0..10_000_000);
        self.bills.step(&self.batch, step_ns, self.held_blocks(), outcome.is_ok());
        if outcome.is_err() {
            self.scheduler.fail_batch(&self.batch, &mut self.failed);
            for id in self.failed.drain(..) {
                self.bills.end(id);
                assert!(self.live.remove(&id).is_some(), "a failed request was live");
            }
        } else {
            if self.sabotage == Sabotage::AlterAToken && self.batch.step == 50 {
                self.sampled.rows.iter_mut().for_each(|row| {
                    if let sconce_types::SampleOutcome::Token(token) = &mut row.outcome {
                        *token = (*token + 1) % VOCAB_SIZE;
                    }
                });
            }
            self.scheduler.commit(&self.batch, &self.sampled, &mut self.outputs);
            self.check_outputs();
        }
        self.scheduler.check_invariants();
        self.bills.check();
        true
    }

    /// Blocks in all tables.
    fn held_blocks(&self) -> usize {
        (0..TENANTS).map(|id| self.scheduler.tenant_stats(TenantId(id)).blocks).sum()
    }

    fn check_batch(&mut self) {
        let batch = &self.batch;
        assert!(batch.step > self.step, "steps are numbered upwards");
        self.step = batch.step;
        let total: usize = batch.sequences.iter().map(|s| s.input.len()).sum();
        assert_eq!(total, batch.num_tokens);
        assert!(
            total <= self.limits.max_num_batched_tokens,
            "{total} tokens exceed the budget of {}",
            self.limits.max_num_batched_tokens
        );
        assert!(batch.sequences.len() <= self.limits.max_num_seqs, "seats are bounded");
        if let Some(limit) = &self.step_limit {
            let mut decodes = StepWork::default();
            let (mut prefill, mut seconds) = (0, 0.0);
            for sequence in &batch.sequences {
                if sequence.input == Input::LastSampled {
                    decodes.decode += 1.0;
                    decodes.attended += sequence.num_computed_tokens as f64 + 1.0;
                } else {
                    let (len, context) = (sequence.input.len(), sequence.num_computed_tokens);
                    prefill += len;
                    seconds += limit.seconds_of_chunk(len as f64, context as f64);
                }
            }
            let may_take = limit.seconds_for_prefill(decodes);
            // Decodes that give way in this step, or yield to prompts, were counted.
            let gave_way = self.scheduler.stats().preemptions > self.preemptions
                || (self.limits.policy == SchedulingPolicy::Fair && self.tenants.len() > 1);
            self.preemptions = self.scheduler.stats().preemptions;
            assert!(
                gave_way || prefill <= StepLimit::FLOOR || seconds <= may_take * (1.0 + 1e-9),
                "{prefill} prompt tokens take {seconds} s beside {decodes:?}, not {may_take} s"
            );
        }
        // A block that is written to is in one table only.
        let mut times = HashMap::new();
        batch.block_tables.iter().for_each(|block| *times.entry(block).or_insert(0) += 1);
        for sequence in &batch.sequences {
            let table = &batch.block_tables[sequence.block_table.clone()];
            for block in &table[sequence.num_computed_tokens / BLOCK_SIZE..] {
                assert_eq!(times[block], 1, "a block that is written to is shared");
            }
        }
    }

    fn tamper_with_the_batch(&mut self) {
        let batch = &mut self.batch;
        if batch.sequences.len() < 2 {
            return;
        }
        match self.sabotage {
            Sabotage::ShareABlock => {
                let (a, b) = (&batch.sequences[0].block_table, &batch.sequences[1].block_table);
                batch.block_tables[b.start] = batch.block_tables[a.start];
            }
            Sabotage::ShareASeat => {
                let slot = batch.sequences[0].slot;
                batch.sequences[1].slot = slot;
                batch.admitted.iter_mut().for_each(|admitted| admitted.slot = slot);
            }
            _ => {}
        }
    }

    fn check_outputs(&mut self) {
        for output in self.outputs.drain(..) {
            let id = output.request;
            let expected = self.live.get_mut(&id).expect("outputs belong to live requests");
            if let Some(seen) = &mut expected.prompt_logprobs
                && !output.prompt_logprobs.is_empty()
            {
                assert_eq!(output.prompt_logprobs_start, *seen + 1, "each position once");
                *seen += output.prompt_logprobs.len();
            }
            if let Some(token) = output.token {
                assert!(!expected.non_finite);
                assert_eq!(token, expected.tokens[expected.got], "request {} goes wrong", id.0);
                expected.got += 1;
                let seen = expected.prompt_logprobs.unwrap_or(expected.prompt_len - 1);
                assert_eq!(seen, expected.prompt_len - 1, "the prompt is scored before a token");
            }
            let Some(finish) = output.finish else { continue };
            let expected = self.live.remove(&id).expect("it was live above");
            self.bills.end(id);
            match finish {
                Finish::NonFiniteLogits => assert!(expected.non_finite),
                Finish::StopCheck => unreachable!("only an engine has checks"),
                Finish::Stop { .. } | Finish::Length => {
                    assert_eq!(expected.got, expected.tokens.len(), "it ends where it should");
                }
            }
        }
    }

    /// Random steps, then none arrive any more and all that is there must end.
    fn run(&mut self, steps: u64) {
        let arrival = [0.05, 0.3, 1.0][self.rng.random_range(0..3)];
        let departure = [0.0, 0.02, 0.2][self.rng.random_range(0..3)];
        for _ in 0..steps {
            self.bills.pass(self.rng.random_range(0..1_000_000), self.held_blocks());
            if self.rng.random_bool(arrival) {
                self.arrive();
            }
            if self.rng.random_bool(departure) {
                self.cancel_somebody();
            }
            if self.rng.random_bool(0.01) {
                self.change_tenants();
            }
            self.step(true);
        }
        // Each step takes the oldest request at least one token further.
        let bound = self.live.len() * self.limits.max_model_len * 2 + 2;
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
    let (mut preemptions, mut hits) = (0, 0);
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
    }
    assert!(hits > steps / 50, "prefixes were hardly shared: {hits} tokens");
    assert!(preemptions > steps / 1_000, "preemption was hardly tried: {preemptions} times");
}

/// Each fault is found in at least one of a few short runs.
#[test]
fn every_sabotage_is_found() {
    for sabotage in [
        Sabotage::ShareABlock,
        Sabotage::ForgetACancel,
        Sabotage::ExceedTheBudget,
        Sabotage::ShareASeat,
        Sabotage::AlterAToken,
        Sabotage::ForgetAPreemption,
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
