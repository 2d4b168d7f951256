//! What a step of the scheduler costs, with many tenants that all compete: everyone is
//! running all the while, eight sequences end in each step and eight others arrive.
//!
//! `cargo bench -p sconce-scheduler`; its results are in `benches/results/scheduler.log`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sconce_scheduler::{
    CacheGroups, Output, Request, Scheduler, SchedulerConfig, SchedulingPolicy,
};
use sconce_types::{
    RequestId, Sample, SampleOutcome, SamplingParams, ScheduledBatch, StepResult, Tenant, TenantId,
    TokenId,
};

const PROMPT_LEN: usize = 32;
const ENDING: usize = 8;
const TOKEN: TokenId = 7;
const EOS: TokenId = 1;

/// An engine's load.
struct World {
    scheduler: Scheduler,
    params: Arc<SamplingParams>,
    tenants: u32,
    next_id: u64,
    batch: ScheduledBatch,
    result: StepResult,
    outputs: Vec<Output>,
}

impl World {
    fn new(running: usize, queued: usize, tenants: u32) -> Self {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            max_num_seqs: running,
            max_num_batched_tokens: running + ENDING * PROMPT_LEN,
            max_model_len: 512,
            num_blocks: running * 16,
            max_queued: 2 * queued,
            groups: CacheGroups::ONE,
            depth: 1,
            prefix_cache: None,
            policy: SchedulingPolicy::Fair,
        })
        .expect("the limits agree");
        let weight = |index: u32| 1 + index % 4;
        let ids =
            (0..tenants).map(|i| Tenant { id: TenantId(i), weight: weight(i), ..Tenant::sole() });
        scheduler.set_tenants(&ids.collect::<Vec<_>>());
        let params = SamplingParams {
            max_tokens: 256,
            eos_token_ids: Arc::from([EOS]),
            ..SamplingParams::default()
        };
        let mut world = Self {
            scheduler,
            params: Arc::new(params),
            tenants,
            next_id: 0,
            batch: ScheduledBatch::default(),
            result: StepResult::default(),
            outputs: Vec::new(),
        };
        for _ in 0..running + queued {
            world.arrive();
        }
        // Until all slots are taken, and long enough that who came together has parted.
        for _ in 0..1_000 {
            world.step();
        }
        world.check_slots(running);
        world
    }

    /// All slots are taken, but for those that ended just now or gave way.
    fn check_slots(&self, slots: usize) {
        let running = self.scheduler.stats().running;
        assert!(running + 2 * ENDING >= slots, "{running} of {slots} slots are taken");
    }

    fn arrive(&mut self) {
        let id = RequestId(self.next_id);
        let tenant = TenantId(self.next_id.wrapping_mul(2_654_435_761) as u32 % self.tenants);
        self.next_id += 1;
        let request = Request::new(id, vec![TOKEN; PROMPT_LEN], Arc::clone(&self.params));
        self.scheduler.add(Request { tenant, ..request }).expect("it is taken");
    }

    fn schedule(&mut self) {
        self.scheduler.schedule(&mut self.batch);
    }

    /// Takes a result in which the first `ending` sequences that sample end.
    fn commit(&mut self, ending: usize) {
        let mut left = ending;
        self.result.clear(self.batch.step);
        for sequence in &self.batch.sequences {
            match sequence.sample {
                Sample::Nothing => self.result.push(SampleOutcome::Nothing),
                Sample::Token { .. } if left > 0 => {
                    left -= 1;
                    self.result.push_token(EOS);
                }
                Sample::Token { .. } => self.result.push_token(TOKEN),
            }
        }
        self.outputs.clear();
        self.scheduler.commit(&self.batch, &mut self.result, &mut self.outputs);
    }

    /// One step, and as many arrivals as there were ends; the scheduler's time for the step.
    fn step(&mut self) -> Duration {
        let started = Instant::now();
        self.schedule();
        let scheduled = started.elapsed();
        // What the executor does is not the scheduler's time.
        let started = Instant::now();
        self.commit(ENDING);
        let committed = started.elapsed();
        let ended = self.outputs.iter().filter(|output| output.finish.is_some()).count();
        (0..ended).for_each(|_| self.arrive());
        scheduled + committed
    }
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    for running in [64, 128, 256, 512, 1024] {
        let (queued, tenants) = (running * 10_000 / 256, running * 1_000 / 256);
        let name = format!("{running} running, {queued} queued, {tenants} tenants");
        let mut world = World::new(running, queued, tenants as u32);
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|count| (0..count).map(|_| world.step()).sum());
        });
        world.check_slots(running);
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
