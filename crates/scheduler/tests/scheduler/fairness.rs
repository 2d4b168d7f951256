//! How tenants share an engine: the bound of virtual token counters, shares by weight,
//! minima, what a flood does to others, and how soon what is borrowed is given back.

use std::{collections::HashMap, sync::Arc};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sconce_scheduler::{
    CacheGroups, Output, Request, Scheduler, SchedulerConfig, SchedulingPolicy, TokenCosts,
};
use sconce_types::{
    BLOCK_SIZE, Input, RequestId, Sample, SampleOutcome, SamplingParams, ScheduledBatch,
    StepResult, Tenant, TenantId,
};

const PREFILL_COST: f64 = 1.0;
const DECODE_COST: f64 = 2.0;

const LIMITS: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 16,
    max_num_batched_tokens: 64,
    max_model_len: 256,
    num_blocks: 128,
    max_queued: 10_000,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};

/// A scheduler in virtual time, whose every token is an x.
struct World {
    scheduler: Scheduler,
    batch: ScheduledBatch,
    result: StepResult,
    outputs: Vec<Output>,
    next_id: u64,
    tenants: HashMap<RequestId, usize>,
    /// How far each request was ever computed.
    computed: HashMap<RequestId, usize>,
    /// Cost served, and tokens computed, by tenant.
    served: Vec<f64>,
    tokens: Vec<usize>,
    now: f64,
    arrived: HashMap<RequestId, f64>,
    ttfts: Vec<Vec<f64>>,
}

impl World {
    fn new(limits: SchedulerConfig, tenants: &[Tenant]) -> Self {
        let mut scheduler = Scheduler::new(limits).expect("the limits agree");
        scheduler.set_tenants(tenants);
        scheduler.set_costs(TokenCosts { cached: 0.0, decode: DECODE_COST });
        Self {
            scheduler,
            batch: ScheduledBatch::default(),
            result: StepResult::default(),
            outputs: Vec::new(),
            next_id: 0,
            tenants: HashMap::new(),
            computed: HashMap::new(),
            served: vec![0.0; tenants.len()],
            tokens: vec![0; tenants.len()],
            now: 0.0,
            arrived: HashMap::new(),
            ttfts: vec![Vec::new(); tenants.len()],
        }
    }

    fn add(&mut self, tenant: usize, prompt_len: usize, max_tokens: u32) -> RequestId {
        self.add_with(tenant, prompt_len, max_tokens, 0)
    }

    fn add_with(
        &mut self,
        tenant: usize,
        prompt_len: usize,
        max_tokens: u32,
        priority: i32,
    ) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let params = SamplingParams { max_tokens, ..SamplingParams::default() };
        let request = Request {
            tenant: TenantId(tenant as u32),
            priority,
            ..Request::new(id, vec![7; prompt_len], Arc::new(params))
        };
        self.scheduler.add(request).expect("it is taken");
        self.tenants.insert(id, tenant);
        self.arrived.insert(id, self.now);
        id
    }

    /// One step; says whether there was one. Time passes as on a device that takes so much
    /// for a step and so much for each of its tokens.
    fn step(&mut self) -> bool {
        self.scheduler.schedule(&mut self.batch);
        if self.batch.is_empty() {
            return false;
        }
        self.now += 0.25 + self.batch.num_tokens as f64 / LIMITS.max_num_batched_tokens as f64;
        self.result.clear(self.batch.step);
        for sequence in &self.batch.sequences {
            let tenant = self.tenants[&sequence.request];
            let end = sequence.num_computed_tokens + sequence.input.len();
            let computed = self.computed.entry(sequence.request).or_default();
            let fresh = end.saturating_sub((*computed).max(sequence.num_computed_tokens));
            *computed = end.max(*computed);
            let is_decode = sequence.input == Input::LastSampled;
            let cost = if is_decode { DECODE_COST } else { PREFILL_COST };
            self.served[tenant] += cost * fresh as f64;
            self.tokens[tenant] += fresh;
            match sequence.sample {
                Sample::Nothing => self.result.push(SampleOutcome::Nothing),
                Sample::Token { .. } => self.result.push_token(7),
            }
        }
        self.scheduler.commit(&self.batch, &mut self.result, &mut self.outputs);
        for output in self.outputs.drain(..) {
            if output.token.is_some()
                && let Some(arrived) = self.arrived.remove(&output.request)
            {
                self.ttfts[self.tenants[&output.request]].push(self.now - arrived);
            }
        }
        true
    }

    fn waiting(&self, tenant: usize) -> usize {
        self.scheduler.tenant_stats(TenantId(tenant as u32)).waiting
    }

    fn running(&self, tenant: usize) -> usize {
        self.scheduler.tenant_stats(TenantId(tenant as u32)).running
    }
}

