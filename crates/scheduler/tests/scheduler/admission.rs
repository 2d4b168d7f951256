//! Which requests are taken, by a load that was published and what came since.

use std::{sync::Arc, time::Duration};

use sconce_scheduler::{
    Admission, Ask, CacheGroups, Load, Refused, Request, Scheduler, SchedulerConfig,
    SchedulingPolicy, Shortage, StepModel, StepWork,
};
use sconce_types::{RequestId, SamplingParams, ScheduledBatch, Tenant, TenantId};

const LIMITS: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 64,
    max_num_batched_tokens: 512,
    max_model_len: 4096,
    num_blocks: 4096,
    max_queued: 1000,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};

/// Steps of 100 ms, and 10 ms more for each decode and each ten prompt tokens.
fn model() -> StepModel {
    let mut model = StepModel::new(0.1, 1e-3, 1e-2, 0.0);
    for index in 0..50 {
        let (prefill, decode) = match index % 2 {
            0 => (f64::from(index % 7) * 20.0, 0.0),
            _ => (0.0, f64::from(1 + index % 5)),
        };
        let work = StepWork { prefill, decode, attended: 0.0 };
        model.observe(work, 0.1 + 1e-3 * prefill + 1e-2 * decode);
    }
    model
}

struct World {
    scheduler: Scheduler,
    admission: Admission,
    next_id: u64,
}

impl World {
    fn new(tenants: &[Tenant], max_queue_wait: f64) -> Self {
        let mut scheduler = Scheduler::new(LIMITS).expect("the limits are valid");
        scheduler.set_tenants(tenants);
        let admission = Admission::new(&scheduler, tenants, 1000, max_queue_wait);
        let mut world = Self { scheduler, admission, next_id: 0 };
        world.publish(0, 0.0);
        world
    }

    fn publish(&mut self, given: usize, now: f64) {
        let mut load = Load::new(&self.scheduler);
        self.admission.publish(&self.scheduler, &mut load, &model(), given, now, 0.0);
    }

    fn ask(&mut self, tenant: u32, max_tokens: usize, timeout: Option<f64>) -> Result<(), Refused> {
        self.next_id += 1;
        let (id, tenant) = (RequestId(self.next_id), TenantId(tenant));
        let ask = Ask { id, tenant, prompt_len: 50, max_tokens, timeout };
        self.admission.take(&ask, false, 1.0).map(|_| ())
    }

    /// How many are taken one after the other, and why no more.
    fn fill(&mut self, tenant: u32, max_tokens: usize, timeout: Option<f64>) -> (usize, Shortage) {
        let mut taken = 0;
        loop {
            match self.ask(tenant, max_tokens, timeout) {
                Ok(()) => taken += 1,
                Err(refused) => return (taken, refused.shortage),
            }
        }
    }
}

#[test]
fn what_cannot_end_in_time_alone_is_never_taken() {
    let mut world = World::new(&[Tenant::sole()], f64::INFINITY);
    for _ in 0..40 {
        // 64 steps of 110 ms.
        let refused = world.ask(0, 64, Some(3.0)).expect_err("it takes 7 s");
        let Shortage::End { expected, limit } = refused.shortage else { panic!("{refused:?}") };
        assert!((7.0..9.0).contains(&expected) && limit == 3.0, "{expected}");
        assert!(refused.retry_after >= 4.0, "{refused:?}");
    }
    assert_eq!(world.ask(0, 16, Some(3.0)), Ok(()));
}

#[test]
fn an_idle_engine_tries_what_old_measurements_nearly_forbid() {
    let world = World::new(&[Tenant::sole()], f64::INFINITY);
    let (id, tenant) = (RequestId(1), TenantId(0));
    // 64 steps of 110 ms.
    let within = |timeout, now| {
        let timeout = Some(timeout);
        let ask = Ask { id, tenant, prompt_len: 50, max_tokens: 64, timeout };
        world.admission.check(&ask, true, now).is_ok()
    };
    assert!(within(9.0, 1.0) && !within(5.0, 1.0), "measured a second ago");
    assert!(within(5.0, 60.0) && !within(3.0, 60.0), "measured a minute ago");
    assert!(within(3.0, 300.0) && !within(0.1, 300.0), "measured five minutes ago");
}

#[test]
fn a_burst_is_taken_as_far_as_all_of_it_ends_in_time() {
    let mut world = World::new(&[Tenant::sole()], f64::INFINITY);
    let (taken, shortage) = world.fill(0, 64, Some(20.0));
    assert!(matches!(shortage, Shortage::End { .. } | Shortage::Promised), "{shortage:?}");
    // 64 steps of 100 ms and 10 ms for each take 20 s where 21 run.
    assert!((12..=20).contains(&taken), "{taken} were taken");
    // What the scheduler is given counts there instead.
    for id in 1..=taken as u64 {
        let params = Arc::new(SamplingParams { max_tokens: 64, ..SamplingParams::default() });
        let request = Request::new(RequestId(id), vec![0; 50], params);
        world.scheduler.add(request).expect("it is taken");
    }
    world.publish(taken, 1.0);
    assert_eq!(world.fill(0, 64, Some(20.0)).0, 0);
    for id in 1..=taken as u64 {
        assert!(world.scheduler.cancel(RequestId(id)));
        world.admission.leave(TenantId(0));
    }
    world.publish(0, 1.0);
    assert_eq!(world.fill(0, 64, Some(20.0)).0, taken, "all promises are void");
}

