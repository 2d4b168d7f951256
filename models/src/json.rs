//! JSON files of a model directory.

use std::path::Path;

use sconce_kernels::mapped;
use serde::de::DeserializeOwned;

use crate::ModelError;

/// Real ones are below a few MiB; more is not read into memory.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a file; an error names the field that does not fit.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let io = |reason| ModelError::Io { path: path.to_owned(), reason };
    let invalid = |reason| ModelError::Json { path: path.to_owned(), reason };
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > MAX_BYTES {
        return Err(invalid(format!("{len} bytes; at most {MAX_BYTES} are read")));
    }
    let text = std::fs::read(path).map_err(io)?;
    if text.starts_with(mapped::LFS_POINTER) {
        return Err(ModelError::LfsPointer { path: path.to_owned() });
    }
    let mut deserializer = serde_json::Deserializer::from_slice(&text);
    let value = serde_path_to_error::deserialize(&mut deserializer);
    let value = value.map_err(|error| invalid(error.to_string()))?;
    deserializer.end().map_err(|error| invalid(error.to_string()))?;
    Ok(value)
}
