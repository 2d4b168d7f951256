//! Long runs of requests that come, go and are preempted, with graphs and two steps in flight:
//! each token must be the one that eager steps, one at a time, give.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Result, ensure};
use sconce_kernels::{
    cuda::{Cuda, Driver},
    ops::sampling::uniform,
};
use sconce_runner::ModelRunner;
use sconce_scheduler::{Output, Request, Scheduler, SchedulerConfig};
use sconce_types::{RequestId, SamplingParams, TokenId};
use serde_json::json;

use crate::{
    model::{self, Limits, Products},
    report,
    tokens::{self, Course, Step, Way},
};

/// Flags of `churn`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model's directory
    #[arg(long)]
    model: PathBuf,
    /// Requests at once
    #[arg(long, default_value_t = 64)]
    max_num_seqs: usize,
    /// Requests in all
    #[arg(long, default_value_t = 2000)]
    requests: usize,
    /// Tokens of the longest prompt
    #[arg(long, default_value_t = 400)]
    prompt_len: usize,
    /// Tokens of the longest answer
    #[arg(long, default_value_t = 200)]
    max_tokens: u32,
}

/// One in so many requests leaves early.
const LEAVE: usize = 5;
/// Blocks that there are, as a share of what full seats would need: too few.
const BLOCKS: f64 = 0.4;

/// A request of the run.
#[derive(Clone)]
struct Wanted {
    prompt: Vec<TokenId>,
    max_tokens: u32,
    /// Tokens after which its client leaves.
    leaves_after: Option<usize>,
}

/// One of the numbers below `below` that look random: the `index`th of a sequence.
fn draw(sequence: u64, index: usize, below: usize) -> usize {
    (uniform(sequence, index as u32) * below as f64) as usize
}

impl Wanted {
    fn of(index: usize, args: &Args, vocab_size: usize) -> Self {
        let own = 1 + index as u64;
        let prompt_len = 1 + draw(own, 0, args.prompt_len);
        let max_tokens = 1 + draw(own, 1, args.max_tokens as usize);
        let leaves = draw(own, 2, LEAVE) == 0;
        let token = |i: usize| draw(own, 4 + i, vocab_size) as TokenId;
        Self {
            prompt: (0..prompt_len).map(token).collect(),
            max_tokens: max_tokens as u32,
            leaves_after: leaves.then(|| draw(own, 3, max_tokens)),
        }
    }
}

/// A run of them, in one way.
struct Churn<'a> {
    wanted: &'a [Wanted],
    way: Way,
    /// Requests that have come.
    come: usize,
    tokens: Vec<Vec<TokenId>>,
    /// Who is to leave before the next step.
    leaving: Vec<RequestId>,
    left: usize,
    steps: usize,
    preemptions: u64,
    seats: usize,
}

impl<'a> Churn<'a> {
    fn new(wanted: &'a [Wanted], way: Way, seats: usize) -> Self {
        let tokens = vec![Vec::new(); wanted.len()];
        let (come, leaving, left, steps, preemptions) = (0, Vec::new(), 0, 0, 0);
        Self { wanted, way, come, tokens, leaving, left, steps, preemptions, seats }
    }

    /// Whether requests come a few at a time, and leave.
    fn is_churning(&self) -> bool {
        self.way != Way::Eager
    }
}

impl<D: Driver> Course<ModelRunner<Cuda<D>>> for Churn<'_> {
    fn before(
        &mut self,
        runner: &mut ModelRunner<Cuda<D>>,
        scheduler: &mut Scheduler,
    ) -> Result<Way> {
        runner.set_replays(self.way != Way::Eager);
        for id in self.leaving.drain(..) {
            self.left += usize::from(scheduler.cancel(id));
        }
        // Now and then a few, so that steps of prompts and of decodes alone take turns.
        let stats = scheduler.stats();
        self.preemptions = stats.preemptions;
        let waiting = stats.waiting + stats.running;
        let comes = if !self.is_churning() || waiting == 0 {
            self.seats
        } else if draw(0, 2 * self.steps, 4) == 0 {
            draw(0, 2 * self.steps + 1, 4)
        } else {
            0
        };
        let room = (2 * self.seats).saturating_sub(waiting);
        for _ in 0..comes.min(room).min(self.wanted.len() - self.come) {
            let Wanted { prompt, max_tokens, .. } = self.wanted[self.come].clone();
            let params =
                SamplingParams { max_tokens, temperature: 0.0, ..SamplingParams::default() };
            let id = RequestId(self.come as u64);
            scheduler.add(Request::new(id, prompt, Arc::new(params)))?;
            self.come += 1;
        }
        Ok(self.way)
    }

    fn after(&mut self, _: Step, outputs: &[Output]) -> Result<()> {
        self.steps += 1;
        for output in outputs {
            let index = usize::try_from(output.request.0)?;
            self.tokens[index].extend(output.token);
            let leaves_after = self.wanted[index].leaves_after.filter(|_| self.is_churning());
            if leaves_after.is_some_and(|after| self.tokens[index].len() > after) {
                self.leaving.push(output.request);
            }
        }
        Ok(())
    }
}

/// Runs the same requests twice, and compares their tokens.
pub(crate) fn run<D: Driver + 'static>(driver: D, args: &Args) -> Result<()> {
    let longest = args.prompt_len + args.max_tokens as usize;
    let seats = args.max_num_seqs;
    let max_batched = 512.min(longest * seats);
    let limits = Limits { max_num_seqs: seats, max_model_len: longest, max_batched };
    // Products of any other kind depend on how many sequences a step has.
    let mut loaded = model::load(driver, &args.model, limits, Products::Deterministic)?;
    let few = ((longest * seats) as f64 / 16.0 * BLOCKS) as usize;
    let config = limits.scheduler(&loaded, args.requests);
    let num_blocks = config.num_blocks.min(few.max(2 * longest.div_ceil(16)));
    let config = SchedulerConfig { num_blocks, ..config };
    let vocab_size = loaded.info.vocab_size;
    let wanted: Vec<Wanted> =
        (0..args.requests).map(|index| Wanted::of(index, args, vocab_size)).collect();
    let mut of_way = |way, depth| -> Result<Churn<'_>> {
        let config = SchedulerConfig { depth, ..config };
        let mut churn = Churn::new(&wanted, way, seats);
        tokens::drive(&mut loaded.runner, &mut Scheduler::new(config)?, &mut churn)?;
        ensure!(churn.come == wanted.len(), "{} of {} requests came", churn.come, wanted.len());
        Ok(churn)
    };
    let eager = of_way(Way::Eager, 1)?;
    let churned = of_way(Way::Overlap, config.depth)?;
    let (mut compared, mut different, mut short) = (0, 0, 0);
    for (wanted, (want, got)) in wanted.iter().zip(eager.tokens.iter().zip(&churned.tokens)) {
        ensure!(want.len() == wanted.max_tokens as usize, "an eager request ended early");
        compared += got.len();
        different += got.iter().zip(want).filter(|(got, want)| got != want).count();
        // Who leaves has a token more where a step was in flight.
        short += usize::from(wanted.leaves_after.is_none() && got.len() != want.len());
    }
    report(&json!({
        "steps": churned.steps,
        "eager_steps": eager.steps,
        "requests": args.requests,
        "left": churned.left,
        "preemptions": churned.preemptions,
        "tokens": compared,
        "different": different,
    }));
    ensure!(different == 0 && short == 0, "{different} tokens differ, {short} answers are short");
    ensure!(churned.left > 0 && churned.preemptions > 0, "nobody left, or nobody was preempted");
    Ok(())
}
