//! What the scheduler does in situations small enough to be read: chunks,
//! the order of admission and preemption, stop conditions, failures.

use std::sync::Arc;

use sconce_scheduler::{
    CacheGroups, FakeExecutor, Fault, Output, PrefixKey, Refusal, Request, Scheduler,
    SchedulerConfig, SchedulingPolicy, StepLimit, StepModel, StepWork, Unfit,
};
use sconce_types::{
    End, Executor as _, Input, RequestId, Sample, SamplingParams, ScheduledBatch, StepResult,
    TenantId, TokenId, TokenMasks,
};

const VOCAB_SIZE: u32 = 50;
const LIMITS: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 4,
    max_num_batched_tokens: 16,
    max_model_len: 128,
    num_blocks: 64,
    max_queued: 8,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};

struct World {
    scheduler: Scheduler,
    executor: FakeExecutor,
    batch: ScheduledBatch,
    outputs: Vec<Output>,
}

impl World {
    fn new(limits: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(limits).expect("the limits are valid"),
            executor: FakeExecutor::new(VOCAB_SIZE, limits.num_blocks, limits.max_num_seqs),
            batch: ScheduledBatch::default(),
            outputs: Vec::new(),
        }
    }

    fn add(&mut self, id: u64, prompt_len: u32, max_tokens: u32) {
        let params = SamplingParams { max_tokens, ..SamplingParams::default() };
        self.scheduler.add(request(id, prompt_len, params)).expect("it is taken");
    }

    /// Schedules a step: each row's request and number of input tokens.
    fn schedule(&mut self) -> Vec<(u64, usize)> {
        self.scheduler.schedule(&mut self.batch);
        self.scheduler.check_invariants();
        self.batch.sequences.iter().map(|s| (s.request.0, s.input.len())).collect()
    }

    fn compute(&mut self) {
        let mut result = StepResult::default();
        self.executor.launch(&self.batch).expect("no fault is injected");
        self.executor.sample(&TokenMasks::default()).expect("it was launched");
        self.executor.wait(&mut result).expect("it was launched");
        self.scheduler.commit(&self.batch, &mut result, &mut self.outputs);
        self.scheduler.check_invariants();
    }

    fn step(&mut self) -> Vec<(u64, usize)> {
        let rows = self.schedule();
        self.compute();
        rows
    }

    fn run(&mut self) {
        for _ in 0..1_000 {
            if self.schedule().is_empty() {
                return;
            }
            self.compute();
        }
        panic!("it does not end");
    }

    fn tokens(&self, id: u64) -> Vec<TokenId> {
        self.outputs.iter().filter(|o| o.request.0 == id).filter_map(|o| o.token).collect()
    }

    fn ended(&self) -> Vec<u64> {
        self.outputs.iter().filter(|o| o.finish.is_some()).map(|o| o.request.0).collect()
    }

    fn slots(&self) -> Vec<(u64, u32)> {
        self.batch.admitted.iter().map(|a| (a.request.0, a.slot.0)).collect()
    }
}

fn request(id: u64, prompt_len: u32, params: SamplingParams) -> Request {
    let prompt = (0..prompt_len).map(|i| (i * 7 + prompt_len) % VOCAB_SIZE).collect();
    Request::new(RequestId(id), prompt, Arc::new(params))
}