fn tenants(weights: &[u32]) -> Vec<Tenant> {
    let ids = (0..).map(TenantId);
    ids.zip(weights).map(|(id, &weight)| Tenant { id, weight, ..Tenant::sole() }).collect()
}

/// By how much more than 2U two tenants that both had requests waiting all the while were
/// served differently, at worst, over any interval of a random trace.
fn excess_over_the_bound(seed: u64, policy: SchedulingPolicy) -> f64 {
    let mut rng = StdRng::seed_from_u64(seed);
    let limits = SchedulerConfig {
        max_num_seqs: rng.random_range(2..=12),
        max_num_batched_tokens: [8, 16, 32][rng.random_range(0..3)],
        max_model_len: 64,
        num_blocks: rng.random_range(4..=12),
        policy,
        ..LIMITS
    };
    let count = rng.random_range(2..=4);
    let weights: Vec<u32> = (0..count).map(|_| rng.random_range(1..=3)).collect();
    let mut world = World::new(limits, &tenants(&weights));
    // U of the paper, section 4.1: the longest prompt, or all that runs at once.
    let bound = (PREFILL_COST * limits.max_model_len as f64)
        .max(DECODE_COST * (limits.num_blocks * BLOCK_SIZE) as f64);
    let rates: Vec<f64> = (0..count).map(|_| [0.02, 0.1, 0.5][rng.random_range(0..3)]).collect();
    // For each pair: the least and the greatest lead of one while both had a backlog.
    let mut leads: HashMap<(usize, usize), (f64, f64)> = HashMap::new();
    let mut worst = f64::MIN;
    for _ in 0..300 {
        for (tenant, &rate) in rates.iter().enumerate() {
            if rng.random_bool(rate) && world.waiting(tenant) < 50 {
                let max_tokens = rng.random_range(1..=32);
                let prompt_len = rng.random_range(1..=limits.max_model_len - max_tokens as usize);
                world.add(tenant, prompt_len, max_tokens);
            }
        }
        world.step();
        for a in 0..count {
            for b in 0..a {
                if world.waiting(a) == 0 || world.waiting(b) == 0 {
                    leads.remove(&(a, b));
                    continue;
                }
                let lead = |t: usize| world.served[t] / f64::from(weights[t]);
                let lead = lead(a) - lead(b);
                let (least, most) = leads.entry((a, b)).or_insert((lead, lead));
                (*least, *most) = (least.min(lead), most.max(lead));
                worst = worst.max(*most - *least - 2.0 * bound);
            }
        }
    }
    worst
}

#[test]
fn the_papers_bound_holds_over_ten_thousand_random_traces() {
    for seed in 0..10_000 {
        let excess = excess_over_the_bound(seed, SchedulingPolicy::Fair);
        assert!(excess <= 0.0, "trace {seed} exceeds the bound by {excess}");
    }
    let broken = |seed: &u64| excess_over_the_bound(*seed, SchedulingPolicy::Fcfs) > 0.0;
    let broken = (0..1_000).filter(broken).count();
    assert!(broken > 10, "first come, first served should break it: {broken} of 1000 do");
}

#[test]
fn weights_give_shares_within_three_percent() {
    let weights = [1, 2, 4];
    let mut world = World::new(LIMITS, &tenants(&weights));
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..20_000 {
        for tenant in 0..weights.len() {
            while world.waiting(tenant) < 4 {
                let (prompt_len, max_tokens) =
                    (rng.random_range(8..=128), rng.random_range(8..=64));
                world.add(tenant, prompt_len, max_tokens);
            }
        }
        world.step();
    }
    let all: usize = world.tokens.iter().sum();
    for (tenant, &weight) in weights.iter().enumerate() {
        let share = world.tokens[tenant] as f64 / all as f64;
        let fair = f64::from(weight) / 7.0;
        assert!((share / fair - 1.0).abs() < 0.03, "weight {weight}: {share}, fair is {fair}");
    }
}

#[test]
fn a_minimum_is_kept_whatever_the_others_weights() {
    let mut sharers = tenants(&[1, 10, 10]);
    sharers[0].min_share = 0.4;
    let mut world = World::new(LIMITS, &sharers);
    for _ in 0..20_000 {
        for tenant in 0..3 {
            while world.waiting(tenant) < 4 {
                world.add(tenant, 40, 20);
            }
        }
        world.step();
    }
    let all: usize = world.tokens.iter().sum();
    let shares: Vec<f64> = world.tokens.iter().map(|&n| n as f64 / all as f64).collect();
    assert!((shares[0] / 0.4 - 1.0).abs() < 0.03, "{shares:?}");
    assert!((shares[1] / 0.3 - 1.0).abs() < 0.03, "{shares:?}");
}

