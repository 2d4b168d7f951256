//! The time of a decode step.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use sconce_kernels::cuda::Driver;
use sconce_types::Executor as _;
use serde_json::json;

use crate::{
    model::{self, Limits, Products},
    report,
    tokens::{self, Step, Way},
};

/// Flags of `steps`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model's directory
    #[arg(long)]
    model: PathBuf,
    /// Sequences that decode at once
    #[arg(long, num_args = 1.., default_values_t = [1, 8, 32, 128, 256])]
    batches: Vec<usize>,
    /// Tokens of context
    #[arg(long, default_value_t = 1024)]
    context: usize,
    /// Decode steps of each batch and way in which all sequences decode, at least
    #[arg(long, default_value_t = 16)]
    steps: u32,
}

/// Tokens of a step, at most.
const MAX_BATCHED: usize = 2048;

/// Prefills as many sequences as each batch has, then decodes, in one way after the other.
pub(crate) fn run<D: Driver + 'static>(driver: D, args: &Args) -> Result<()> {
    let most = args.batches.iter().copied().max().unwrap_or(1);
    let ways = Way::ALL.len() * args.steps as usize;
    let max_batched = MAX_BATCHED.min((args.context + ways) * most);
    // Sequences decode beside the prefill of those that come after them.
    let beside =
        |num_seqs: usize| num_seqs * args.context / (max_batched - num_seqs.min(max_batched - 1));
    let answer = |num_seqs: usize| ways + beside(num_seqs) + 1;
    let longest = args.context + answer(most);
    let limits = Limits { max_num_seqs: most, max_model_len: longest, max_batched };
    let mut loaded = model::load(driver, &args.model, limits, Products::Fastest)?;
    // A step reads a few rows of it only.
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(args.model.join("config.json"))?)?;
    let hidden_size = config["hidden_size"].as_u64().context("config.json has no hidden_size")?;
    let embedding_bytes = loaded.info.vocab_size * usize::try_from(hidden_size)? * 2;
    report(&json!({
        "model": args.model.display().to_string(),
        "device": loaded.info.device,
        "weight_bytes": loaded.info.weight_bytes - embedding_bytes,
        "kv_bytes_per_token": loaded.info.kv_cache_bytes / loaded.info.num_blocks / 16,
        "kv_cache_tokens": loaded.info.num_blocks * 16,
        "load_seconds": loaded.info.load_times.weights.as_secs_f64(),
        "graphs": loaded.info.num_graphs,
        "graph_seconds": loaded.info.load_times.graphs.as_secs_f64(),
    }));
    for &num_seqs in &args.batches {
        let config = Limits { max_num_seqs: num_seqs, ..limits }.scheduler(&loaded, num_seqs);
        let vocab_size = loaded.info.vocab_size;
        let token = |s: usize, i: usize| ((s * 7_919 + i * 104_729) % vocab_size) as u32;
        let prompt = |s| (0..args.context).map(|i| token(s, i)).collect();
        let prompts = (0..num_seqs).map(prompt).collect();
        let max_tokens = u32::try_from(answer(num_seqs))?;
        let has_overlap = loaded.runner.depth() > 1;
        let run = tokens::requests(
            &mut loaded.runner,
            config,
            prompts,
            max_tokens,
            |runner, decodes| {
                let way = Way::ALL[(decodes / args.steps as usize).min(Way::ALL.len() - 1)];
                let way = if has_overlap || way == Way::Eager { way } else { Way::Graphs };
                runner.set_replays(way != Way::Eager);
                way
            },
        )?;
        let all_seconds = run.steps.iter().map(|step| step.seconds).sum::<f64>();
        for way in Way::ALL {
            // The first steps in which all decode, and that one or two are in flight, may have
            // started cold, or with another in flight.
            let decoding = |step: &&Step| {
                step.way == way && step.sequences == num_seqs && step.tokens == num_seqs
            };
            let decoding: Vec<&Step> = run.steps.iter().filter(decoding).skip(2).collect();
            if decoding.is_empty() {
                continue;
            }
            let median = |of: &dyn Fn(&Step) -> Option<f64>| {
                let mut all: Vec<f64> = decoding.iter().copied().filter_map(of).collect();
                all.sort_by(f64::total_cmp);
                all.get(all.len() / 2).copied()
            };
            report(&json!({
                "batch": num_seqs,
                "way": way.name(),
                "context": median(&|step| Some(step.context as f64 / num_seqs as f64)),
                "step_seconds": median(&|step| Some(step.seconds)),
                "device_seconds": median(&|step| step.device_seconds),
                "all_seconds": all_seconds,
            }));
        }
    }
    Ok(())
}
