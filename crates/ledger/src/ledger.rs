//! The file: who may write it, and what is in it.

use std::{
    fs::{File, TryLockError},
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use crate::{
    LedgerError, LedgerSink,
    error::{io_at, sqlite_at},
    writer::Writer,
};

/// The version of [`SCHEMA`], kept as the file's `user_version`.
pub(crate) const SCHEMA_VERSION: i64 = 1;

/// "Scnc": tells a ledger from other SQLite files.
pub(crate) const APPLICATION_ID: i64 = 0x5363_6e63;

/// A request's `id` is its run's number and, in the lower bits, its number in the run: in
/// 63 bits, 8 million starts of a server and a trillion requests in each.
pub(crate) const REQUEST_BITS: u32 = 40;

/// How long a connection waits for another one that writes. Servers exclude each other, so
/// only people do that, and recovery after a kill.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Of the two indexes one is for usage of a time, tenant by tenant, and one is short and
/// finds what a killed server has left unfinished.
const SCHEMA: &str = "
    CREATE TABLE runs (
        run INTEGER PRIMARY KEY CHECK (run BETWEEN 1 AND 8388607),
        started_unix_ms INTEGER NOT NULL,
        model TEXT NOT NULL,
        version TEXT NOT NULL
    ) STRICT;
    CREATE TABLE tenants (
        tenant INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE requests (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL AS (id >> 40) VIRTUAL,
        tenant INTEGER NOT NULL REFERENCES tenants,
        request_id TEXT NOT NULL,
        arrived_unix_ms INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        generated_tokens INTEGER NOT NULL,
        queue_ns INTEGER NOT NULL,
        device_ns INTEGER NOT NULL,
        block_ns INTEGER NOT NULL,
        energy_uj INTEGER,
        price_nano INTEGER,
        end TEXT
    ) STRICT;
    CREATE INDEX requests_by_arrival ON requests (tenant, arrived_unix_ms);
    CREATE INDEX requests_unfinished ON requests (end) WHERE end IS NULL;
";

/// A ledger that this process alone may write; others may read it.
#[derive(Debug)]
pub struct Ledger {
    pub(crate) path: PathBuf,
    pub(crate) connection: Connection,
    pub(crate) run: Run,
    pub(crate) lock: File,
    /// Tells whether the file is still there once its path leads elsewhere. Closed after the
    /// connection: to close any handle of a file gives up a process's locks on it.
    pub(crate) file: File,
}

/// What a server writes from its start to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) number: i64,
    pub(crate) started_unix_ms: i64,
    pub(crate) model: String,
}

/// The run that an opened ledger is to have.
pub(crate) enum Begin<'a> {
    /// A new one of this model; what earlier ones left unfinished is interrupted.
    New(&'a str),
    /// This one goes on, if the file has it.
    Continue(&'a Run),
}

impl Ledger {
    /// Opens the ledger for a server that serves `model`, and makes it if there is none.
    /// Nobody else can until this and the sink made of it are dropped: `<path>.lock` is
    /// locked, and stays there afterwards. Requests that an earlier server has left
    /// unfinished get the end `interrupted`.
    ///
    /// # Errors
    /// If another process has it open, if it is no ledger or a later version's, or if the
    /// files cannot be opened and written.
    pub fn open(path: &Path, model: &str) -> Result<Self, LedgerError> {
        Self::begin(path, None, &Begin::New(model))
    }

    /// The same for any run, with a lock that is held already.
    pub(crate) fn begin(
        path: &Path,
        held: Option<File>,
        run: &Begin<'_>,
    ) -> Result<Self, LedgerError> {
        // The file first, and the lock beside where it really is: two links to one ledger
        // have one lock.
        match File::create_new(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_at(path)(error)),
        }
        let path = path.canonicalize().map_err(io_at(path))?;
        check_is_file(&path)?;
        let lock = match held {
            Some(lock) => lock,
            None => lock(&path)?,
        };
        let file = File::open(&path).map_err(io_at(&path))?;
        let failed = sqlite_at(&path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags).map_err(&failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(&failed)?;
        let is_new = check(&connection, &path)? == Contents::Nothing;
        let mode: String = connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
            .map_err(&failed)?;
        if mode != "wal" {
            return Err(LedgerError::NoWriteAheadLog { path, mode });
        }
        // The log is not synced at each commit, only before it is copied into the file:
        // what was written outlives the process either way.
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(&failed)?;
        let run = begin_run(&mut connection, is_new, run).map_err(&failed)?;
        Ok(Self { path, connection, run, lock, file })
    }

    /// Starts the thread that writes, and returns what hands entries to it.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn sink(self) -> Result<LedgerSink, LedgerError> {
        LedgerSink::start(Writer::new(self))
    }
}

/// What a file holds.
#[derive(PartialEq, Eq)]
pub(crate) enum Contents {
    Nothing,
    Ledger,
}

/// Checks that a file holds a ledger that this version knows, or nothing.
pub(crate) fn check(connection: &Connection, path: &Path) -> Result<Contents, LedgerError> {
    let query = "SELECT (SELECT application_id FROM pragma_application_id),
                        (SELECT user_version FROM pragma_user_version),
                        (SELECT count(*) FROM sqlite_schema)";
    let found = connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    match found.map_err(sqlite_at(path))? {
        (0, 0, 0) => Ok(Contents::Nothing),
        (APPLICATION_ID, SCHEMA_VERSION, _) => Ok(Contents::Ledger),
        (APPLICATION_ID, found, _) if found > SCHEMA_VERSION => {
            Err(LedgerError::Newer { path: path.to_owned(), found })
        }
        _ => Err(LedgerError::Foreign { path: path.to_owned() }),
    }
}

/// Refuses what SQLite would wait for or misread: pipes, devices, folders.
pub(crate) fn check_is_file(path: &Path) -> Result<(), LedgerError> {
    match path.metadata() {
        Ok(found) if found.is_file() => Ok(()),
        Ok(_) => Err(LedgerError::NotAFile { path: path.to_owned() }),
        Err(error) => Err(io_at(path)(error)),
    }
}

/// A file that lies beside the ledger.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Locks the ledger for this process, which writes its id into the lock.
fn lock(path: &Path) -> Result<File, LedgerError> {
    let name = beside(path, ".lock");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&name)
        .map_err(io_at(&name))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Without the id the error is less helpful, and no less true.
            let _ = file.take(20).read_to_string(&mut holder);
            return Err(LedgerError::InUse { path: path.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(io_at(&name)(error)),
    }
    file.set_len(0).map_err(io_at(&name))?;
    write!(file, "{}", std::process::id()).map_err(io_at(&name))?;
    Ok(file)
}

/// Finds the run that goes on, or ends what earlier runs have left and begins one.
fn begin_run(
    connection: &mut Connection,
    is_new: bool,
    begin: &Begin<'_>,
) -> rusqlite::Result<Run> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if is_new {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    let model = match begin {
        Begin::New(model) => *model,
        Begin::Continue(run) => {
            let query = "SELECT count(*) FROM runs
                WHERE run = ?1 AND started_unix_ms = ?2 AND model = ?3";
            let params = params![run.number, run.started_unix_ms, run.model];
            if transaction.query_row(query, params, |row| row.get::<_, i64>(0))? > 0 {
                transaction.commit()?;
                return Ok((*run).clone());
            }
            &run.model
        }
    };
    transaction.execute("UPDATE requests SET end = 'interrupted' WHERE end IS NULL", [])?;
    let (number, started_unix_ms) = transaction.query_row(
        "INSERT INTO runs (started_unix_ms, model, version)
         VALUES (CAST(round(unixepoch('subsec') * 1000) AS INTEGER), ?1, ?2)
         RETURNING run, started_unix_ms",
        [model, env!("CARGO_PKG_VERSION")],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    transaction.commit()?;
    Ok(Run { number, started_unix_ms, model: model.to_owned() })
}
