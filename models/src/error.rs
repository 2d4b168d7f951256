//! Why a checkpoint cannot be used.

use std::path::PathBuf;

use sconce_kernels::{KernelError, mapped::MappedError};

/// An error of reading a model directory.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A JSON file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What does not fit, and where.
        reason: String,
    },
    /// A field of config.json has a value that cannot be served.
    #[error("config.json: {field} is {value}, but must be {accepted}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What would be accepted.
        accepted: String,
    },
    /// Tensors that are missing or do not fit, all of them.
    #[error("the checkpoint does not fit its config.json:\n  {}", problems.join("\n  "))]
    Tensors {
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// There is no checkpoint.
    #[error(
        "{} holds neither model.safetensors nor model.safetensors.index.json",
        path.display()
    )]
    NoCheckpoint {
        /// The directory.
        path: PathBuf,
    },
    /// A checkpoint file is damaged.
    #[error(transparent)]
    Mapped(#[from] MappedError),
    /// A weight could not be packed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
