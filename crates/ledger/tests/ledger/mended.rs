//! A ledger whose files somebody deletes, moves, replaces or damages while a server writes.
#![cfg(unix)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use sconce_ledger::{By, Ledger, LedgerError, LedgerSink};
use sconce_types::{End, MeterSink as _};
use tempfile::{TempDir, tempdir};

use super::{ended, ends, entry, label, sink, usage};

/// A server that has ended one request and goes on with another.
struct Server {
    directory: TempDir,
    path: PathBuf,
    ledger: LedgerSink,
}

impl Server {
    fn new() -> Self {
        let directory = tempdir().expect("a temporary directory");
        let path = directory.path().join("ledger.db");
        // A run before this one.
        let mut earlier = sink(&path);
        earlier.record(&mut vec![ended(
            entry(0, label("a", "early", 0), 5),
            End::Stop { token: None },
        )]);
        drop(earlier);
        let mut server = Self { ledger: sink(&path), path, directory };
        server.record(vec![
            ended(entry(0, label("a", "done", 1), 10), End::Length),
            entry(1, label("b", "running", 2), 1),
        ]);
        server
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Records, and waits until all is written or cannot be.
    fn record(&mut self, mut entries: Vec<sconce_types::MeterEntry>) {
        self.ledger.record(&mut entries);
        self.ledger.record(&mut entries);
    }

    /// The running request goes on and ends, and another comes.
    fn go_on(&mut self) {
        self.record(vec![
            ended(entry(1, None, 20), End::Stop { token: None }),
            ended(entry(2, label("a", "late", 3), 40), End::Stop { token: None }),
        ]);
    }

    fn is_in_order(&self, replaced: u64) {
        let health = self.ledger.health();
        assert_eq!((health.failing(), health.lost(), health.replaced()), (false, 0, replaced));
    }
}

/// Each request and its tokens, in order of their names.
fn tokens(path: &Path) -> Vec<(String, u64)> {
    let rows = usage(path, &[By::Request]).rows.into_iter();
    let mut tokens: Vec<_> = rows.map(|row| (row.keys.concat(), row.generated_tokens)).collect();
    tokens.sort();
    tokens
}

fn expected(tokens: &[(&str, u64)]) -> Vec<(String, u64)> {
    tokens.iter().map(|&(id, tokens)| (id.to_owned(), tokens)).collect()
}

const ALL: [(&str, u64); 4] = [("done", 10), ("early", 5), ("late", 40), ("running", 20)];

#[test]
fn a_deleted_ledger_is_written_again_whole() {
    for suffixes in [&["", "-wal", "-shm", ".lock"][..], &[""], &["", "-wal"]] {
        let mut server = Server::new();
        for suffix in suffixes {
            fs::remove_file(server.at(&format!("ledger.db{suffix}"))).expect("it is there");
        }
        server.go_on();
        server.is_in_order(1);
        assert_eq!(tokens(&server.path), expected(&ALL), "{suffixes:?}");
        // It is this server's alone as before, and whole without it.
        assert!(matches!(Ledger::open(&server.path, "m"), Err(LedgerError::InUse { .. })));
        drop(server.ledger);
        let names = fs::read_dir(server.directory.path()).expect("it can be listed");
        let mut names: Vec<_> = names.map(|entry| entry.expect("a name").file_name()).collect();
        names.sort();
        assert_eq!(names, ["ledger.db", "ledger.db.lock"]);
        assert_eq!(tokens(&server.path), expected(&ALL));
    }
}

#[test]
fn a_moved_ledger_keeps_what_ended_and_a_new_one_gets_the_rest() {
    let mut server = Server::new();
    let moved = server.at("moved.db");
    fs::rename(&server.path, &moved).expect("it can be renamed");
    // A call without entries looks after the file, as time does.
    server.record(Vec::new());
    server.go_on();
    server.is_in_order(1);
    assert_eq!(tokens(&moved), expected(&[("done", 10), ("early", 5)]));
    assert_eq!(tokens(&server.path), expected(&[("late", 40), ("running", 20)]));
    assert_eq!(ends(&server.path).len(), 2);
    assert!(ends(&server.path).iter().all(|(_, end)| end.as_deref() == Some("stop")));
}

#[test]
fn what_was_written_is_added_to_the_file_that_came_in_its_place() {
    // An older copy of the same ledger, and one of another server's.
    for own in [true, false] {
        let mut server = Server::new();
        let other = server.at("other.db");
        if own {
            let copied = rusqlite::Connection::open(&server.path).expect("it opens");
            let name = other.to_str().expect("UTF-8");
            copied.execute("VACUUM INTO ?1", [name]).expect("it is copied");
        } else {
            let mut foreign = sink(&other);
            foreign.record(&mut vec![entry(7, label("c", "foreign", 9), 3)]);
        }
        server.record(vec![entry(1, None, 15), entry(3, label("a", "more", 5), 2)]);
        fs::rename(&other, &server.path).expect("it can be replaced");
        server.go_on();
        server.is_in_order(1);
        let mut all = vec![("done", 10), ("late", 40), ("more", 2), ("running", 20)];
        all.insert(1, if own { ("early", 5) } else { ("foreign", 3) });
        assert_eq!(tokens(&server.path), expected(&all), "own: {own}");
    }
}

#[test]
fn a_foreign_file_in_its_place_is_left_alone_until_it_goes() {
    let mut server = Server::new();
    let foreign = "no database at all, but somebody's work".repeat(20);
    fs::remove_file(&server.path).expect("it is there");
    fs::write(&server.path, &foreign).expect("it can be written");
    server.go_on();
    assert!(server.ledger.health().failing());
    assert_eq!(fs::read_to_string(&server.path).expect("it is text"), foreign);
    fs::remove_file(&server.path).expect("it is there");
    server.record(Vec::new());
    server.is_in_order(1);
    assert_eq!(tokens(&server.path), expected(&ALL));
}

#[test]
fn a_truncated_ledger_is_set_aside_and_what_runs_is_not_lost() {
    let mut server = Server::new();
    fs::File::create(&server.path).expect("it can be truncated");
    server.record(Vec::new());
    server.go_on();
    server.is_in_order(1);
    assert_eq!(tokens(&server.path), expected(&[("late", 40), ("running", 20)]));
    let aside = fs::read_dir(server.directory.path()).expect("it can be listed");
    let aside = aside.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    assert!(aside.into_iter().any(|name| name.starts_with("ledger.db.damaged-")));
}

#[test]
fn a_log_or_a_lock_that_is_deleted_is_made_again() {
    for suffix in ["-wal", ".lock"] {
        let mut server = Server::new();
        let file = server.at(&format!("ledger.db{suffix}"));
        fs::remove_file(&file).expect("it is there");
        server.go_on();
        server.is_in_order(1);
        assert!(file.exists());
        assert_eq!(tokens(&server.path), expected(&ALL), "{suffix}");
        assert!(matches!(Ledger::open(&server.path, "m"), Err(LedgerError::InUse { .. })));
    }
}
