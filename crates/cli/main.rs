//! The `sconce` binary: parses flags, calls the library, prints, exits.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage, 3 the device is lost, so that a
//! supervisor can start another process, 4 requests were cut off when the server ended.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use logging::LogFormat;
use sconce::ServeError;

mod bench;
mod chat;
mod doctor;
mod engine_args;
mod flags;
mod logging;
mod progress;
mod pull;
mod replay;
mod serve;
mod simulate;
mod tenant;
mod traces;
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
    /// Say what GPU there is, and try the forms of its operations: which are right, and how fast
    Doctor(doctor::Args),
    /// Run recorded requests again and compare their tokens
    Replay(Box<replay::Args>),
    /// Play a trace of requests on simulated engines and compare policies
    Simulate(Box<simulate::Args>),
}

#[expect(clippy::print_stderr, reason = "a failure's message belongs on standard error")]
fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = match &cli.command {
        Command::Serve(args) => args.log_format,
        _ => LogFormat::Text,
    };
    let log = match logging::start(format) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("error: the log cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = run(cli.command);
    log.flush();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match format {
                LogFormat::Text => eprintln!("error: {}", describe(&error)),
                LogFormat::Json => tracing::error!("{}", describe(&error)),
            }
            match error.downcast_ref() {
                Some(ServeError::DeviceLost) => ExitCode::from(DEVICE_LOST),
                Some(ServeError::RequestsCut(_)) => ExitCode::from(REQUESTS_CUT),
                Some(ServeError::Io(_)) | None => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tenant(args) => tenant::run(&args),
        Command::Usage(args) => usage::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Simulate(args) => simulate::run(&args),
    }
}

/// An error and its causes, without those that are told already: many errors quote the
/// one below them.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::describe;

    #[test]
    fn an_error_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("/x: {source}")]
        struct AtPath {
            source: io::Error,
        }
        let error = || AtPath { source: io::Error::other("disk on fire") };
        assert_eq!(describe(&error().into()), "/x: disk on fire");
        let with_context = Err::<(), _>(error()).context("cannot start").expect_err("it is one");
        assert_eq!(describe(&with_context), "cannot start: /x: disk on fire");
    }
}
