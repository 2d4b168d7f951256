//! What is checked and measured on a machine with a GPU, in one program, so that such
//! a machine needs neither Rust nor this project's sources: `run.sh` calls it.
//!
//! Each command prints a line of JSON for each result. With `--dry-run` it runs on a
//! CPU, the kernels in their shim, everything as small as can be: no figure of that
//! means anything, but that every stage works.

use clap::{Parser, Subcommand};
use sconce_cuda_shim::ShimDriver;

mod check;
mod kernels;
mod model;
mod steps;
mod timing;
mod tokens;

#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Without a GPU, and as little as can be
    #[arg(long, global = true)]
    dry_run: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every kernel against its f64 reference, then the backend against the CPU's
    Check {
        /// Only cases whose names contain this; few and small ones suit a sanitizer
        #[arg(long, default_value = "")]
        only: String,
    },
    /// The kernels' bandwidths and rates
    Kernels,
    /// The time of a decode step by batch
    Steps(steps::Args),
    /// Greedy tokens of prompts, batched
    Tokens(tokens::Args),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    if cli.dry_run {
        return run(&cli, || Ok(ShimDriver::default()));
    }
    on_gpu(&cli)
}

#[cfg(feature = "cuda")]
fn on_gpu(cli: &Cli) -> anyhow::Result<()> {
    run(cli, || Ok(sconce_kernels::cuda::CudaDriver::new(0)?))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &Cli) -> anyhow::Result<()> {
    anyhow::bail!("this build has no CUDA in it (--features cuda); there is --dry-run")
}

fn run<D: sconce_kernels::cuda::Driver + 'static>(
    cli: &Cli,
    device: impl Fn() -> anyhow::Result<D>,
) -> anyhow::Result<()> {
    match &cli.command {
        Command::Check { only } => check::run(device, only),
        Command::Kernels => kernels::run(device()?, cli.dry_run),
        Command::Steps(args) => steps::run(device()?, args),
        Command::Tokens(args) => tokens::run(device()?, args),
    }
}

/// A result, on a line of its own.
#[expect(clippy::print_stdout, reason = "results are what this program is for")]
fn report(result: &serde_json::Value) {
    println!("{result}");
}
