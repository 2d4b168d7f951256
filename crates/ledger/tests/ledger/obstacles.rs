//! Where SQLite cannot write, what was recorded is written as soon as it can.

use sconce_ledger::By;
use sconce_types::{End, MeterSink as _};
use tempfile::tempdir;

use super::{ended, ends, entry, label, sink, usage};

#[test]
fn what_could_not_be_written_is_written_with_a_later_batch() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let mut ledger = sink(&path);
    let health = ledger.health();
    let mut batch = vec![entry(0, label("a", "zero", 0), 1)];
    ledger.record(&mut batch);
    ledger.record(&mut batch);
    assert!(!health.failing());

    let other = rusqlite::Connection::open(&path).expect("the file opens");
    other.execute_batch("ALTER TABLE requests RENAME TO elsewhere").expect("nobody writes");
    batch.extend([entry(0, None, 2), entry(1, label("b", "one", 1), 1)]);
    ledger.record(&mut batch);
    batch.push(ended(entry(1, None, 3), End::Stop { token: None }));
    ledger.record(&mut batch);
    assert!(health.failing());
    batch.extend([entry(0, None, 5), entry(2, label("b", "two", 2), 0)]);
    ledger.record(&mut batch);
    // A call without entries waits for the one before.
    ledger.record(&mut batch);
    assert!(health.failing());

    other.execute_batch("ALTER TABLE elsewhere RENAME TO requests").expect("nobody writes");
    batch.push(entry(2, None, 4));
    ledger.record(&mut batch);
    ledger.record(&mut batch);
    assert!(!health.failing());
    assert_eq!(health.lost(), 0);
    let tokens: Vec<_> = usage(&path, &[By::Request, By::Tenant])
        .rows
        .into_iter()
        .map(|row| (row.keys.join("/"), row.generated_tokens))
        .collect();
    let row = |keys: &str, tokens| (keys.to_owned(), tokens);
    assert_eq!(tokens, [row("zero/a", 5), row("one/b", 3), row("two/b", 4)]);
    assert_eq!(ends(&path)[1].1.as_deref(), Some("stop"));
}

#[test]
fn a_ledger_that_can_be_written_again_is_without_another_batch() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let mut ledger = sink(&path);
    let health = ledger.health();
    let (told, states) = std::sync::mpsc::channel();
    ledger.on_change(Box::new(move |state| told.send(state.failing).unwrap_or_default()));
    let other = rusqlite::Connection::open(&path).expect("the file opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("nobody writes");
    ledger.record(&mut (0..3_000).map(|id| entry(id, label("a", "x", id), 1)).collect());
    assert_eq!((states.recv(), states.recv()), (Ok(false), Ok(true)));
    other.execute_batch("COMMIT").expect("it can end");
    // The engine may be idle: nothing comes that could be tried with it.
    assert_eq!(states.recv(), Ok(false));
    assert_eq!((health.lost(), usage(&path, &[]).rows[0].requests), (0, 3_000));
}

#[test]
fn somebody_who_writes_holds_no_batch_up_and_loses_none() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let mut ledger = sink(&path);
    let health = ledger.health();
    let other = rusqlite::Connection::open(&path).expect("the file opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("nobody writes");
    let mut batch = vec![entry(0, label("a", "zero", 0), 1)];
    ledger.record(&mut batch);
    for tokens in 2..5 {
        batch.push(entry(0, None, tokens));
        ledger.record(&mut batch);
        assert!(batch.is_empty() && health.failing());
    }
    other.execute_batch("COMMIT").expect("it can end");
    // To drop it is the last try.
    drop(ledger);
    assert_eq!((health.failing(), health.lost()), (false, 0));
    assert_eq!(usage(&path, &[]).rows[0].generated_tokens, 4);
}
