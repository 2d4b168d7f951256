//! `sconce bench`: loads a server and reports latency and throughput.

use std::path::PathBuf;

use anyhow::Context as _;
use sconce_bench::BenchArgs;

/// Flags of `sconce bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    bench: BenchArgs,
    /// Write the result here, as JSON
    #[arg(long)]
    save_result: Option<PathBuf>,
    /// Draw the times here, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Draw a step's phases here, as SVG: what the host and the device did; for Sconce, with an
    /// administrator's key where it has keys
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Print the prompts as JSON and ask no server
    #[arg(long)]
    list_prompts: bool,
}

/// Loads the server and prints what came of it.
#[expect(clippy::print_stdout, reason = "what the command is for")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.list_prompts {
        println!("{}", sconce_bench::prompts(&args.bench)?);
        return Ok(());
    }
    // One thread: the server it measures often has the other cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let profile = || runtime.block_on(sconce_bench::profile(&args.bench));
    // Asked for at once, so that a server without one is known before the load.
    let before = args.profile.as_ref().map(|_| profile()).transpose();
    let before = before.context("--profile")?;
    let report = runtime.block_on(sconce_bench::bench(&args.bench))?;
    println!("{report}");
    if let (Some(path), Some(before)) = (&args.profile, before) {
        let profile = profile()?.since(&before);
        println!("\n{profile}");
        sconce_bench::plot_profile(&profile, path)?;
    }
    if let Some(path) = &args.save_result {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.plot {
        sconce_bench::plot(&report, path)?;
    }
    Ok(())
}
