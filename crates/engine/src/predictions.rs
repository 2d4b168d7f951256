//! What the engine learns of steps before its first request, and how that bounds steps.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sconce_scheduler::{Request, Scheduler, SchedulerConfig, StepLimit, StepWork};
use sconce_types::{Executor, RequestId, SamplingParams, ScheduledBatch, StepResult, TokenMasks};

use crate::engine_loop::EngineLoop;

/// Steps of a warm-up at most, and the time after which it ends once enough are measured.
const WARM_UP_STEPS: u32 = 16;
const WARM_UP_TIME: Duration = Duration::from_millis(500);

impl<E: Executor> EngineLoop<E> {
    /// Bounds the prefill of later steps by what steps took until now.
    pub(crate) fn limit_steps(&mut self) {
        let limit = self.target_itl.map(|target| StepLimit::new(target, &self.model));
        self.scheduler.set_step_limit(limit);
    }

    /// Measures a few steps of prefill and decode. A scheduler of its own makes them, so
    /// nothing of them remains: no metric, no bill, no cached block. A step that fails ends
    /// it: requests will show what is wrong.
    pub(crate) fn warm_up(&mut self, config: SchedulerConfig) {
        let config = SchedulerConfig { prefix_cache: None, depth: 1, ..config };
        let Ok(mut scheduler) = Scheduler::new(config) else { return };
        let executor = self.executor.as_mut().expect("it was just built");
        let (mut batch, mut result) = (ScheduledBatch::default(), StepResult::default());
        let masks = TokenMasks::default();
        let mut outputs = Vec::new();
        // Of what steps took, by the device's clock where it has one.
        let mut spent = Duration::ZERO;
        for index in 0..WARM_UP_STEPS {
            // Prompts of several lengths beside several decodes tell their costs apart.
            let prompt_len = match index {
                0 | 5 => 16,
                2 => 64,
                _ => 0,
            };
            let max_tokens =
                WARM_UP_STEPS.min(u32::try_from(config.max_model_len / 2).unwrap_or(1));
            let prompt_len = prompt_len.min(config.max_model_len - max_tokens as usize);
            if prompt_len > 0 {
                let params = SamplingParams { max_tokens, ..SamplingParams::default() };
                let id = RequestId(u64::from(index));
                // A prompt that does not fit is left out.
                let _ = scheduler.add(Request::new(id, vec![0; prompt_len], Arc::new(params)));
            }
            scheduler.schedule(&mut batch);
            if batch.is_empty() {
                break;
            }
            let step_started = Instant::now();
            let outcome = executor
                .launch(&batch)
                .and_then(|()| executor.sample(&masks))
                .and_then(|()| executor.wait(&mut result));
            if let Err(error) = outcome {
                tracing::warn!("a step of the warm-up failed: {error}");
                break;
            }
            let step = result.device_time.unwrap_or_else(|| step_started.elapsed());
            spent += step;
            // The first step of all touches memory for the first time.
            if index > 0 || step > WARM_UP_TIME {
                self.model.observe(StepWork::of(&batch), step.as_secs_f64());
            }
            scheduler.commit(&batch, &mut result, &mut outputs);
            let is_enough = self.model.is_known() && spent > WARM_UP_TIME;
            if is_enough {
                break;
            }
        }
    }
}
