//! Why a checkpoint cannot be used.

use std::{collections::BTreeMap, path::PathBuf};

use sconce_kernels::{
    KernelError,
    mapped::{self, MappedError},
};

/// An error of reading a model directory.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error("cannot read {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason; in the message, so not in the chain of sources too.
        reason: std::io::Error,
    },
    /// Git LFS left a pointer where the file should be.
    #[error("{}", mapped::lfs_advice(path))]
    LfsPointer {
        /// The file.
        path: PathBuf,
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
        field: String,
        /// Its value.
        value: String,
        /// What would be accepted.
        accepted: String,
    },
    /// Tensors that are missing, do not fit, or are not used, all of them.
    #[error("the checkpoint does not fit its config.json:\n  {}", first_lines(problems))]
    Tensors {
        /// One line a tensor.
        problems: Vec<String>,
    },
    /// There is no checkpoint.
    #[error(
        "{} holds neither model.safetensors nor model.safetensors.index.json{hint}",
        path.display()
    )]
    NoCheckpoint {
        /// The directory.
        path: PathBuf,
        /// What it holds instead and what would help, if anything is known.
        hint: String,
    },
    /// A checkpoint file is damaged.
    #[error(transparent)]
    Mapped(#[from] MappedError),
    /// A weight could not be packed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// A message's worth of problems: a large model has a thousand tensors.
const MAX_LINES: usize = 40;

/// The first problems; of those that differ in numbers alone the first one where there are
/// more than a few, since with a hundred experts in each layer one mistake concerns them all.
fn first_lines(problems: &[String]) -> String {
    const FEW: usize = 8;
    let kind = |problem: &str| problem.split(|c: char| c.is_ascii_digit()).collect::<String>();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    problems.iter().for_each(|problem| *counts.entry(kind(problem)).or_default() += 1);
    let (mut lines, mut told) = (Vec::new(), 0);
    for problem in problems {
        if lines.len() == MAX_LINES {
            break;
        }
        match counts.get_mut(&kind(problem)) {
            // Counted before.
            Some(0) => {}
            Some(count) if *count > FEW => {
                lines.push(format!("{problem}, and so for {} with other numbers", *count - 1));
                told += std::mem::take(count);
            }
            _ => {
                lines.push(problem.clone());
                told += 1;
            }
        }
    }
    let mut text = lines.join("\n  ");
    if told < problems.len() {
        text += &format!("\n  and {} more", problems.len() - told);
    }
    text
}
