//! Steps of a full scheduler with a queue.

use std::sync::Arc;

use sconce_scheduler::{
    CacheGroups, Output, Request, Scheduler, SchedulerConfig, SchedulingPolicy,
};
use sconce_types::{
    RequestId, Sample, SampleOutcome, SamplingParams, ScheduledBatch, StepResult, TokenId,
};

use crate::counted;

const RUNNING: usize = 256;
const QUEUED: u64 = 512;
const PROMPT_LEN: usize = 100;
const TOKEN: TokenId = 7;
const EOS: TokenId = 2;
/// As many as a block has tokens: every sequence takes one block meanwhile.
const STEPS: usize = 16;

/// 256 sequences decode, none ends, others wait.
pub(crate) fn decode() {
    steps(0);
}

/// In each step eight end, and eight that waited take their slots.
pub(crate) fn turnover() {
    steps(8);
}

fn steps(ending: usize) {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_num_seqs: RUNNING,
        max_num_batched_tokens: 2048,
        max_model_len: 512,
        num_blocks: RUNNING * 16,
        max_queued: RUNNING + QUEUED as usize,
        groups: CacheGroups::ONE,
        depth: 1,
        prefix_cache: None,
        policy: SchedulingPolicy::Fair,
    })
    .expect("the limits agree");
    let params = Arc::new(SamplingParams {
        max_tokens: 256,
        eos_token_ids: Arc::from([EOS]),
        ..SamplingParams::default()
    });
    for id in 0..RUNNING as u64 + QUEUED {
        let prompt = vec![TOKEN; PROMPT_LEN];
        let request = Request::new(RequestId(id), prompt, Arc::clone(&params));
        scheduler.add(request).expect("it is taken");
    }
    let mut steps = Steps {
        scheduler,
        batch: ScheduledBatch::default(),
        result: StepResult::default(),
        outputs: Vec::new(),
    };
    // Until all slots are taken, and every buffer has the size it needs.
    while steps.scheduler.stats().running < RUNNING {
        steps.step(0);
    }
    for _ in 0..STEPS {
        steps.step(ending);
    }
    counted(|| {
        for _ in 0..STEPS {
            steps.step(ending);
        }
    });
    assert!(steps.scheduler.stats().waiting > 0, "somebody waits still");
}

struct Steps {
    scheduler: Scheduler,
    batch: ScheduledBatch,
    result: StepResult,
    outputs: Vec<Output>,
}

impl Steps {
    /// Schedules and commits one step; the `ending` oldest sequences end.
    fn step(&mut self, ending: usize) {
        let Self { scheduler, batch, result, outputs } = self;
        scheduler.schedule(batch);
        result.clear(batch.step);
        for (index, sequence) in batch.sequences.iter().enumerate() {
            match sequence.sample {
                Sample::Nothing => result.push(SampleOutcome::Nothing),
                Sample::Token { .. } if index < ending => result.push_token(EOS),
                Sample::Token { .. } => result.push_token(TOKEN),
            }
        }
        outputs.clear();
        scheduler.commit(batch, result, outputs);
        let ended = outputs.iter().filter(|output| output.finish.is_some()).count();
        assert_eq!(ended, ending, "as many end as should");
    }
}
