//! A process that is killed at any moment loses at most its last batch, and no part of one.

use std::{
    env,
    ffi::OsStr,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use sconce_ledger::{By, UsageRow};
use sconce_types::{End, MeterEntry, MeterSink as _};
use tempfile::tempdir;

use super::{ended, ends, entry, label, sink, usage};

const LEDGER: &str = "SCONCE_TEST_LEDGER";
const ROUND: &str = "SCONCE_TEST_ROUND";

/// Requests that run at once: each batch begins one, and ends the oldest. So many that the
/// ledger writes nearly all the time, and is killed while it does.
const RUNNING: u64 = 400;

/// The entries of batch `n`: request `n` begins, the others get a token each.
fn batch(round: u32, n: u64) -> impl Iterator<Item = MeterEntry> {
    (n.saturating_sub(RUNNING)..=n).map(move |request| {
        let label = if request == n { label("a", &format!("{round}-{n}"), n) } else { None };
        let tokens = u32::try_from(n - request).expect("there are few");
        let entry = entry(request, label, tokens);
        if n - request == RUNNING { ended(entry, End::Length) } else { entry }
    })
}

/// What the ledger says of a round of which so many batches were written: each request's
/// id, tokens and end.
fn expected(round: u32, batches: u64, open: Option<&str>) -> Vec<(String, u64, Option<String>)> {
    let requests = (0..batches).map(|request| {
        let tokens = (batches - 1 - request).min(RUNNING);
        let end = if tokens == RUNNING { Some("length") } else { open };
        (format!("{round}-{request}"), tokens, end.map(ToOwned::to_owned))
    });
    requests.collect()
}

/// What the killed process does: batch after batch, and tells the number of each whose
/// `record` has returned.
fn record_until_killed(path: &Path, round: u32) -> ! {
    let mut ledger = sink(path);
    let mut entries = Vec::new();
    let mut out = std::io::stdout();
    for n in 0.. {
        entries.extend(batch(round, n));
        ledger.record(&mut entries);
        writeln!(out, "recorded {n}").expect("the other process listens");
        out.flush().expect("the other process listens");
    }
    unreachable!("nobody counts so far")
}

/// Starts a process that records, kills it once it has told of batch `until`, and returns
/// the last batch that it has told of.
fn kill_after(path: &Path, round: u32, until: u64) -> u64 {
    let program = env::current_exe().expect("this program has a path");
    let mut child = Command::new(program)
        .args(["killed::a_killed_server_loses_at_most_its_last_batch", "--exact", "--nocapture"])
        .env(LEDGER, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program starts again");
    let stdout = child.stdout.take().expect("it is piped");
    let mut last = None;
    for line in BufReader::new(stdout).lines() {
        let line = line.expect("the process writes text");
        let Some((_, n)) = line.split_once("recorded ") else { continue };
        let n: u64 = n.parse().expect("batches have numbers");
        if n == until {
            // Waits for nothing: each round's kill falls at another point of a batch.
            thread::sleep(Duration::from_micros(u64::from(round) * 37));
            child.kill().expect("it runs");
        }
        last = Some(n);
    }
    let status = child.wait().expect("it was started");
    assert!(!status.success() && last >= Some(until), "{status}: it told of {last:?} only");
    last.expect("it told of some")
}

#[test]
fn a_killed_server_loses_at_most_its_last_batch() {
    if let Some(path) = env::var_os(LEDGER) {
        let round = env::var(ROUND).expect("it comes with the path");
        record_until_killed(Path::new::<OsStr>(&path), round.parse().expect("rounds are numbers"));
    }

    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    // What the rounds before have left, which stays as it is.
    let mut before = Vec::new();
    for round in 0..20 {
        // From the first batches to beyond several checkpoints.
        let recorded = kill_after(&path, round, u64::from(round * round * 4));
        let found: Vec<_> = usage(&path, &[By::Request])
            .rows
            .into_iter()
            .zip(ends(&path))
            .map(|(row, (id, end))| {
                let UsageRow { keys, generated_tokens: tokens, device_ns, .. } = row;
                assert_eq!(keys.concat(), id);
                assert_eq!(device_ns, u128::from(tokens) * 1_000_000);
                (id, tokens, end)
            })
            .collect();
        let written = (found.len() - before.len()) as u64;
        assert!(written >= recorded, "batches up to {recorded} were begun, {written} are there");
        // No batch is there in part, and no request of another run has changed.
        let mut all = before.clone();
        all.extend(expected(round, written, None));
        assert_eq!(found, all, "round {round}");
        before.extend(expected(round, written, Some("interrupted")));
    }
}
