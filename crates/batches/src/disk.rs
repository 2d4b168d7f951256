//! Writing so that a file is there whole or as it was.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use tempfile::NamedTempFile;

/// Why something could not be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A state that is not one.
    #[error("{}: {source}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// There is nothing of this id, or it is another tenant's.
    #[error("there is no {what} {id:?}")]
    NotFound {
        /// A file or a batch.
        what: &'static str,
        /// As it was asked for.
        id: String,
    },
    /// A file that a batch needs.
    #[error("{id} is the input of {batch}, which has not ended")]
    InUse {
        /// The file.
        id: String,
        /// The batch.
        batch: String,
    },
    /// A limit of the store.
    #[error("{what}: at most {most} of a tenant are kept here")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        most: u64,
    },
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { path, source }
}

/// A file that will be moved to its place in the same folder.
pub(crate) fn temporary(folder: &Path) -> Result<NamedTempFile, StoreError> {
    NamedTempFile::with_prefix_in(".half-", folder).map_err(io_error(folder))
}

/// Moves a file that is written to its place, where it stays even if the machine fails.
pub(crate) fn place(file: NamedTempFile, path: &Path) -> Result<(), StoreError> {
    file.as_file().sync_all().map_err(io_error(path))?;
    file.persist(path).map_err(|error| io_error(path)(error.error))?;
    // The name is the folder's.
    if let Some(folder) = path.parent()
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
    Ok(())
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = temporary(folder)?;
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| StoreError::Damaged { path: path.to_owned(), source })?;
    file.write_all(&text).map_err(io_error(path))?;
    place(file, path)
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, StoreError> {
    let text = fs::read(path).map_err(io_error(path))?;
    serde_json::from_slice(&text)
        .map_err(|source| StoreError::Damaged { path: path.to_owned(), source })
}
