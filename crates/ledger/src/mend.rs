//! A ledger's file that somebody else deleted, moved, replaced or damaged.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, params};

use crate::{
    Ledger, LedgerError,
    error::{io_at, sqlite_at},
    ledger::{APPLICATION_ID, BUSY_TIMEOUT, Begin, Run, beside, check_is_file},
};

/// What has become of the files of an open ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing is at its path.
    Missing,
    /// Another file is.
    Replaced,
    /// It is shorter than it was, or no database any more.
    Damaged,
    /// Its write-ahead log or its lock is gone: what others read or lock is not ours.
    Detached,
}

/// The files that a ledger was opened with.
#[derive(Debug)]
pub(crate) struct Files {
    ledger: Option<FileId>,
    log: Option<FileId>,
    lock: Option<FileId>,
    /// The longest that the ledger was seen to be.
    len: u64,
}

/// A file whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId(u64, u64);

/// `None` where the system does not tell.
fn id(metadata: &Metadata) -> Option<FileId> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        Some(FileId(metadata.dev(), metadata.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = metadata;
        None
    }
}

/// Whether an open file has no name any more, so that it goes with its last handle.
fn is_deleted(file: &File) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        false
    }
}

impl Files {
    pub(crate) fn of(ledger: &Ledger) -> Self {
        let at = |path: &Path| path.metadata().ok().and_then(|metadata| id(&metadata));
        let own = ledger.file.metadata().ok();
        Self {
            ledger: own.as_ref().and_then(id),
            log: at(&beside(&ledger.path, "-wal")),
            lock: ledger.lock.metadata().ok().and_then(|metadata| id(&metadata)),
            len: own.map_or(0, |metadata| metadata.len()),
        }
    }

    /// Looks whether all is where it was.
    pub(crate) fn look(&mut self, path: &Path) -> Option<Trouble> {
        let found = match path.metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(Trouble::Missing),
            // A folder that cannot be looked into at the moment tells nothing.
            Err(_) => return None,
        };
        if id(&found) != self.ledger {
            return Some(Trouble::Replaced);
        }
        // One that was vacuumed is shorter, and says so itself.
        if found.len() < self.len && !is_whole(path, found.len()) {
            return Some(Trouble::Damaged);
        }
        self.len = found.len();
        let is_elsewhere = |suffix: &str, known: Option<FileId>| {
            known.is_some()
                && match beside(path, suffix).metadata() {
                    Ok(found) => id(&found) != known,
                    Err(error) => error.kind() == io::ErrorKind::NotFound,
                }
        };
        (is_elsewhere("-wal", self.log) || is_elsewhere(".lock", self.lock))
            .then_some(Trouble::Detached)
    }
}

/// Whether a file is as long as its header says (SQLite's file format, 1.3).
fn is_whole(path: &Path, len: u64) -> bool {
    let mut header = [0; 100];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    // 1 stands for 65,536, which does not fit.
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 1 << 16,
        page => u64::from(page),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    read.is_ok() && pages > 0 && page * u64::from(pages) == len
}

/// Goes on with a run after a [`mend`] that had closed its ledger and then failed.
pub(crate) fn resume(path: &Path, run: &Run) -> Result<Ledger, LedgerError> {
    let mut opened = Ledger::begin(path, None, &Begin::Continue(run))?;
    let copy = beside(&opened.path, ".mending");
    if let Ok(saved) = copy.metadata() {
        let is_restored = opened.path.metadata().is_ok_and(|own| id(&own) == id(&saved));
        if !is_restored {
            add(&mut opened, &copy, run.number).map_err(sqlite_at(path))?;
        }
        let _ = fs::remove_file(&copy);
    }
    Ok(opened)
}

/// Puts a ledger in order again; returns what was done, for the log. If that fails before
/// the ledger is closed, it is as it was; after that [`resume`] goes on.
pub(crate) fn mend(
    ledger: &mut Option<Ledger>,
    trouble: Trouble,
    files: &Files,
) -> Result<String, LedgerError> {
    let Some(old) = ledger.as_mut() else { return Ok(String::new()) };
    let path = old.path.clone();
    let failed = sqlite_at(&path);
    if trouble == Trouble::Replaced {
        check_header(&path)?;
    }
    old.connection.busy_timeout(BUSY_TIMEOUT).map_err(&failed)?;
    let is_deleted = is_deleted(&old.file);
    let copy = beside(&path, ".mending");
    match trouble {
        Trouble::Damaged => {}
        // Nothing else has what is in it.
        Trouble::Missing | Trouble::Replaced if is_deleted => save(old, &copy)?,
        // It lives on under another name: it keeps what has ended, and what runs goes on here.
        Trouble::Missing | Trouble::Replaced => {
            let unfinished = "DELETE FROM requests WHERE end IS NULL AND id >> 40 = ?1";
            old.connection.execute(unfinished, [old.run.number]).map_err(&failed)?;
            checkpoint(&old.connection).map_err(&failed)?;
        }
        Trouble::Detached => checkpoint(&old.connection).map_err(&failed)?,
    }
    // From here on there is nothing to go back to. Closed before another connection opens
    // files of the same names.
    let Some(Ledger { connection, run, lock, file, .. }) = ledger.take() else {
        return Ok(String::new());
    };
    drop((connection, file));
    let lock_path = beside(&path, ".lock");
    let is_own_lock = lock_path.metadata().is_ok_and(|found| id(&found) == files.lock);
    let lock = Some(lock).filter(|_| is_own_lock);
    if trouble == Trouble::Damaged {
        let aside = set_aside(&path).map_err(io_at(&path))?;
        *ledger = Some(Ledger::begin(&path, lock, &Begin::New(&run.model))?);
        return Ok(format!(
            "it was damaged and is now {}; another was begun, which lacks what had ended",
            aside.display()
        ));
    }
    // What is left of the old file's log must not be taken for the new one's.
    let log = beside(&path, "-wal");
    if trouble != Trouble::Detached && log.metadata().is_ok_and(|found| id(&found) == files.log) {
        fs::remove_file(&log).map_err(io_at(&log))?;
        // It belongs to the log; SQLite makes it anew.
        let _ = fs::remove_file(beside(&path, "-shm"));
    }
    // Never in the place of a file that has come meanwhile.
    let is_restored = trouble == Trouble::Missing && is_deleted && restore(&copy, &path)?;
    let done = match trouble {
        _ if is_restored => "it was deleted; it was written again whole",
        Trouble::Missing if !is_deleted => {
            "it was moved away; another was begun, for what has not ended"
        }
        Trouble::Missing | Trouble::Replaced if is_deleted => {
            "it was replaced; what this server had written was added to the new file"
        }
        Trouble::Missing | Trouble::Replaced => {
            "it was replaced; what has not ended goes on in the new file"
        }
        Trouble::Detached | Trouble::Damaged => "its log or its lock was deleted; both are back",
    };
    let mut opened = Ledger::begin(&path, lock, &Begin::Continue(&run))?;
    if is_deleted && !is_restored && trouble != Trouble::Detached {
        add(&mut opened, &copy, run.number).map_err(&failed)?;
    }
    let _ = fs::remove_file(&copy);
    *ledger = Some(opened);
    Ok(done.to_owned())
}

