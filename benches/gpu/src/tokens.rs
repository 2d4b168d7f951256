//! Requests run by the scheduler over a model, without a server.

use std::{path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use sconce_kernels::cuda::Driver;
use sconce_scheduler::{Request, Scheduler, SchedulerConfig, SchedulingPolicy};
use sconce_types::{
    Executor, RequestId, SamplingParams, ScheduledBatch, StepResult, TokenId, TokenMasks,
};
use serde_json::json;

use crate::{model, report};

/// Flags of `tokens`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model's directory
    #[arg(long)]
    model: PathBuf,
    /// Prompts: a JSON list of lists of token ids
    #[arg(long)]
    prompts: PathBuf,
    /// Requests at once
    #[arg(long, default_value_t = 256)]
    max_num_seqs: usize,
    /// Tokens of each answer
    #[arg(long, default_value_t = 32)]
    max_tokens: u32,
}

/// What running requests gave.
pub(crate) struct Run {
    /// Each request's tokens, in the order in which the requests were given.
    pub(crate) tokens: Vec<Vec<TokenId>>,
    /// In their order.
    pub(crate) steps: Vec<Step>,
}

/// A step that was run.
pub(crate) struct Step {
    /// From its launch until its tokens are known.
    pub(crate) seconds: f64,
    /// What the device took of that, where it measures it.
    pub(crate) device_seconds: Option<f64>,
    /// Sequences.
    pub(crate) sequences: usize,
    /// Tokens whose keys and values are read, of all sequences.
    pub(crate) context: usize,
    /// Tokens that are computed.
    pub(crate) tokens: usize,
}

/// Prints each prompt's greedy tokens.
pub(crate) fn run<D: Driver + 'static>(driver: D, args: &Args) -> Result<()> {
    let text = std::fs::read_to_string(&args.prompts)
        .with_context(|| format!("cannot read {}", args.prompts.display()))?;
    let prompts: Vec<Vec<TokenId>> = serde_json::from_str(&text)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1) + args.max_tokens as usize;
    let max_batched = 2048.min(longest * args.max_num_seqs);
    let mut loaded = model::load(driver, &args.model, args.max_num_seqs, longest, max_batched)?;
    let config = SchedulerConfig {
        max_num_seqs: args.max_num_seqs,
        max_num_batched_tokens: max_batched,
        max_model_len: longest,
        num_blocks: loaded.info.num_blocks,
        max_queued: prompts.len(),
        groups: loaded.info.groups,
        depth: 1,
        prefix_cache: None,
        policy: SchedulingPolicy::Fair,
    };
    let run = requests(&mut loaded.runner, config, prompts, args.max_tokens)?;
    for (index, tokens) in run.tokens.iter().enumerate() {
        report(&json!({ "prompt": index, "tokens": tokens }));
    }
    Ok(())
}

/// Runs requests to their ends.
pub(crate) fn requests(
    executor: &mut impl Executor,
    config: SchedulerConfig,
    prompts: Vec<Vec<TokenId>>,
    max_tokens: u32,
) -> Result<Run> {
    let mut scheduler = Scheduler::new(config)?;
    let params = SamplingParams { max_tokens, temperature: 0.0, ..SamplingParams::default() };
    let params = Arc::new(params);
    let mut run = Run { tokens: vec![Vec::new(); prompts.len()], steps: Vec::new() };
    for (id, prompt) in (0..).zip(prompts) {
        let params = Arc::clone(&params);
        scheduler.add(Request::new(RequestId(id), prompt, params))?;
    }
    let (mut batch, mut result) = (ScheduledBatch::default(), StepResult::default());
    let masks = TokenMasks::default();
    let mut outputs = Vec::new();
    loop {
        scheduler.schedule(&mut batch);
        if batch.is_empty() {
            break;
        }
        let started = Instant::now();
        executor.launch(&batch)?;
        executor.sample(&masks)?;
        executor.wait(&mut result)?;
        run.steps.push(Step {
            seconds: started.elapsed().as_secs_f64(),
            device_seconds: result.device_time.map(|time| time.as_secs_f64()),
            sequences: batch.sequences.len(),
            context: batch.sequences.iter().map(|s| s.num_computed_tokens + s.input.len()).sum(),
            tokens: batch.num_tokens,
        });
        scheduler.commit(&batch, &mut result, &mut outputs);
        for output in outputs.drain(..) {
            let index = usize::try_from(output.request.0)?;
            run.tokens[index].extend(output.token);
        }
    }
    let done = run.tokens.iter().all(|tokens| tokens.len() == max_tokens as usize);
    ensure!(done, "a request ended early");
    Ok(run)
}
