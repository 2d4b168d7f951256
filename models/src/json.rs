//! JSON files of a model directory.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::ModelError;

/// Real ones are below a few MiB; more is not read into memory.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a file; an error names the field that does not fit.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let invalid = |reason| ModelError::Json { path: path.to_owned(), reason };
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > MAX_BYTES {
        return Err(invalid(format!("{len} bytes; at most {MAX_BYTES} are read")));
    }
    let text = std::fs::read(path).map_err(io)?;
    let mut deserializer = serde_json::Deserializer::from_slice(&text);
    let value = serde_path_to_error::deserialize(&mut deserializer);
    let value = value.map_err(|error| invalid(error.to_string()))?;
    deserializer.end().map_err(|error| invalid(error.to_string()))?;
    Ok(value)
}
