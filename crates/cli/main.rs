//! The `sconce` binary: parses flags, calls the library, prints, exits.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage (clap).

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod chat;
mod pull;

/// A GPU inference-serving runtime shared fairly between tenants.
#[derive(Debug, Parser)]
#[command(name = "sconce", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch a model and convert it if need be.
    Pull(pull::Args),
    /// Talk to a running server from the terminal.
    Chat(chat::Args),
    /// Load a running server and report latency and throughput.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Pull(args) => pull::run(&args),
        Command::Chat(args) => chat::run(args),
        Command::Bench(args) => bench::run(args),
    }
}
