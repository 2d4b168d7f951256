//! `sconce replay`: recorded requests run again.

use std::path::PathBuf;

use sconce::{Options, Replay, Sconce};

use crate::{engine_args::EngineArgs, progress::Bars};

/// Flags of `sconce replay`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What sconce serve --record kept
    file: PathBuf,
    /// Requests that run at once
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Most differences that are printed.
const SHOWN: usize = 20;

/// Runs the requests and says whether they got the same tokens.
#[expect(clippy::print_stdout, reason = "what the command is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (head, recorded) = sconce::read_recording(&args.file)?;
    let bars = Bars::new();
    // All that was recorded is asked for at once, and waits.
    let options = Options { max_queue_wait: None, ..args.engine.options() };
    let sconce = Sconce::start(&options, &bars)?;
    bars.clear();
    let here = sconce.summary().recording_head();
    anyhow::ensure!(
        head.model == here.model,
        "it was recorded with the model {}, this one is {}",
        head.model,
        here.model
    );
    anyhow::ensure!(
        head.computed_in == here.computed_in,
        "it was recorded with {}, this engine computes with {}; the tokens would differ",
        head.computed_in,
        here.computed_in
    );
    let bar = indicatif::ProgressBar::new(recorded.len() as u64)
        .with_style(indicatif::ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}")?);
    bar.set_message("replaying");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let replayed = runtime.block_on(sconce::replay(
        sconce.engine(),
        recorded,
        args.concurrency.min(options.max_num_queued_reqs),
        |done| bar.set_position(done as u64),
    ))?;
    bar.finish_and_clear();
    let Replay { same, different } = replayed;
    for difference in different.iter().take(SHOWN) {
        println!(
            "{}: token {} was {:?}, is {:?}",
            difference.request_id, difference.position, difference.recorded, difference.replayed
        );
    }
    println!("{same} of {} requests got the same tokens", same + different.len());
    anyhow::ensure!(different.is_empty(), "{} requests got others", different.len());
    Ok(())
}
