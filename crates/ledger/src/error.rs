//! What can be wrong with a ledger.

use std::{io, path::Path, path::PathBuf};

use thiserror::Error;

use crate::ledger::SCHEMA_VERSION;

/// Why a ledger cannot be opened or read.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// Another process writes it.
    #[error(
        "{} is in use by another process{}, probably a Sconce server: stop that one, or keep \
         this one's ledger in another file",
        path.display(),
        if holder.is_empty() { String::new() } else { format!(" (id {holder})") }
    )]
    InUse {
        /// The ledger.
        path: PathBuf,
        /// The process's id, as it wrote it into the lock file; empty if it cannot be read.
        holder: String,
    },
    /// It is a pipe, a device or a folder.
    #[error("{} is no regular file: a ledger is one", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// It was written by a later version of Sconce.
    #[error(
        "{} has schema version {found}, and this version of Sconce knows {SCHEMA_VERSION}: use \
         the version that wrote it, or a later one",
        path.display()
    )]
    Newer {
        /// The ledger.
        path: PathBuf,
        /// Its schema's version.
        found: i64,
    },
    /// It is a database of something else.
    #[error("{} is no ledger of Sconce: name one, or a file that is not there yet", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// SQLite cannot keep a write-ahead log there.
    #[error(
        "{} cannot have a write-ahead log (SQLite answered {mode:?}): keep it on a local disk",
        path.display()
    )]
    NoWriteAheadLog {
        /// The ledger.
        path: PathBuf,
        /// The journal mode that SQLite has taken instead.
        mode: String,
    },
    /// SQLite may not make the files that it reads the ledger with.
    #[error(
        "{} can be read while a server has it open, or by a user who may write in its folder",
        path.display()
    )]
    ReadOnlyFolder {
        /// The ledger.
        path: PathBuf,
    },
    /// SQLite failed.
    #[error("{}: {source}", path.display())]
    Sqlite {
        /// The ledger.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file or its lock cannot be opened.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no thread for the writer.
    #[error("the ledger's thread could not be started: {0}")]
    Thread(io::Error),
}

pub(crate) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    |source| LedgerError::Io { path: path.to_owned(), source }
}

pub(crate) fn sqlite_at(path: &Path) -> impl Fn(rusqlite::Error) -> LedgerError + use<> {
    let path = path.to_owned();
    move |source| LedgerError::Sqlite { path: path.clone(), source }
}
