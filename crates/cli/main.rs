//! The `sconce` binary: parses flags, calls the library, prints, exits.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage, 3 the device is lost, so that a
//! supervisor can start another process, 4 requests were cut off when the server ended.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sconce::ServeError;

mod bench;
mod chat;
mod engine_args;
mod flags;
mod progress;
mod pull;
mod replay;
mod serve;
mod simulate;
mod tenant;
mod usage;

/// The exit code of a process whose device answers no more.
const DEVICE_LOST: u8 = 3;
/// The exit code of a server that ended before its requests did.
const REQUESTS_CUT: u8 = 4;

/// A GPU inference-serving runtime shared fairly between tenants.
#[derive(Debug, Parser)]
#[command(name = "sconce", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over an OpenAI-style endpoint
    Serve(Box<serve::Args>),
    /// Fetch a model and convert it if need be
    Pull(pull::Args),
    /// Talk to a running server from the terminal
    Chat(chat::Args),
    /// Load a running server and report latency and throughput
    Bench(Box<bench::Args>),
    /// Say who shares a server, and with what limits
    Tenant(tenant::Args),
    /// Report what the tenants of a server used
    Usage(usage::Args),
    /// Run recorded requests again and compare their tokens
    Replay(Box<replay::Args>),
    /// Play a trace of requests on simulated engines and compare policies
    Simulate(Box<simulate::Args>),
}

#[expect(clippy::print_stderr, reason = "a failure's message belongs on standard error")]
fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", told(&error));
            match error.downcast_ref() {
                Some(ServeError::DeviceLost) => ExitCode::from(DEVICE_LOST),
                Some(ServeError::RequestsCut(_)) => ExitCode::from(REQUESTS_CUT),
                Some(ServeError::Io(_)) | None => ExitCode::FAILURE,
            }
        }
    }
}

/// An error and its causes, without a cause that the message before has in its own words.
fn told(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told += &format!(": {cause}");
        }
    }
    told
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tenant(args) => tenant::run(&args),
        Command::Usage(args) => usage::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Simulate(args) => simulate::run(&args),
    }
}