/// The p99 TTFT of a tenant that asks for an eighth of what the engine can do, beside one
/// that, if `flood`, asks for fifty times the half that is its own.
fn p99_ttft(policy: SchedulingPolicy, flood: bool) -> f64 {
    let mut world = World::new(SchedulerConfig { policy, ..LIMITS }, &tenants(&[1, 1]));
    let mut rng = StdRng::seed_from_u64(3);
    let mut next_arrival = 0.0;
    let mut flooded = 0.0;
    while world.ttfts[0].len() < 400 {
        while next_arrival <= world.now {
            world.add(0, 240, 8);
            world.arrived.insert(RequestId(world.next_id - 1), next_arrival);
            next_arrival += -60.0 * (1.0 - rng.random::<f64>()).ln();
        }
        while flood && flooded <= world.now && world.waiting(1) < 5_000 {
            let (prompt_len, max_tokens) = (rng.random_range(8..=128), rng.random_range(8..=128));
            world.add(1, prompt_len, max_tokens);
            flooded += 0.1;
        }
        if !world.step() {
            world.now = next_arrival;
        }
    }
    let ttfts = &mut world.ttfts[0];
    ttfts.sort_by(f64::total_cmp);
    ttfts[ttfts.len() * 99 / 100]
}

#[test]
fn a_flood_does_not_reach_who_stays_within_its_share() {
    let alone = p99_ttft(SchedulingPolicy::Fair, false);
    let flooded = p99_ttft(SchedulingPolicy::Fair, true);
    let starved = p99_ttft(SchedulingPolicy::Fcfs, true);
    assert!(flooded <= 1.5 * alone, "p99 TTFT {flooded}, alone {alone}");
    assert!(starved > 10.0 * alone, "first come, first served: {starved}, alone {alone}");
}

#[test]
fn idle_share_is_lent_and_given_back_at_once() {
    let mut world = World::new(LIMITS, &tenants(&[1, 1]));
    for _ in 0..40 {
        world.add(1, 16, 200);
    }
    for _ in 0..100 {
        world.step();
    }
    assert_eq!(world.running(1), LIMITS.max_num_seqs, "all slots are lent");
    let mut steps = 0;
    for _ in 0..LIMITS.max_num_seqs / 2 {
        world.add(0, 8, 20);
    }
    while world.running(0) < LIMITS.max_num_seqs / 2 {
        assert!(world.step() && steps < 2, "half of the slots are back within two steps");
        steps += 1;
    }
    let lent = world.scheduler.stats().preemptions;
    assert!(lent >= 8, "what was lent was taken back: {lent}");
    // More than its own share is not taken from anybody.
    for _ in 0..8 {
        world.add(0, 8, 20);
    }
    world.step();
    assert_eq!(world.running(0), LIMITS.max_num_seqs / 2);
    assert_eq!(world.scheduler.stats().preemptions, lent);
}

#[test]
fn within_a_tenant_priority_comes_before_arrival() {
    let mut world = World::new(SchedulerConfig { max_num_seqs: 1, ..LIMITS }, &tenants(&[1]));
    let ids = [(0, 5), (1, 0), (2, 0), (3, -1)].map(|(_, p)| world.add_with(0, 4, 1, p));
    let mut order = Vec::new();
    while world.step() {
        order.push(world.batch.sequences[0].request);
    }
    assert_eq!(order, [ids[3], ids[1], ids[2], ids[0]]);
}

#[test]
fn a_tenants_limits_hold_and_do_not_hold_up_others() {
    let mut sharers = tenants(&[1, 1, 1]);
    sharers[0].max_running = Some(2);
    sharers[1].max_kv_blocks = Some(3);
    for policy in [SchedulingPolicy::Fcfs, SchedulingPolicy::Priority, SchedulingPolicy::Fair] {
        let mut world = World::new(SchedulerConfig { policy, ..LIMITS }, &sharers);
        for _ in 0..6 {
            for tenant in 0..3 {
                world.add(tenant, 20, 20);
            }
        }
        let mut most = [0; 3];
        let mut last = [0; 3];
        for step in 0.. {
            if !world.step() {
                break;
            }
            for tenant in 0..3 {
                most[tenant] = most[tenant].max(world.running(tenant));
                if world.waiting(tenant) > 0 {
                    last[tenant] = step;
                }
                let blocks = world.scheduler.tenant_stats(TenantId(1)).blocks;
                assert!(blocks <= 3, "{blocks} blocks");
            }
        }
        assert_eq!(most, [2, 1, 6], "{policy:?}");
        assert!(last[2] < last[0] && last[0] < last[1], "{policy:?}: {last:?}");
        assert!(world.ttfts.iter().all(|ttfts| ttfts.len() == 6), "all are served");
    }
}
