//! Requests run by the scheduler over a model, without a server.

use std::{collections::VecDeque, path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use sconce_kernels::cuda::Driver;
use sconce_scheduler::{Output, Request, Scheduler, SchedulerConfig};
use sconce_types::{
    Executor, RequestId, SamplingParams, ScheduledBatch, StepResult, TokenId, TokenMasks,
};
use serde_json::json;

use crate::{
    model::{self, Limits, Products},
    report,
};

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

/// How steps are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Each kernel launched by itself.
    Eager,
    /// Decode steps replayed from graphs.
    Graphs,
    /// The same, each launched before the one before it is read back.
    Overlap,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Eager, Self::Graphs, Self::Overlap];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Graphs => "graphs",
            Self::Overlap => "graphs, overlapped",
        }
    }
}

/// A step that was run.
pub(crate) struct Step {
    /// How it was computed.
    pub(crate) way: Way,
    /// From its launch, or the end of the step before if that came later, until its tokens are
    /// known.
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
    let limits = Limits { max_num_seqs: args.max_num_seqs, max_model_len: longest, max_batched };
    let mut loaded = model::load(driver, &args.model, limits, Products::Fastest)?;
    let config = limits.scheduler(&loaded, prompts.len());
    let runner = &mut loaded.runner;
    let run = requests(runner, config, prompts, args.max_tokens, |_, _| Way::Overlap)?;
    for (index, tokens) in run.tokens.iter().enumerate() {
        report(&json!({ "prompt": index, "tokens": tokens }));
    }
    Ok(())
}

/// Runs requests to their ends. `way` is told, before each step is launched, of the runner and
/// how many steps of all sequences' decodes were, and says how it is computed.
pub(crate) fn requests<E: Executor>(
    executor: &mut E,
    config: SchedulerConfig,
    prompts: Vec<Vec<TokenId>>,
    max_tokens: u32,
    way: impl FnMut(&mut E, usize) -> Way,
) -> Result<Run> {
    let mut scheduler = Scheduler::new(config)?;
    let params = SamplingParams { max_tokens, temperature: 0.0, ..SamplingParams::default() };
    let params = Arc::new(params);
    let num_requests = prompts.len();
    let run = Run { tokens: vec![Vec::new(); num_requests], steps: Vec::new() };
    for (id, prompt) in (0..).zip(prompts) {
        let params = Arc::clone(&params);
        scheduler.add(Request::new(RequestId(id), prompt, params))?;
    }
    let mut all = AtOnce { run, way, decodes: 0 };
    drive(executor, &mut scheduler, &mut all)?;
    let done = all.run.tokens.iter().all(|tokens| tokens.len() == max_tokens as usize);
    ensure!(done, "a request ended early");
    Ok(all.run)
}

/// Requests that are all there from the start.
struct AtOnce<W> {
    run: Run,
    way: W,
    decodes: usize,
}

impl<E, W: FnMut(&mut E, usize) -> Way> Course<E> for AtOnce<W> {
    fn before(&mut self, executor: &mut E, _: &mut Scheduler) -> Result<Way> {
        Ok((self.way)(executor, self.decodes))
    }

    fn launched(&mut self, batch: &ScheduledBatch) {
        let all = self.run.tokens.len();
        self.decodes += usize::from(batch.num_tokens == all && batch.sequences.len() == all);
    }

    fn after(&mut self, step: Step, outputs: &[Output]) -> Result<()> {
        self.run.steps.push(step);
        for output in outputs {
            self.run.tokens[usize::try_from(output.request.0)?].extend(output.token);
        }
        Ok(())
    }
}

/// Who comes and goes while steps are run, and what is seen of them.
pub(crate) trait Course<E> {
    /// Before a step is scheduled; says how it is computed.
    ///
    /// # Errors
    /// A request is refused.
    fn before(&mut self, executor: &mut E, scheduler: &mut Scheduler) -> Result<Way>;

    /// A step was launched.
    fn launched(&mut self, _: &ScheduledBatch) {}

    /// A step has ended, with these outputs.
    ///
    /// # Errors
    /// An output that was not asked for.
    fn after(&mut self, step: Step, outputs: &[Output]) -> Result<()>;
}

/// Runs steps until there is nothing to do.
pub(crate) fn drive<E: Executor>(
    executor: &mut E,
    scheduler: &mut Scheduler,
    course: &mut impl Course<E>,
) -> Result<()> {
    let mut result = StepResult::default();
    let masks = TokenMasks::default();
    let mut outputs = Vec::new();
    let mut flight: VecDeque<(ScheduledBatch, Way, Instant)> = VecDeque::new();
    let mut ended = Instant::now();
    loop {
        loop {
            let way = course.before(executor, scheduler)?;
            let depth = if way == Way::Overlap { executor.depth() } else { 1 };
            if flight.len() >= depth {
                break;
            }
            let mut batch = ScheduledBatch::default();
            scheduler.schedule(&mut batch);
            if batch.is_empty() {
                break;
            }
            let started = Instant::now();
            executor.launch(&batch)?;
            executor.sample(&masks)?;
            course.launched(&batch);
            flight.push_back((batch, way, started));
        }
        let Some((batch, way, started)) = flight.pop_front() else { return Ok(()) };
        executor.wait(&mut result)?;
        let began = started.max(ended);
        ended = Instant::now();
        let step = Step {
            way,
            seconds: (ended - began).as_secs_f64(),
            device_seconds: result.device_time.map(|time| time.as_secs_f64()),
            sequences: batch.sequences.len(),
            context: batch.sequences.iter().map(|s| s.num_computed_tokens + s.input.len()).sum(),
            tokens: batch.num_tokens,
        };
        scheduler.commit(&batch, &mut result, &mut outputs);
        course.after(step, &outputs)?;
        outputs.clear();
    }
}
