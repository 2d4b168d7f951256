//! What the scheduler schedules, to the last block: hashes of ten thousand batches, twenty
//! episodes of five hundred, under any limits, tenants, arrivals, cancellations, failed steps.
//! A change that is not meant to alter a schedule must leave them as they are.
//!
//! Numbers are drawn for each iteration anew, from its own seed, so what one draws shifts no
//! other; the batches are hashed by what they mean, not by their types.

use std::sync::Arc;

use sconce_scheduler::{
    FakeExecutor, Fault, Output, PrefixKey, Request, Scheduler, SchedulerConfig, SchedulingPolicy,
    StepLimit, StepModel,
};
use sconce_types::{
    Executor as _, Input, RequestId, Sample, SampledTokens, SamplingParams, ScheduledBatch, Tenant,
    TenantId, TokenId,
};

/// A hash for each episode.
const KEPT: [u64; EPISODES] = [
    0xcb96_98d9_8017_25c6,
    0x686a_43da_d729_87c5,
    0x85dc_a5b8_426c_812a,
    0x47fe_5b42_8e73_1a59,
    0x6f83_be03_d3c4_e1ae,
    0x898d_d128_9ed1_ed48,
    0x1880_3245_0632_d1d6,
    0xc1b2_f3cd_d73e_d88a,
    0x858b_11b6_64e4_b7fd,
    0xdf3b_a0f3_fb55_ed97,
    0xa047_869a_f8b0_0641,
    0x3189_0207_0823_663b,
    0x805e_2dfa_a9e0_e822,
    0xc828_5504_3eaa_e8da,
    0x0547_949e_b896_26d2,
    0x15b8_19e7_8e4d_486c,
    0x89c3_360b_2f87_55bd,
    0x12fc_f64a_2cd0_163c,
    0xb0d8_e02d_ae05_4ce1,
    0x61f6_ede3_ea4b_a438,
];
const EPISODES: usize = 20;
const BATCHES: usize = 500;
const VOCAB_SIZE: u32 = 40;

/// splitmix64 (Steele, Lea, Flood, 2014): the same numbers with every version of every crate.
struct Numbers(u64);