/// Refuses a file that is plainly something else before anything is given up for it. SQLite
/// itself would look for its log, and find ours.
fn check_header(path: &Path) -> Result<(), LedgerError> {
    check_is_file(path)?;
    let mut header = Vec::new();
    let file = File::open(path).map_err(io_at(path))?;
    file.take(100).read_to_end(&mut header).map_err(io_at(path))?;
    let application = header
        .get(68..72)
        .and_then(|bytes| Some(i64::from(u32::from_be_bytes(bytes.try_into().ok()?))));
    let is_ours = header.starts_with(b"SQLite format 3\0")
        && application.is_some_and(|id| [0, APPLICATION_ID].contains(&id));
    if is_ours || header.is_empty() {
        return Ok(());
    }
    Err(LedgerError::Foreign { path: path.to_owned() })
}

/// Copies a ledger whose file has no name any more.
fn save(ledger: &Ledger, copy: &Path) -> Result<(), LedgerError> {
    // An earlier try may have left one.
    let _ = fs::remove_file(copy);
    let name = copy.to_string_lossy();
    let failed = sqlite_at(&ledger.path);
    ledger.connection.execute("VACUUM INTO ?1", [&*name]).map_err(failed)?;
    let permissions =
        ledger.file.metadata().and_then(|before| fs::set_permissions(copy, before.permissions()));
    permissions.map_err(io_at(copy))
}

/// Gives a copy the ledger's name, unless there is a file of that name.
fn restore(copy: &Path, path: &Path) -> Result<bool, LedgerError> {
    match fs::hard_link(copy, path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        // A file system without links.
        Err(_) => fs::rename(copy, path).map(|()| true).map_err(io_at(path)),
    }
}

/// Copies the write-ahead log into the file, all of it.
fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    let query = "PRAGMA wal_checkpoint(TRUNCATE)";
    let is_busy: bool = connection.query_row(query, [], |row| row.get(0))?;
    if is_busy {
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        return Err(rusqlite::Error::SqliteFailure(busy, None));
    }
    Ok(())
}

/// Adds a run's requests from a copy. Those that the ledger has already (it may be an older
/// copy of the same file) get what was used since.
fn add(ledger: &mut Ledger, copy: &Path, run: i64) -> rusqlite::Result<()> {
    let connection = &ledger.connection;
    connection.execute("ATTACH ?1 AS copy", [&*copy.to_string_lossy()])?;
    let copied = connection.execute_batch("BEGIN IMMEDIATE").and_then(|()| {
        connection.execute(
            "INSERT INTO tenants (name) SELECT name FROM copy.tenants WHERE true
             ON CONFLICT DO NOTHING",
            [],
        )?;
        connection.execute(
            "INSERT OR REPLACE INTO requests (id, tenant, request_id, arrived_unix_ms,
                prompt_tokens, cached_tokens, generated_tokens, queue_ns, device_ns, block_ns,
                energy_uj, price_nano, end)
             SELECT (?2 << 40) | (id & 0xffffffffff),
                (SELECT tenant FROM tenants WHERE name = was.name),
                request_id, arrived_unix_ms, prompt_tokens, cached_tokens, generated_tokens,
                queue_ns, device_ns, block_ns, energy_uj, price_nano, end
             FROM copy.requests JOIN copy.tenants AS was USING (tenant)
             WHERE id >> 40 = ?1",
            params![run, ledger.run.number],
        )?;
        connection.execute_batch("COMMIT")
    });
    if copied.is_err() {
        // Nothing is begun if that was what failed.
        let _ = connection.execute_batch("ROLLBACK");
    }
    connection.execute("DETACH copy", [])?;
    copied
}

/// Renames a file that cannot be used, and its log.
fn set_aside(path: &Path) -> io::Result<std::path::PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis());
    let aside = beside(path, &format!(".damaged-{now}"));
    for suffix in ["-wal", "-shm"] {
        match fs::rename(beside(path, suffix), beside(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, &aside)?;
    Ok(aside)
}
