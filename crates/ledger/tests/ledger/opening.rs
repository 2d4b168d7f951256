//! Who may open what.

use std::{fs, path::Path};

use sconce_ledger::{By, Ledger, LedgerError, Query};
use sconce_types::{End, MeterSink as _};
use tempfile::tempdir;

use super::{ended, ends, entry, label, sink, usage};

fn set_version(path: &Path, version: i64) {
    let connection = rusqlite::Connection::open(path).expect("the file opens");
    connection.pragma_update(None, "user_version", version).expect("the version is a number");
}

#[test]
fn one_server_at_a_time_has_a_ledger() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let first = Ledger::open(&path, "m").expect("a new ledger opens");
    let error = Ledger::open(&path, "m").expect_err("it is open");
    let holder = format!("another process (id {})", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");

    // Its sink has the lock after it, and under whatever name.
    let first = first.sink().expect("a thread starts");
    #[cfg(unix)]
    {
        let link = directory.path().join("link.db");
        std::os::unix::fs::symlink(&path, &link).expect("links can be made");
        assert!(matches!(Ledger::open(&link, "m"), Err(LedgerError::InUse { .. })));
    }
    assert!(matches!(Ledger::open(&path, "m"), Err(LedgerError::InUse { .. })));
    drop(first);
    Ledger::open(&path, "m").expect("nobody has it open");
}

#[test]
fn what_an_earlier_server_left_unfinished_is_interrupted() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let ends_of = |runs: u64, last: Option<&str>| {
        let mut ends = Vec::new();
        for run in 0..runs {
            let open = if run + 1 == runs { last } else { Some("interrupted") };
            ends.push((format!("done-{run}"), Some("deadline".to_owned())));
            ends.push((format!("open-{run}"), open.map(ToOwned::to_owned)));
        }
        ends
    };
    for run in 0..3 {
        let mut ledger = sink(&path);
        // Each run counts its requests from 0.
        let done = entry(0, label("a", &format!("done-{run}"), 0), 1);
        let open = entry(1, label("a", &format!("open-{run}"), 0), 1);
        ledger.record(&mut vec![ended(done, End::Deadline), open]);
        drop(ledger);
        assert_eq!(ends(&path), ends_of(run + 1, None));
    }
    drop(Ledger::open(&path, "m").expect("nobody has it open"));
    assert_eq!(ends(&path), ends_of(3, Some("interrupted")));
    assert_eq!(usage(&path, &[]).rows[0].generated_tokens, 6, "what they used stays");
}

#[test]
fn files_that_are_no_ledger_are_refused_and_left_alone() {
    let directory = tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);

    let text = at("text");
    fs::write(&text, "no database, but long enough to look like the header of one".repeat(9))
        .expect("files can be written");
    let before = fs::read(&text).expect("it was written");
    for error in [Ledger::open(&text, "m").map(drop), Ledger::read(&text).map(drop)] {
        let error = error.expect_err("it is text").to_string();
        assert!(error.contains("text: file is not a database"), "{error}");
    }
    assert_eq!(fs::read(&text).expect("it is there"), before);

    let other = at("other.db");
    let connection = rusqlite::Connection::open(&other).expect("a new file");
    connection.execute_batch("CREATE TABLE requests (id)").expect("a table of something else");
    drop(connection);
    set_version(&other, 1);
    for error in [Ledger::open(&other, "m").map(drop), Ledger::read(&other).map(drop)] {
        assert!(matches!(error, Err(LedgerError::Foreign { .. })), "{error:?}");
    }

    let newer = at("newer.db");
    drop(Ledger::open(&newer, "m").expect("a new ledger"));
    set_version(&newer, 2);
    for error in [Ledger::open(&newer, "m").map(drop), Ledger::read(&newer).map(drop)] {
        assert!(matches!(error, Err(LedgerError::Newer { found: 2, .. })), "{error:?}");
    }

    #[cfg(unix)]
    {
        let pipe = at("pipe.db");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
        assert!(made.success());
        for path in [&pipe, directory.path()] {
            for error in [Ledger::open(path, "m").map(drop), Ledger::read(path).map(drop)] {
                assert!(matches!(error, Err(LedgerError::NotAFile { .. })), "{error:?}");
            }
        }
    }

    let missing = at("missing.db");
    assert!(matches!(Ledger::read(&missing), Err(LedgerError::Io { .. })));
    assert!(!missing.exists(), "to read makes no ledger");
    assert!(matches!(Ledger::open(&at("no/folder"), "m"), Err(LedgerError::Io { .. })));
}

#[test]
fn a_reader_sees_whole_batches_while_a_server_writes() {
    const REQUESTS: u32 = 40;
    const BATCHES: u32 = 300;
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let mut ledger = sink(&path);
    let reader = Ledger::read(&path).expect("there is a ledger");
    let query = Query { by: vec![By::Tenant], ..Query::default() };
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut batch = Vec::new();
            for tokens in 0..=BATCHES {
                for id in 0..REQUESTS {
                    let label = if tokens == 0 { label("a", "id", 0) } else { None };
                    batch.push(entry(id.into(), label, tokens));
                }
                ledger.record(&mut batch);
            }
        });
        let mut seen = 0;
        while !server.is_finished() {
            let usage = reader.usage(&query).expect("a server that writes is in nobody's way");
            let Some(row) = usage.rows.first() else { continue };
            assert_eq!(row.requests, u64::from(REQUESTS));
            assert_eq!(row.generated_tokens % u64::from(REQUESTS), 0, "a part of a batch");
            assert!(row.generated_tokens >= seen, "what was seen once stays");
            assert_eq!(row.device_ns, u128::from(row.generated_tokens) * 1_000_000);
            seen = row.generated_tokens;
        }
    });
    let rows = reader.usage(&query).expect("the ledger can be read").rows;
    assert_eq!(rows[0].generated_tokens, u64::from(REQUESTS * BATCHES));
}
