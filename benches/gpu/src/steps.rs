//! The time of a decode step.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use sconce_kernels::cuda::Driver;
use sconce_scheduler::{SchedulerConfig, SchedulingPolicy};
use serde_json::json;

use crate::{model, report, tokens};

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
    /// Decode steps of each batch
    #[arg(long, default_value_t = 24)]
    steps: u32,
}

/// Prefills as many sequences as each batch has, then decodes.
pub(crate) fn run<D: Driver + 'static>(driver: D, args: &Args) -> Result<()> {
    let most = args.batches.iter().copied().max().unwrap_or(1);
    let longest = args.context + args.steps as usize;
    let max_batched = 2048.min(longest * most);
    let mut loaded = model::load(driver, &args.model, most, longest, max_batched)?;
    // A step reads a few rows of it only.
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(args.model.join("config.json"))?)?;
    let hidden_size = config["hidden_size"].as_u64().context("config.json has no hidden_size")?;
    let embedding_bytes = loaded.vocab_size * usize::try_from(hidden_size)? * 2;
    report(&json!({
        "model": args.model.display().to_string(),
        "device": loaded.device,
        "weight_bytes": loaded.weight_bytes - embedding_bytes,
        "kv_bytes_per_token": loaded.kv_cache_bytes / loaded.num_blocks / 16,
        "kv_cache_tokens": loaded.num_blocks * 16,
        "load_seconds": loaded.load_times.weights.as_secs_f64(),
    }));
    for &num_seqs in &args.batches {
        let config = SchedulerConfig {
            max_num_seqs: num_seqs,
            max_num_batched_tokens: max_batched,
            max_model_len: longest,
            num_blocks: loaded.num_blocks,
            max_queued: num_seqs,
            prefix_cache: None,
            policy: SchedulingPolicy::Fair,
        };
        let vocab_size = loaded.vocab_size;
        let token = |s: usize, i: usize| ((s * 7_919 + i * 104_729) % vocab_size) as u32;
        let prompt = |s| (0..args.context).map(|i| token(s, i)).collect();
        let prompts = (0..num_seqs).map(prompt).collect();
        let run = tokens::requests(&mut loaded.runner, config, prompts, args.steps)?;
        // The last steps are those in which all decode: a few of the first are not.
        let mut decoding: Vec<f64> = run
            .steps
            .iter()
            .rev()
            .filter(|(_, sequences)| *sequences == num_seqs)
            .take(args.steps as usize / 2)
            .map(|&(seconds, _)| seconds)
            .collect();
        decoding.sort_by(f64::total_cmp);
        let all: f64 = run.steps.iter().map(|(seconds, _)| seconds).sum();
        report(&json!({
            "batch": num_seqs,
            "context": args.context,
            "step_seconds": decoding.get(decoding.len() / 2),
            "all_seconds": all,
        }));
    }
    Ok(())
}
