//! What can be wrong with a file of tenants.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::file::MAX_FILE_BYTES;

/// Why a text does not say who the tenants are. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum InvalidTenants {
    /// It is too long to be read.
    #[error("it is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    /// It is no TOML.
    #[error("line {line}, column {column}: {reason}")]
    Syntax {
        /// Where.
        line: usize,
        /// Where, in characters.
        column: usize,
        /// What is wrong, and what would be accepted.
        reason: String,
    },
    /// A field is unknown, or its value is not accepted.
    #[error("line {line}, column {column}: {field}: {reason}")]
    Field {
        /// Where.
        line: usize,
        /// Where, in characters.
        column: usize,
        /// The field's path, as in `tenants.acme.weight`.
        field: String,
        /// What is wrong, and what would be accepted.
        reason: String,
    },
    /// A key that would speak for two.
    #[error("{digest} is in {first} and again in {second}; a key may be listed once")]
    SharedKey {
        /// The key's digest.
        digest: String,
        /// The path of a list that holds it.
        first: String,
        /// The path of the list that holds it too.
        second: String,
    },
    /// No request could be served.
    #[error(
        "no tenant has both a key and a model that it may use, so every request would be \
         refused; `sconce tenant add NAME` adds a tenant with a key"
    )]
    NoUsableTenant,
    /// More is promised than there is.
    #[error("the min_share of all tenants add up to {sum}; they may add up to 1 at most")]
    MinShares {
        /// The sum.
        sum: f64,
    },
}

/// Why a file of tenants could not be read or edited. A file that could not be edited is
/// as it was.
#[derive(Debug, Error)]
pub enum TenantsError {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// What it says is not valid.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: InvalidTenants,
    },
    /// What was to be written is not valid.
    #[error("{} is left as it was, the change would make it invalid: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// The reason; its line and column are those of the changed text.
        reason: InvalidTenants,
    },
    /// A tenant to be added is there already.
    #[error("{}: there is a tenant {name:?} already; names are given once", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
        /// The tenant's name.
        name: String,
    },
    /// A tenant to be changed is not there.
    #[error("{}: there is no tenant {name:?}", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The tenant's name.
        name: String,
    },
}
