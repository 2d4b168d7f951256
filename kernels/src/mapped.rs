//! Checkpoint files, mapped into memory.
#![expect(
    unsafe_code,
    reason = "a mapped file is memory that others could change"
)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors::MmapedSafetensors};

/// Why a checkpoint file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MappedError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Header and contents do not agree: truncated, overlapping or lying.
    #[error(
        "{} is not a whole safetensors file: {reason}; it may be damaged or half downloaded",
        path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A tensor is not in the files, or its dtype is not supported.
    #[error("tensor {name}: {source}")]
    Tensor {
        /// The tensor.
        name: String,
        /// candle's reason.
        source: candle_core::Error,
    },
}

/// Safetensors files, mapped: a tensor is read from disk when it is first
/// touched, and its pages belong to the system's cache.
///
/// A file's header is checked against its length when it is opened, so a
/// truncated file is an error here. A file that is *shortened while mapped*
/// ends the process with SIGBUS when a missing page is touched, as with any
/// mapped file: replace checkpoints by renaming, never by writing over them.
pub struct MappedSafetensors {
    files: MmapedSafetensors,
}

impl MappedSafetensors {
    /// Opens and checks files; of a name in several, the last file's counts.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it claims.
    pub fn open(paths: &[PathBuf]) -> Result<Self, MappedError> {
        for path in paths {
            check(path)?;
        }
        // SAFETY: the mapping is read-only and private to this process; that
        // nobody shortens the files is the documented condition of this type.
        let files = unsafe { MmapedSafetensors::multi(paths) };
        let files = files.map_err(|error| MappedError::Invalid {
            path: paths.first().cloned().unwrap_or_default(),
            reason: error.to_string(),
        })?;
        Ok(Self { files })
    }

    /// A tensor's dtype and shape, if the files hold it.
    #[must_use]
    pub fn describe(&self, name: &str) -> Option<(Option<DType>, Vec<usize>)> {
        let view = self.files.get(name).ok()?;
        Some((DType::try_from(view.dtype()).ok(), view.shape().to_vec()))
    }

    /// The names of all tensors.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.files
            .tensors()
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }

    /// Copies a tensor out of its file, in its own dtype.
    ///
    /// # Errors
    /// No such tensor, or a dtype that candle does not have.
    pub fn load(&self, name: &str) -> Result<Tensor, MappedError> {
        self.files
            .load(name, &Device::Cpu)
            .map_err(|source| MappedError::Tensor {
                name: name.to_owned(),
                source,
            })
    }
}

/// Mapping an empty file or a folder fails in ways that name neither.
fn check(path: &Path) -> Result<(), MappedError> {
    let io = |source| MappedError::Io {
        path: path.to_owned(),
        source,
    };
    let invalid = |reason: &str| MappedError::Invalid {
        path: path.to_owned(),
        reason: reason.into(),
    };
    let file = std::fs::File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(invalid("it is not a file"));
    }
    if metadata.len() < 8 {
        return Err(invalid("it is shorter than a header's length"));
    }
    // SAFETY: as in `open`.
    let parsed = unsafe { MmapedSafetensors::new(path) };
    parsed.map(|_| ()).map_err(|error| {
        let text = error.to_string();
        // candle adds the path, which this error names already.
        invalid(text.lines().next().unwrap_or("its header cannot be read"))
    })
}
