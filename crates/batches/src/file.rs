//! Uploaded and written files.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use utoipa::ToSchema;

/// What is known of a file, as OpenAI's API shows it. Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoredFile {
    /// `file-…`
    pub id: String,
    object: String,
    /// Its length.
    pub bytes: u64,
    /// When it came.
    pub created_at: u64,
    /// When it may go; never by itself here.
    #[schema(required)]
    expires_at: Option<u64>,
    /// What its client calls it.
    pub filename: String,
    /// What it is for.
    pub purpose: String,
    status: String,
}

impl StoredFile {
    pub(crate) fn new(id: String, bytes: u64, now: u64, filename: String, purpose: &str) -> Self {
        Self {
            id,
            object: "file".to_owned(),
            bytes,
            created_at: now,
            expires_at: None,
            filename,
            purpose: purpose.to_owned(),
            status: "processed".to_owned(),
        }
    }
}

/// A file that is being received; gone unless it is kept.
#[derive(Debug)]
pub struct Upload {
    pub(crate) file: NamedTempFile,
    pub(crate) folder: PathBuf,
    pub(crate) bytes: u64,
}

impl Upload {
    /// Bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.file.write(bytes)?;
        self.bytes += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