impl Numbers {
    fn of(seed: u64, iteration: u64) -> Self {
        let mut numbers = Self(seed << 32 | iteration);
        Self(numbers.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn from(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most - least + 1)
    }

    /// Whether something happens that does so in so many of a hundred cases.
    fn percent(&mut self, cases: usize) -> bool {
        self.below(100) < cases
    }

    fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

/// FNV-1a over numbers.
struct Hash(u64);

impl Hash {
    fn add(&mut self, number: u64) {
        for byte in number.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn add_list(&mut self, numbers: impl ExactSizeIterator<Item = u64>) {
        self.add(numbers.len() as u64);
        numbers.for_each(|number| self.add(number));
    }

    /// The border to the batch's types.
    fn add_batch(&mut self, batch: &ScheduledBatch) {
        self.add(batch.step);
        self.add(batch.num_tokens as u64);
        self.add(batch.admitted.len() as u64);
        for admitted in &batch.admitted {
            self.add(admitted.request.0);
            self.add(admitted.slot.index() as u64);
            self.add(admitted.token_ids.len() as u64);
            self.add(admitted.prompt_len as u64);
        }
        self.add(batch.sequences.len() as u64);
        for sequence in &batch.sequences {
            self.add(sequence.request.0);
            self.add(sequence.slot.index() as u64);
            match &sequence.input {
                Input::Tokens(range) => {
                    let tokens = &batch.token_ids[range.clone()];
                    self.add_list(tokens.iter().map(|&token| u64::from(token)));
                }
                Input::LastSampled => self.add(u64::MAX),
            }
            self.add(sequence.num_computed_tokens as u64);
            let table = &batch.block_tables[sequence.block_table.clone()];
            self.add_list(table.iter().map(|block| block.index() as u64));
            self.add(match sequence.sample {
                Sample::Nothing => u64::MAX,
                Sample::Token { output_index } => u64::from(output_index),
            });
        }
    }
}

/// How much happened of what a schedule depends on.
#[derive(Debug, Default)]
struct Counts {
    preemptions: u64,
    prefix_hits: u64,
    cancelled: usize,
    refused: usize,
    failed_steps: usize,
}

struct Episode {
    seed: u64,
    config: SchedulerConfig,
    scheduler: Scheduler,
    executor: FakeExecutor,
    num_tenants: usize,
    /// In order of arrival.
    live: Vec<RequestId>,
    /// Prompts that others may begin like, with their salts.
    seen: Vec<(u64, Vec<TokenId>)>,
    next_id: u64,
    /// Of a hundred iterations, those with an arrival, and those with a cancellation.
    rates: (usize, usize),
    hash: Hash,
    counts: Counts,
}

impl Episode {
    fn new(seed: u64) -> Self {
        let mut numbers = Numbers::of(seed, 0);
        let policies = [SchedulingPolicy::Fair, SchedulingPolicy::Fcfs, SchedulingPolicy::Priority];
        let config = SchedulerConfig {
            max_num_seqs: numbers.from(2, 12),
            max_num_batched_tokens: numbers.one_of(&[2, 7, 16, 33, 64]),
            max_model_len: numbers.from(20, 120),
            num_blocks: numbers.from(6, 20),
            max_queued: numbers.from(4, 20),
            prefix_cache: numbers.percent(70).then(|| PrefixKey([numbers.next(), numbers.next()])),
            policy: policies[seed as usize % 5 % 3],
        };
        let mut scheduler = Scheduler::new(config).expect("the limits are valid");
        scheduler.set_step_limit(numbers.percent(50).then(|| {
            let mut thousandths = |most| numbers.from(1, most) as f64 / 1000.0;
            let model =
                StepModel::new(thousandths(99), thousandths(99), thousandths(99), thousandths(1));
            StepLimit::new(thousandths(2000), &model)
        }));
        Self {
            seed,
            config,
            scheduler,
            executor: FakeExecutor::new(VOCAB_SIZE, config.num_blocks, config.max_num_seqs),
            num_tenants: numbers.from(1, 4),
            live: Vec::new(),
            seen: Vec::new(),
            next_id: 0,
            rates: (numbers.one_of(&[8, 30, 90]), numbers.one_of(&[0, 2, 15])),
            hash: Hash(0xcbf2_9ce4_8422_2325),
            counts: Counts::default(),
        }
    }

    /// New weights, minima and limits for all.
    fn set_tenants(&mut self, numbers: &mut Numbers) {
        let Self { num_tenants, config, .. } = *self;
        let tenants: Vec<_> = (0..num_tenants)
            .map(|index| Tenant {
                id: TenantId(index as u32),
                weight: numbers.from(1, 4) as u32,
                min_share: if numbers.percent(30) { 1.0 / num_tenants as f64 } else { 0.0 },
                max_running: numbers.percent(20).then(|| numbers.from(1, 4)),
                max_queued: numbers.percent(20).then(|| numbers.from(1, 6)),
                max_kv_blocks: numbers.percent(20).then(|| numbers.from(1, config.num_blocks)),
                ..Tenant::sole()
            })
            .collect();
        self.scheduler.set_tenants(&tenants);
    }

    fn arrive(&mut self, numbers: &mut Numbers) {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let len = 1 + numbers.below(self.config.max_model_len - 1);
        let mut cache_salt = numbers.below(2) as u64;
        let mut prompt = Vec::new();
        if !self.seen.is_empty() && numbers.percent(70) {
            let (salt, seen) = &self.seen[numbers.below(self.seen.len())];
            prompt.extend(seen.iter().take(numbers.from(0, len)));
            cache_salt = if numbers.percent(90) { *salt } else { cache_salt };
        }
        prompt.resize_with(len, || numbers.below(VOCAB_SIZE as usize) as TokenId);
        let seen = (cache_salt, prompt.clone());
        if self.seen.len() < 8 {
            self.seen.push(seen);
        } else {
            self.seen[numbers.below(8)] = seen;
        }
        let max_tokens = numbers.from(1, 40) as u32;
        let params = SamplingParams {
            max_tokens,
            min_tokens: numbers.from(0, 4).min(max_tokens as usize) as u32,
            seed: numbers.next(),
            stop_token_ids: if numbers.percent(30) { vec![3, 5] } else { Vec::new() },
            eos_token_ids: if numbers.percent(70) { [1].into() } else { [].into() },
            logprobs: numbers.percent(20).then_some(2),
            prompt_logprobs: numbers.percent(20).then_some(0),
            ..SamplingParams::default()
        };
        let request = Request {
            id,
            prompt,
            params: Arc::new(params),
            tenant: TenantId(numbers.below(self.num_tenants) as u32),
            priority: numbers.from(0, 2) as i32 - 1,
            cache_salt,
        };
        let is_bad = numbers.percent(2);
        if self.scheduler.add(request).is_err() {
            self.counts.refused += 1;
            return;
        }
        self.live.push(id);
        if is_bad {
            self.executor.inject(Fault::NonFinite(id));
        }
    }

    /// The border to the executor: computes a batch, or says that it failed.
    fn compute(&mut self, batch: &ScheduledBatch, sampled: &mut SampledTokens) -> bool {
        self.executor.launch(batch).and_then(|()| self.executor.wait(sampled)).is_ok()
    }

    /// Runs until there were so many batches.
    fn run(&mut self) {
        let (mut batch, mut sampled) = (ScheduledBatch::default(), SampledTokens::default());
        let (mut outputs, mut ended): (Vec<Output>, Vec<RequestId>) = (Vec::new(), Vec::new());
        let mut batches = 0;
        for iteration in 1.. {
            if batches == BATCHES {
                break;
            }
            let numbers = &mut Numbers::of(self.seed, iteration);
            if iteration % 100 == 1 {
                self.set_tenants(numbers);
            }
            if numbers.percent(self.rates.0) {
                self.arrive(numbers);
            }
            if numbers.percent(self.rates.1) && !self.live.is_empty() {
                let id = self.live.swap_remove(numbers.below(self.live.len()));
                assert!(self.scheduler.cancel(id), "a live request can be cancelled");
                self.counts.cancelled += 1;
            }
            self.scheduler.schedule(&mut batch);
            if batch.is_empty() {
                continue;
            }
            batches += 1;
            self.hash.add_batch(&batch);
            if numbers.percent(1) {
                self.executor.inject(Fault::FailStep(batch.step));
            }
            if self.compute(&batch, &mut sampled) {
                self.scheduler.commit(&batch, &sampled, &mut outputs);
                ended.extend(outputs.drain(..).filter(|o| o.finish.is_some()).map(|o| o.request));
            } else {
                self.scheduler.fail_batch(&batch, &mut ended);
                self.counts.failed_steps += 1;
            }
            ended.drain(..).for_each(|id| self.live.retain(|live| *live != id));
        }
        self.counts.preemptions = self.scheduler.stats().preemptions;
        self.counts.prefix_hits = self.scheduler.stats().prefix_cache_hits;
    }
}

#[test]
fn ten_thousand_batches_are_the_same_as_ever() {
    let mut all = Counts::default();
    let mut hashes = Vec::new();
    for seed in 0..EPISODES as u64 {
        let mut episode = Episode::new(seed);
        episode.run();
        hashes.push(episode.hash.0);
        all.preemptions += episode.counts.preemptions;
        all.prefix_hits += episode.counts.prefix_hits;
        all.cancelled += episode.counts.cancelled;
        all.refused += episode.counts.refused;
        all.failed_steps += episode.counts.failed_steps;
    }
    let Counts { preemptions, prefix_hits, cancelled, refused, failed_steps } = all;
    assert!(
        preemptions > 100
            && prefix_hits > 500
            && cancelled > 100
            && refused > 100
            && failed_steps > 50,
        "{all:?}"
    );
    let differing: Vec<_> = (0..EPISODES).filter(|&i| hashes[i] != KEPT[i]).collect();
    assert!(differing.is_empty(), "episodes {differing:?} differ: {hashes:#018x?}");
}
