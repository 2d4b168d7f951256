//! The host's share of a decode step: scheduling, planning, launching and committing, over a
//! device that does nothing and takes no time.
//!
//! 256 sequences of about 1,000 tokens, two steps in flight, replayed as graphs and launched
//! kernel by kernel. The model has two layers; a replayed step does not depend on how many.

#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

#[path = "../tests/system/tiny.rs"]
mod tiny;

use std::{
    collections::VecDeque,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::Result;
use sconce_kernels::{
    Dtype, KernelError,
    cuda::{Cuda, DevicePointer, Driver, KernelParams, Launch, Matmul},
};
use sconce_runner::{LoadError, LoadOptions};
use sconce_scheduler::{
    CacheGroups, PrefixKey, Request, Scheduler, SchedulerConfig, SchedulingPolicy,
};
use sconce_types::{
    Executor, RequestId, SamplingParams, ScheduledBatch, StepResult, TokenId, TokenMasks,
};

const SEQS: usize = 256;
const PROMPT_LEN: usize = 960;
const MAX_TOKENS: u32 = 60;
const MAX_MODEL_LEN: usize = 1024;
const BLOCKS: usize = SEQS * MAX_MODEL_LEN / 16 + 64;
const ROUNDS: u64 = 60;
const PHASES: [&str; 5] = ["schedule", "launch", "sample", "wait", "commit"];

/// A device that takes everything and does nothing: what is read of it is zero.
struct NullDriver {
    next: AtomicU64,
}

impl Driver for NullDriver {
    type Memory = DevicePointer;
    type Graph = ();

    fn describe(&self) -> String {
        "a device that does nothing".to_owned()
    }

    fn multiprocessors(&self) -> usize {
        132
    }

    fn allocate(&self, bytes: usize, _: &str) -> Result<DevicePointer, KernelError> {
        let bytes = bytes.next_multiple_of(256) as u64;
        Ok(DevicePointer(self.next.fetch_add(bytes, Ordering::Relaxed)))
    }

    fn address(&self, memory: &DevicePointer) -> DevicePointer {
        *memory
    }

    fn upload(&self, _: &mut DevicePointer, _: usize, bytes: &[u8]) -> Result<(), KernelError> {
        std::hint::black_box(bytes);
        Ok(())
    }

    fn download(&self, _: &DevicePointer, bytes: &mut [u8]) -> Result<(), KernelError> {
        bytes.fill(0);
        Ok(())
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn end_step(&mut self, _: &DevicePointer, _: usize) -> Result<(), KernelError> {
        Ok(())
    }

    fn wait_step(&mut self, bytes: &mut [u8]) -> Result<Option<Duration>, KernelError> {
        bytes.fill(0);
        Ok(None)
    }

    fn finish(&mut self) -> Result<Option<Duration>, KernelError> {
        Ok(None)
    }

    fn launch<P: KernelParams>(&mut self, _: &Launch<'_>, params: &P) -> Result<(), KernelError> {
        std::hint::black_box(params);
        Ok(())
    }

    fn matmul(&mut self, product: &Matmul) -> Result<(), KernelError> {
        std::hint::black_box(product);
        Ok(())
    }

    fn begin_capture(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    fn end_capture(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    fn replay(&mut self, (): &()) -> Result<(), KernelError> {
        Ok(())
    }

    fn memory_info(&self) -> Result<(usize, usize), KernelError> {
        Ok((140 << 30, 140 << 30))
    }
}

/// The times of each phase of one round's full decode steps.
fn round(
    runner: &mut impl Executor,
    scheduler: &mut Scheduler,
    round: u64,
    times: &mut [Vec<f64>; 5],
) -> Result<()> {
    let params = SamplingParams {
        temperature: 0.0,
        max_tokens: MAX_TOKENS,
        eos_token_ids: Arc::from([]),
        ..SamplingParams::default()
    };
    let params = Arc::new(params);
    for seq in 0..SEQS as u64 {
        // No prompt begins as another does.
        let mut prompt: Vec<TokenId> = vec![7; PROMPT_LEN];
        prompt[0] = seq as TokenId;
        prompt[1] = round as TokenId;
        let id = RequestId(round * SEQS as u64 + seq);
        scheduler.add(Request::new(id, prompt, Arc::clone(&params)))?;
    }
    let mut flight: VecDeque<(ScheduledBatch, [f64; 3])> = VecDeque::new();
    let mut spare = vec![ScheduledBatch::default(), ScheduledBatch::default()];
    let (mut result, mut outputs) = (StepResult::default(), Vec::new());
    let micros = |started: Instant| started.elapsed().as_secs_f64() * 1e6;
    loop {
        if let Some(mut batch) = spare.pop() {
            let started = Instant::now();
            scheduler.schedule(&mut batch);
            let schedule = micros(started);
            if batch.is_empty() {
                spare.push(batch);
            } else {
                let started = Instant::now();
                runner.launch(&batch)?;
                let launch = micros(started);
                let started = Instant::now();
                runner.sample(&TokenMasks::default())?;
                flight.push_back((batch, [schedule, launch, micros(started)]));
                if !spare.is_empty() {
                    continue;
                }
            }
        }
        let Some((batch, [schedule, launch, sample])) = flight.pop_front() else {
            return Ok(());
        };
        let started = Instant::now();
        runner.wait(&mut result)?;
        let wait = micros(started);
        let started = Instant::now();
        outputs.clear();
        scheduler.commit(&batch, &mut result, &mut outputs);
        let commit = micros(started);
        // Steps in which nothing begins or ends.
        let is_decode = batch.sequences.len() == SEQS && outputs.len() == SEQS;
        if is_decode && outputs.iter().all(|output| output.finish.is_none()) {
            for (of_phase, time) in times.iter_mut().zip([schedule, launch, sample, wait, commit]) {
                of_phase.push(time);
            }
        }
        spare.push(batch);
    }
}

fn main() -> Result<()> {
    println!("{SEQS} sequences of {PROMPT_LEN} to {MAX_MODEL_LEN} tokens; medians, µs a step");
    for (name, enforce_eager) in [("graphs", false), ("eager", true)] {
        /// Two layers of K and V with one head of 64 numbers, of two bytes.
        const BLOCK_BYTES: usize = 2 * 2 * 16 * 64 * 2;
        let options = LoadOptions {
            dtype: Some(Dtype::Bf16),
            max_model_len: Some(MAX_MODEL_LEN),
            max_num_seqs: SEQS,
            max_num_batched_tokens: Some(8192),
            kv_cache_memory_bytes: Some((BLOCKS * BLOCK_BYTES) as u64),
            enforce_eager,
            ..LoadOptions::new(tiny::tiny())
        };
        let make = |dtype, limits| {
            let driver = NullDriver { next: AtomicU64::new(1 << 20) };
            Ok::<_, LoadError>(Cuda::new(driver, dtype, limits)?)
        };
        let loaded = sconce_runner::load_on(&options, 0, make, &mut |_, _, _| {})?;
        let mut runner = loaded.runner;
        let mut scheduler = Scheduler::new(SchedulerConfig {
            max_num_seqs: SEQS,
            max_num_batched_tokens: 8192,
            max_model_len: MAX_MODEL_LEN,
            num_blocks: BLOCKS,
            groups: CacheGroups::ONE,
            depth: runner.depth(),
            max_queued: SEQS,
            prefix_cache: Some(PrefixKey([3, 4])),
            policy: SchedulingPolicy::Fair,
        })?;
        let mut times: [Vec<f64>; 5] = Default::default();
        for number in 0..ROUNDS {
            round(&mut runner, &mut scheduler, number, &mut times)?;
        }
        let steps = times[0].len();
        anyhow::ensure!(steps > 100, "{steps} steps were measured");
        let totals: Vec<f64> =
            (0..steps).map(|step| times.iter().map(|of_phase| of_phase[step]).sum()).collect();
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let phases = PHASES.iter().zip(times);
        let phases: Vec<String> =
            phases.map(|(name, times)| format!("{name} {:.1}", median(times))).collect();
        println!("{name:<6} {:>6.1}  of {steps} steps ({})", median(totals), phases.join(", "));
    }
    Ok(())
}
