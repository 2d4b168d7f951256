//! Checkpoint files, mapped into memory.
#![expect(unsafe_code, reason = "a mapped file is memory that others could change")]

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
        self.files.tensors().into_iter().map(|(name, _)| name).collect()
    }

    /// Copies a tensor out of its file, in its own dtype.
    ///
    /// # Errors
    /// No such tensor, or a dtype that candle does not have.
    pub fn load(&self, name: &str) -> Result<Tensor, MappedError> {
        self.files
            .load(name, &Device::Cpu)
            .map_err(|source| MappedError::Tensor { name: name.to_owned(), source })
    }
}

/// Mapping an empty file or a folder fails in ways that name neither.
fn check(path: &Path) -> Result<(), MappedError> {
    let io = |source| MappedError::Io { path: path.to_owned(), source };
    let invalid =
        |reason: &str| MappedError::Invalid { path: path.to_owned(), reason: reason.into() };
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
        let error = match error {
            // This error names the path already.
            candle_core::Error::WithPath { inner, .. } => *inner,
            other => other,
        };
        // A backtrace may follow.
        let text = error.to_string();
        invalid(text.lines().next().unwrap_or("its header cannot be read"))
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, path::PathBuf};

    use candle_core::{DType, Device, Tensor};
    use proptest::prelude::*;

    use super::{MappedError, MappedSafetensors};

    /// A file of three tensors, in a directory of its own.
    fn whole() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let tensor = |shape: &[usize], dtype| {
            let len = shape.iter().product::<usize>();
            let numbers = Tensor::arange(0f32, len as f32, &Device::Cpu).unwrap();
            let numbers = numbers.reshape(shape).unwrap();
            numbers.to_dtype(dtype).unwrap()
        };
        let tensors = HashMap::from([
            ("a", tensor(&[3, 5], DType::BF16)),
            ("b", tensor(&[4], DType::F32)),
            ("c", tensor(&[0, 7], DType::F16)),
        ]);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        (dir, path, bytes)
    }

    /// A file with this header and so many bytes of data.
    fn with_header(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        bytes
    }

    /// Opens a file and reads all that it says it holds.
    fn read_all(path: &std::path::Path) -> Result<(), MappedError> {
        let files = MappedSafetensors::open(&[path.to_owned()])?;
        for name in files.names() {
            let (_, shape) = files.describe(&name).expect("a name of its own");
            if let Ok(tensor) = files.load(&name) {
                assert_eq!(tensor.dims(), shape);
            }
        }
        Ok(())
    }

    #[test]
    fn tensors_are_read_as_stored() {
        let (_dir, path, _) = whole();
        let files = MappedSafetensors::open(&[path]).unwrap();
        let mut names = files.names();
        names.sort();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(files.describe("a"), Some((Some(DType::BF16), vec![3, 5])));
        assert_eq!(files.describe("d"), None);
        let b = files.load("b").unwrap();
        assert_eq!(b.to_vec1::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(files.load("c").unwrap().elem_count(), 0);
        let error = files.load("d").unwrap_err();
        assert!(error.to_string().contains("tensor d"), "{error}");
    }

    #[test]
    fn a_truncated_file_is_refused_wherever_it_ends() {
        let (_dir, path, bytes) = whole();
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            let error = read_all(&path).unwrap_err();
            assert!(matches!(error, MappedError::Invalid { .. }), "{len}: {error}");
            let message = error.to_string();
            assert_eq!(message.matches("model.safetensors").count(), 1, "{error}");
        }
    }

    #[test]
    fn a_lying_header_is_refused() {
        let (_dir, path, _) = whole();
        let tensor = |shape: &str, from: u64, to: u64| {
            format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}"#)
        };
        let one = |shape: &str, from, to| format!(r#"{{"x":{}}}"#, tensor(shape, from, to));
        let two = |a: String, b: String| format!(r#"{{"x":{a},"y":{b}}}"#);
        let huge = "[4294967296,4294967296,4294967296]";
        for (what, header) in [
            ("beyond the end", one("[4]", 0, 16)),
            ("a shape that does not fit", one("[3]", 0, 8)),
            ("a shape that overflows", one(huge, 0, 8)),
            ("backwards", one("[2]", 8, 0)),
            ("a hole", one("[1]", 4, 8)),
            ("bytes left over", one("[1]", 0, 4)),
            ("overlapping", two(tensor("[2]", 0, 8), tensor("[1]", 4, 8))),
            ("no object", "[]".to_owned()),
            ("no JSON", "{\"x\":".to_owned()),
            ("an unknown dtype", one("[2]", 0, 8).replace("F32", "F33")),
        ] {
            std::fs::write(&path, with_header(&header, 8)).unwrap();
            let error = read_all(&path).expect_err(what);
            assert!(matches!(error, MappedError::Invalid { .. }), "{what}: {error}");
        }
        std::fs::write(&path, with_header(&one("[2]", 0, 8), 8)).unwrap();
        read_all(&path).expect("the same, but true");
        for len in [u64::MAX, 1 << 40, 100_000_001] {
            let mut bytes = with_header("{}", 0);
            bytes[..8].copy_from_slice(&len.to_le_bytes());
            std::fs::write(&path, bytes).unwrap();
            read_all(&path).expect_err("a header longer than the file");
        }
    }

    #[test]
    fn what_is_no_file_is_named() {
        let (dir, path, _) = whole();
        let error = read_all(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not a file"), "{error}");
        let missing = dir.path().join("missing.safetensors");
        let error = MappedSafetensors::open(&[path, missing]).err().unwrap();
        assert!(matches!(error, MappedError::Io { .. }), "{error}");
        assert!(error.to_string().contains("missing.safetensors"), "{error}");
    }

    #[test]
    fn of_a_name_in_two_files_the_last_counts() {
        let (dir, path, _) = whole();
        let second = dir.path().join("second.safetensors");
        let tensor = Tensor::new(&[9f32], &Device::Cpu).unwrap();
        candle_core::safetensors::save(&HashMap::from([("b", tensor)]), &second).unwrap();
        let files = MappedSafetensors::open(&[path, second]).unwrap();
        assert_eq!(files.load("b").unwrap().to_vec1::<f32>().unwrap(), [9.0]);
        assert_eq!(files.load("a").unwrap().dims(), [3, 5]);
    }

    proptest! {
        #[test]
        fn corrupted_bytes_never_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            len in any::<prop::sample::Index>(),
        ) {
            let (_dir, path, mut bytes) = whole();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(len.index(2 * bytes.len()).max(1));
            std::fs::write(&path, bytes).unwrap();
            // Either answer is right; that there is one is what is tested.
            let _ = read_all(&path);
        }
    }
}