#[test]
fn requests_in_no_hurry_do_not_make_others_late() {
    let mut world = World::new(&[Tenant::sole()], f64::INFINITY);
    assert_eq!(world.ask(0, 64, Some(12.0)), Ok(()));
    let (taken, shortage) = world.fill(0, 64, None);
    assert_eq!(shortage, Shortage::Promised);
    assert!((1..=8).contains(&taken), "with {taken} more rows the first is late");
    let mut world = World::new(&[Tenant::sole()], f64::INFINITY);
    assert_eq!(world.fill(0, 64, None).1, Shortage::Places, "nothing was promised");
}

#[test]
fn a_tenant_below_its_share_is_not_refused_for_anothers_promises() {
    let tenant = |id| Tenant { id: TenantId(id), ..Tenant::sole() };
    let mut world = World::new(&[tenant(0), tenant(1)], f64::INFINITY);
    let (taken, _) = world.fill(0, 64, Some(20.0));
    assert!(taken > 10, "{taken}");
    assert_eq!(world.fill(0, 64, None).1, Shortage::Promised);
    assert_eq!(world.ask(1, 64, None), Ok(()), "it has nothing here yet");
}

#[test]
fn targets_of_pace_are_promises_too() {
    let paced = Tenant { tpot_target: Some(Duration::from_millis(150)), ..Tenant::sole() };
    let mut world = World::new(&[paced], f64::INFINITY);
    let (taken, shortage) = world.fill(0, 64, None);
    assert!(matches!(shortage, Shortage::Pace { .. }), "{shortage:?}");
    assert!((3..=5).contains(&taken), "5 rows take 150 ms, {taken} were taken");
}

#[test]
fn the_queue_is_as_long_as_a_request_may_wait() {
    for longest in [2.0, 20.0] {
        let mut world = World::new(&[Tenant::sole()], longest);
        let (taken, shortage) = world.fill(0, 64, None);
        let Shortage::Wait { expected, limit } = shortage else { panic!("{shortage:?}") };
        assert!(expected > limit && limit == longest && expected < 2.0 * longest, "{expected}");
        // A step computes ten prompts in 0.6 s; 64 slots are free.
        assert!(taken as f64 > 10.0 * longest.min(5.0), "{taken} taken for {longest} s");
    }
}

#[test]
fn output_lengths_that_were_seen_are_expected_again() {
    let mut world = World::new(&[Tenant::sole()], f64::INFINITY);
    assert!(world.ask(0, 2_000, Some(20.0)).is_err(), "nothing says that it will be shorter");
    let mut batch = ScheduledBatch::default();
    let mut outputs = Vec::new();
    for id in 100..160 {
        let params = SamplingParams {
            max_tokens: 2_000,
            eos_token_ids: [7].into(),
            ..SamplingParams::default()
        };
        let request = Request::new(RequestId(id), vec![0; 4], Arc::new(params));
        world.scheduler.add(request).expect("it is taken");
        world.scheduler.schedule(&mut batch);
        let mut result = sconce_types::StepResult { step: batch.step, ..Default::default() };
        result.push_token(7);
        world.scheduler.commit(&batch, &mut result, &mut outputs);
    }
    world.publish(0, 1.0);
    assert_eq!(world.ask(0, 2_000, Some(20.0)), Ok(()), "answers end after a few tokens");
}

#[test]
fn what_is_refused_holds_no_place_and_nothing_of_the_minute() {
    let limited = Tenant { tokens_per_minute: Some(200), ..Tenant::sole() };
    let mut world = World::new(std::slice::from_ref(&limited), f64::INFINITY);
    let mut shortage = |max_tokens, timeout| {
        let refused = world.ask(0, max_tokens, timeout).expect_err("it is refused");
        (refused.shortage, world.admission.load().unfinished())
    };
    let tokens_per_minute = 200;
    for _ in 0..1_001 {
        assert_eq!(shortage(151, None), (Shortage::ExceedsMinute { tokens_per_minute }, 0));
        assert!(matches!(shortage(150, Some(0.01)), (Shortage::FirstToken { .. }, 0)));
    }
    // A thousand places, and the whole minute.
    assert_eq!(world.ask(0, 150, None), Ok(()));
    let refused = world.ask(0, 1, None).expect_err("nothing is left");
    assert_eq!(refused.shortage, Shortage::Minute { tokens_per_minute });
    assert_eq!(refused.retry_after, 61.0, "taken in the second 1, asked in it");
    // Other limits hold at once, for what was taken before them too.
    let raised = Tenant { tokens_per_minute: Some(260), ..limited.clone() };
    world.admission.set_tenants(&[raised]);
    assert_eq!(world.ask(0, 10, None), Ok(()));
    world.admission.set_tenants(&[limited]);
    assert!(world.ask(0, 1, None).is_err());
    world.admission.set_tenants(&[Tenant::sole()]);
    assert_eq!(world.ask(0, 2_000, None), Ok(()));
    // A tenant that was never named has no limit, and takes no memory.
    assert_eq!(world.admission.minute_wait(TenantId(u32::MAX), 1_000, 1.0), None);
}

#[test]
fn what_is_withdrawn_leaves_the_load_as_it_was() {
    let mut world = World::new(&[Tenant::sole()], f64::INFINITY);
    assert_eq!(world.ask(0, 64, Some(20.0)), Ok(()));
    let load = |world: &World| format!("{:?}", world.admission.load());
    let before = load(&world);
    for _ in 0..3 {
        assert_eq!(world.ask(0, 64, Some(20.0)), Ok(()));
        assert_ne!(load(&world), before);
        world.admission.withdraw();
        assert_eq!(load(&world), before);
    }
    // The one before it still counts, until the scheduler has it.
    world.publish(0, 1.0);
    assert_eq!(load(&world), before);
    world.publish(1, 1.0);
    assert_eq!(world.admission.load().unfinished(), 0);
}
