//! What is checked and measured on a machine with a GPU, in one program, so that such
//! a machine needs neither Rust nor this project's sources: `run.sh` calls it.
//!
//! Each command prints a line of JSON for each result. With `--dry-run` everything is as
//! small as can be, for the fake GPU of `kernels/shim`: no figure of that means anything,
//! but that every stage works. Without the feature `cuda` the kernels run in their shim.

use clap::{Parser, Subcommand};

mod check;
mod churn;
mod few_rows;
mod fp8;
mod kernels;
mod model;
mod sampling;
mod steps;
mod timing;
mod tokens;

#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// As little as can be, for a fake GPU
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
        /// Print the cases' names
        #[arg(long)]
        list: bool,
    },
    /// The kernels' bandwidths and rates
    Kernels {
        /// Only this group
        #[arg(long)]
        only: Option<kernels::Group>,
        /// Print the groups' names
        #[arg(long)]
        list: bool,
    },
    /// The time of a decode step by batch
    Steps(steps::Args),
    /// Greedy tokens of prompts, batched
    Tokens(tokens::Args),
    /// Requests that come, go and are preempted, with graphs and two steps in flight, against
    /// eager steps
    Churn(churn::Args),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Command::Check { list: true, .. } => check::list(),
        Command::Kernels { list: true, .. } => kernels::list(),
        Command::Check { only, .. } => check::run(device, only)?,
        Command::Kernels { only, .. } => kernels::run(device()?, *only, cli.dry_run)?,
        Command::Steps(args) => steps::run(device()?, args)?,
        Command::Tokens(args) => tokens::run(device()?, args)?,
        Command::Churn(args) => churn::run(device()?, args)?,
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn device() -> anyhow::Result<sconce_kernels::cuda::CudaDriver> {
    Ok(sconce_kernels::cuda::CudaDriver::new(0)?)
}

/// Without CUDA the kernels run in their shim.
#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "as the device that may be missing")]
fn device() -> anyhow::Result<sconce_cuda_shim::ShimDriver> {
    Ok(sconce_cuda_shim::ShimDriver::default())
}

/// A result, on a line of its own.
#[expect(clippy::print_stdout, reason = "results are what this program is for")]
fn report(result: &serde_json::Value) {
    println!("{result}");
}