fn solo(prompt_len: u32, max_tokens: u32) -> Vec<TokenId> {
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    let request = request(0, prompt_len, params);
    FakeExecutor::expected_tokens(&request.prompt, &request.params, VOCAB_SIZE)
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_a_decode() {
    let mut world = World::new(LIMITS);
    world.add(1, 3, 9);
    assert_eq!(world.step(), [(1, 3)]);
    world.add(2, 40, 2);
    assert_eq!(world.step(), [(1, 1), (2, 15)]);
    assert_eq!(world.batch.sequences[0].input, Input::LastSampled);
    assert_eq!(world.batch.sequences[1].sample, Sample::Nothing);
    assert_eq!(world.step(), [(1, 1), (2, 15)]);
    assert_eq!(world.step(), [(1, 1), (2, 10)]);
    assert_eq!(
        world.batch.sequences[1].sample,
        Sample::Token { output_index: 0, constrained: false }
    );
    assert_eq!(world.step(), [(1, 1), (2, 1)]);
    assert_eq!(world.batch.sequences[1].input, Input::LastSampled);
    assert_eq!(
        world.batch.sequences[1].sample,
        Sample::Token { output_index: 1, constrained: false }
    );
}

/// The longest time between two tokens of 8 streams while a prompt of 4,000 tokens is
/// computed, on a device of 0.1 s a step and 20 ms a prompt token; and the prompt's TTFT.
fn longest_gap(target: Option<f64>) -> (f64, f64) {
    let limits = SchedulerConfig {
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        max_model_len: 8192,
        num_blocks: 1024,
        ..LIMITS
    };
    let mut world = World::new(limits);
    let model = StepModel::new(0.1, 0.02, 0.01, 1e-7);
    world.scheduler.set_step_limit(target.map(|target| StepLimit::new(target, &model)));
    (0..8).for_each(|id| world.add(id, 4, 2_000));
    world.step();
    world.add(9, 4_000, 1);
    let (mut longest, mut ttft) = (0.0_f64, 0.0);
    while world.ended().is_empty() {
        assert!(world.schedule().len() >= 8, "every stream goes on in every step");
        let seconds = model.predict(StepWork::of(&world.batch));
        (longest, ttft) = (longest.max(seconds), ttft + seconds);
        world.compute();
    }
    assert_eq!((world.ended(), world.tokens(9)), (vec![9], solo(4_000, 1)), "the same tokens");
    (longest, ttft)
}

#[test]
fn a_long_prompt_leaves_streams_their_pace() {
    let (longest, ttft) = longest_gap(None);
    assert!(longest > 9.0, "a chunk of 504 tokens takes {longest} s");
    let (paced, later) = longest_gap(Some(1.0));
    assert!(paced <= 1.0 + 1e-9, "{paced} s");
    assert!(later < 1.3 * ttft, "a first token after {later} s, without a limit {ttft} s");
    // Below what decodes alone take, prefill may make a step twice as long.
    let (paced, later) = longest_gap(Some(1e-3));
    assert!(paced <= 0.55, "16 tokens beside decodes take {paced} s");
    assert!(later < 2.0 * ttft, "a first token after {later} s, without a limit {ttft} s");
}

#[test]
fn a_prompt_alone_has_the_whole_budget() {
    let limits = SchedulerConfig { max_num_batched_tokens: 64, ..LIMITS };
    for attended in [0.0, 1e-3] {
        let mut world = World::new(limits);
        let model = StepModel::new(0.1, 1.0, 0.01, attended);
        world.scheduler.set_step_limit(Some(StepLimit::new(0.2, &model)));
        // What a step takes goes by the same budget.
        let expected = world.scheduler.predict(&model, TenantId(0), 60).ttft;
        let step = StepWork { prefill: 60.0, attended: 1800.0, ..StepWork::default() };
        let alone = model.predict(step);
        assert!((expected / alone - 1.0).abs() < 0.1, "{expected} s, a step takes {alone} s");
        world.add(1, 100, 2);
        assert_eq!(world.step(), [(1, 64)]);
        assert_eq!(world.step(), [(1, 36)]);
    }
}

#[test]
fn who_comes_first_is_admitted_first_even_if_another_would_fit() {
    let limits = SchedulerConfig { max_num_batched_tokens: 64, num_blocks: 3, ..LIMITS };
    let mut world = World::new(limits);
    world.add(1, 17, 8);
    world.add(2, 33, 1);
    world.add(3, 1, 1);
    // One block is left: too few for the second, enough for the third.
    assert_eq!(world.step(), [(1, 17)]);
    assert_eq!(world.step(), [(1, 1)]);
    world.run();
    assert_eq!(world.ended(), [1, 2, 3]);
}

#[test]
fn a_prefill_begins_once_there_is_room_for_all_of_it() {
    let limits = SchedulerConfig { max_num_batched_tokens: 32, num_blocks: 4, ..LIMITS };
    let mut world = World::new(limits);
    world.add(1, 17, 8);
    world.add(2, 48, 1);
    // Two blocks are left: enough for the second's first chunk of 15, not for its 48 tokens.
    assert_eq!(world.step(), [(1, 17)]);
    world.run();
    assert_eq!(world.ended(), [1, 2]);
    assert_eq!(world.scheduler.stats().preemptions, 0);
}

#[test]
fn the_lowest_free_seat_is_taken() {
    let mut world = World::new(SchedulerConfig { max_num_seqs: 3, ..LIMITS });
    (1..=4).for_each(|id| world.add(id, 2, 9));
    assert_eq!(world.step().len(), 3);
    assert_eq!(world.slots(), [(1, 0), (2, 1), (3, 2)]);
    assert!(world.scheduler.cancel(RequestId(2)));
    world.scheduler.check_invariants();
    assert_eq!(world.step(), [(1, 1), (3, 1), (4, 2)]);
    assert_eq!(world.slots(), [(4, 1)]);
}

#[test]
fn the_newest_is_preempted_and_comes_back_before_whoever_waits() {
    let limits = SchedulerConfig { max_num_batched_tokens: 32, num_blocks: 3, ..LIMITS };
    let mut world = World::new(limits);
    world.add(1, 9, 16);
    world.add(2, 5, 20);
    world.add(3, 4, 20);
    assert_eq!(world.step(), [(1, 9), (2, 5), (3, 4)]);
    world.add(4, 1, 1);
    // Until the first needs a second block, for its 17th token.
    while world.scheduler.stats().preemptions == 0 {
        assert_eq!(world.scheduler.stats().waiting, 1, "there is no block for the fourth");
        world.schedule();
        if world.scheduler.stats().preemptions == 0 {
            world.compute();
        }
    }
    let rows: Vec<_> = world.batch.sequences.iter().map(|s| s.request.0).collect();
    assert_eq!(rows, [1, 2], "the third gave way");
    assert_eq!(world.slots(), [], "a step that preempted admits nobody");
    world.compute();
    let mut admitted = Vec::new();
    while !world.schedule().is_empty() {
        admitted.extend(world.slots().iter().map(|&(id, _)| id));
        world.compute();
    }
    // The second gave way too; the third did once more while the second ran.
    assert_eq!(admitted, [2, 3, 3, 4]);
    for (id, prompt_len, max_tokens) in [(1, 9, 16), (2, 5, 20), (3, 4, 20), (4, 1, 1)] {
        assert_eq!(world.tokens(id), solo(prompt_len, max_tokens), "request {id}");
    }
}

#[test]
fn a_preempted_sequence_keeps_its_tokens_and_counts_on() {
    let mut world = World::new(SchedulerConfig { num_blocks: 2, ..LIMITS });
    world.add(1, 15, 9);
    world.add(2, 1, 8);
    assert_eq!(world.step(), [(1, 15), (2, 1)]);
    assert_eq!(world.step(), [(1, 1), (2, 1)]);
    assert_eq!(world.step(), [(1, 1)], "the second lost its block to the first");
    let before = world.tokens(2);
    assert_eq!(before.len(), 2);
    while !world.schedule().iter().any(|&(id, _)| id == 2) {
        world.compute();
    }
    assert_eq!(world.ended(), [1]);
    let admitted = &world.batch.admitted[0];
    assert_eq!((admitted.prompt_len, &admitted.token_ids[1..]), (1, &before[..]));
    let sequence = &world.batch.sequences[0];
    assert_eq!(sequence.input, Input::Tokens(0..3));
    assert_eq!(sequence.sample, Sample::Token { output_index: 2, constrained: false });
    world.compute();
    world.run();
    assert_eq!(world.tokens(2), solo(1, 8));
}

#[test]
fn prompt_logprobs_are_reported_once_though_the_prompt_is_computed_twice() {
    let mut world = World::new(SchedulerConfig { num_blocks: 4, ..LIMITS });
    world.add(1, 15, 20);
    let params =
        SamplingParams { max_tokens: 1, prompt_logprobs: Some(0), ..SamplingParams::default() };
    let scored = request(2, 48, params);
    world.scheduler.add(scored.clone()).expect("it is taken");
    world.run();
    assert!(world.scheduler.stats().preemptions > 0, "the second had to give way");
    let mut reported = Vec::new();
    for output in world.outputs.iter().filter(|o| o.request == scored.id) {
        if !output.prompt_logprobs.is_empty() {
            assert_eq!(output.prompt_logprobs_start, reported.len() + 1);
        }
        reported.extend(output.prompt_logprobs.iter().map(|l| l.token));
    }
    assert_eq!(reported, scored.prompt[1..]);
}

#[test]
fn end_and_stop_tokens_end_a_request_once_min_tokens_exist() {
    let eos = End::Stop { token: None };
    let stop = End::Stop { token: Some(8) };
    for (min_tokens, sampled, finish) in [
        (0, &[9][..], eos),
        (0, &[5, 8], stop),
        (2, &[9, 8, 9], eos),
        (0, &[5, 5, 5, 5], End::Length),
        (4, &[9, 9, 9, 9], End::Length),
    ] {
        let mut world = World::new(LIMITS);
        let params = SamplingParams {
            max_tokens: 4,
            min_tokens,
            eos_token_ids: [9].into(),
            stop_token_ids: vec![8],
            ..SamplingParams::default()
        };
        world.scheduler.add(request(1, 3, params)).expect("it is taken");
        for &token in sampled {
            assert_eq!(world.ended(), [1; 0], "{sampled:?} end too soon");
            assert_eq!(world.schedule().len(), 1);
            let mut result = StepResult { step: world.batch.step, ..StepResult::default() };
            result.push_token(token);
            world.scheduler.commit(&world.batch, &mut result, &mut world.outputs);
        }
        assert_eq!(world.tokens(1), sampled, "the last token is reported too");
        assert_eq!(world.outputs.last().and_then(|o| o.finish), Some(finish));
        assert_eq!(world.scheduler.stats().used_blocks, 0);
    }
}

#[test]
fn a_failed_step_ends_its_own_sequences_and_no_others() {
    let mut world = World::new(SchedulerConfig { max_num_batched_tokens: 2, ..LIMITS });
    (1..=3).for_each(|id| world.add(id, 1, 5));
    assert_eq!(world.step(), [(1, 1), (2, 1)]);
    assert_eq!(world.schedule(), [(1, 1), (2, 1)], "no budget is left for the third");
    world.executor.inject(Fault::FailStep(world.batch.step));
    world.executor.launch(&world.batch).expect_err("the fault was injected");
    let mut ended = Vec::new();
    world.scheduler.fail_batch(&world.batch, &mut ended);
    world.scheduler.check_invariants();
    assert_eq!(ended, [RequestId(1), RequestId(2)]);
    world.run();
    assert_eq!(world.tokens(3), solo(1, 5));
    assert_eq!(world.scheduler.stats().used_blocks, 0);
}

#[test]
fn an_id_may_come_again_once_its_request_was_cancelled() {
    let mut world = World::new(LIMITS);
    (1..=3).for_each(|id| world.add(id, 2, 3));
    assert!(world.scheduler.cancel(RequestId(1)));
    world.add(1, 2, 3);
    // The dead entries are swept out while the new request waits.
    assert!(world.scheduler.cancel(RequestId(2)));
    assert!(world.scheduler.cancel(RequestId(3)));
    world.scheduler.check_invariants();
    world.run();
    assert_eq!(world.ended(), [1]);
}

#[test]
fn what_can_never_finish_is_refused() {
    let mut world = World::new(SchedulerConfig { num_blocks: 4, max_queued: 1, ..LIMITS });
    let mut add = |id, prompt_len, max_tokens| {
        let params = SamplingParams { max_tokens, ..SamplingParams::default() };
        world.scheduler.add(request(id, prompt_len, params))
    };
    assert_eq!(add(1, 0, 1), Err(Unfit::EmptyPrompt.into()));
    assert_eq!(add(1, 1, 0), Err(Unfit::NoTokens.into()));
    let too_long = Unfit::TooLong { prompt_len: 1, max_tokens: 128, max_model_len: 128 };
    assert_eq!(add(1, 1, 128), Err(too_long.into()));
    assert_eq!(add(1, 1, 64), Err(Unfit::NeverFits { needed_blocks: 5, num_blocks: 4 }.into()));
    assert_eq!(add(1, 1, 63), Ok(()));
    assert_eq!(add(2, 1, 1), Err(Refusal::QueueFull { max_queued: 1 }));
    world.schedule();
    let again = world.scheduler.add(request(1, 1, SamplingParams::default()));
    assert_eq!(again, Err(Refusal::DuplicateId(1)));
}

#[test]
fn limits_that_nothing_could_run_under_are_named() {
    for (field, limits) in [
        ("max_num_seqs", SchedulerConfig { max_num_seqs: 0, ..LIMITS }),
        ("max_num_batched_tokens", SchedulerConfig { max_num_batched_tokens: 0, ..LIMITS }),
        ("max_model_len", SchedulerConfig { max_model_len: 1, ..LIMITS }),
        ("num_blocks", SchedulerConfig { num_blocks: 1 << 32, ..LIMITS }),
        ("max_queued", SchedulerConfig { max_queued: 0, ..LIMITS }),
    ] {
        assert_eq!(Scheduler::new(limits).expect_err("it is refused").field, field);
    }
}

const CACHING: SchedulerConfig =
    SchedulerConfig { prefix_cache: Some(PrefixKey([1, 2])), max_num_batched_tokens: 64, ..LIMITS };

fn salted(id: u64, prompt_len: u32, cache_salt: u64) -> Request {
    let params = SamplingParams { max_tokens: 20, ..SamplingParams::default() };
    // Every prompt begins like a longer one.
    let prompt = (0..prompt_len).map(|i| i * 7 % VOCAB_SIZE).collect();
    Request { cache_salt, ..Request::new(RequestId(id), prompt, Arc::new(params)) }
}

#[test]
fn a_prompt_that_begins_like_another_computes_what_is_new() {
    let mut world = World::new(CACHING);
    let expected = |len| {
        let Request { prompt, params, .. } = salted(0, len, 0);
        FakeExecutor::expected_tokens(&prompt, &params, VOCAB_SIZE)
    };
    world.scheduler.add(salted(1, 40, 0)).expect("taken");
    assert_eq!(world.step(), [(1, 40)]);
    // While the first runs: two full blocks of its prompt are known.
    world.scheduler.add(salted(2, 48, 0)).expect("taken");
    assert_eq!(world.step(), [(1, 1), (2, 16)]);
    world.run();
    // After both have ended; a block that would leave nothing to compute is not shared.
    world.scheduler.add(salted(3, 48, 0)).expect("taken");
    assert_eq!(world.step(), [(3, 16)]);
    world.run();
    for (id, len, cached) in [(1, 40, 0), (2, 48, 32), (3, 48, 32)] {
        assert_eq!(world.tokens(id), expected(len), "request {id}");
        let outputs = world.outputs.iter().filter(|output| output.request.0 == id);
        assert!(outputs.into_iter().all(|output| output.num_cached_tokens == cached));
    }
    let stats = world.scheduler.stats();
    assert_eq!((stats.prefix_cache_queries, stats.prefix_cache_hits), (136, 64));
    assert_eq!(stats.used_blocks, 0, "what is only cached is free");
}

#[test]
fn another_salt_a_reset_and_scored_prompts_share_nothing() {
    let mut world = World::new(CACHING);
    world.scheduler.add(salted(1, 40, 0)).expect("taken");
    world.run();
    world.scheduler.add(salted(2, 40, 9)).expect("taken");
    assert_eq!(world.step(), [(2, 40)], "another salt");
    world.run();
    let mut scored = salted(3, 40, 0);
    Arc::make_mut(&mut scored.params).prompt_logprobs = Some(0);
    world.scheduler.add(scored).expect("taken");
    assert_eq!(world.step(), [(3, 40)], "every position is to be scored");
    world.run();
    world.scheduler.reset_prefix_cache();
    world.scheduler.add(salted(4, 40, 0)).expect("taken");
    assert_eq!(world.step(), [(4, 40)], "nothing is left");
}

/// What a request computed before its logits were not finite may be why they were not.
#[test]
fn nothing_of_a_request_with_logits_that_are_not_finite_is_found_again() {
    let mut world = World::new(SchedulerConfig { max_num_batched_tokens: 32, ..CACHING });
    world.executor.inject(Fault::NonFinite(RequestId(1)));
    world.scheduler.add(salted(1, 40, 0)).expect("taken");
    // Two full blocks are known after a chunk that samples nothing.
    assert_eq!(world.step(), [(1, 32)]);
    world.scheduler.add(salted(2, 60, 0)).expect("taken");
    assert_eq!(world.step(), [(1, 8), (2, 24)], "the second shares them");
    let finish = world.outputs.last().and_then(|output| output.finish);
    assert_eq!(finish, Some(End::NonFiniteLogits));
    world.scheduler.add(salted(3, 40, 0)).expect("taken");
    world.run();
    let cached = |id| {
        let outputs = world.outputs.iter().find(|output| output.request.0 == id);
        outputs.map(|output| output.num_cached_tokens)
    };
    assert_eq!((cached(2), cached(3)), (Some(32), Some(0)));
}

#[test]
fn cached_blocks_give_way_to_what_runs() {
    let mut world = World::new(SchedulerConfig { num_blocks: 4, ..CACHING });
    world.scheduler.add(salted(1, 33, 0)).expect("taken");
    world.run();
    // Needs all the blocks there are.
    world.add(2, 60, 4);
    world.run();
    world.scheduler.add(salted(3, 33, 0)).expect("taken");
    assert_eq!(world.step(), [(3, 33)]);
    world.run();
    assert_eq!(world.ended(), [1, 2, 3]);
}

#[test]
fn a_lost_cache_is_not_read() {
    let mut world = World::new(CACHING);
    world.scheduler.add(salted(1, 40, 0)).expect("taken");
    world.step();
    world.schedule();
    let mut ended = Vec::new();
    world.scheduler.fail_running(&mut ended);
    assert_eq!(ended, [RequestId(1)]);
    world.scheduler.check_invariants();
    world.executor = FakeExecutor::new(VOCAB_SIZE, CACHING.num_blocks, CACHING.max_num_seqs);
    world.scheduler.add(salted(2, 40, 0)).expect("taken");
    assert_eq!(world.step(), [(2, 40)]);
}
