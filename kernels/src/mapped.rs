//! Checkpoint files, mapped into memory.
#![expect(unsafe_code, reason = "a mapped file is memory that others could change")]

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use candle_core::{
    DType, Device, Tensor,
    safetensors::{Load as _, MmapedSafetensors},
};
use safetensors::tensor::TensorView;

/// How a file begins that Git LFS has not fetched.
pub const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// What to tell of such a file.
#[must_use]
pub fn lfs_advice(path: &Path) -> String {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    format!(
        "{} is a Git LFS pointer, not the file itself; run `git lfs pull` in {}",
        path.display(),
        dir.display()
    )
}

/// safetensors' own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Why a checkpoint file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MappedError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason; in the message, so not in the chain of sources too.
        reason: std::io::Error,
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
    /// The file is something else.
    #[error("{} is not a safetensors file, but {kind}", path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it is, and what would help.
        kind: &'static str,
    },
    /// Git LFS left a pointer where the file should be.
    #[error("{}", lfs_advice(path))]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// Two files hold different tensors of one name, so one of them is of another model.
    #[error(
        "tensor {name} is in {} and, with other numbers, in {}; one of them is not this model's",
        first.display(),
        second.display()
    )]
    Twice {
        /// The tensor.
        name: String,
        /// A file.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// A tensor is not in the files, or its dtype is not supported.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// candle's reason.
        reason: candle_core::Error,
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
    files: Vec<MmapedSafetensors>,
    /// Which file holds a tensor.
    holders: HashMap<String, usize>,
}

impl MappedSafetensors {
    /// Opens and checks files. A tensor may be in several if it is the same in all.
    ///
    /// # Errors
    /// The first file that cannot be read or does not hold what it claims, or the first
    /// tensor that two files disagree on.
    pub fn open(paths: &[PathBuf]) -> Result<Self, MappedError> {
        let mut opened = Self { files: Vec::new(), holders: HashMap::new() };
        for (index, path) in paths.iter().enumerate() {
            let file = open(path)?;
            for (name, tensor) in file.tensors() {
                match opened.view(&name) {
                    None => {
                        opened.holders.insert(name, index);
                    }
                    Some(other) if are_equal(&other, &tensor) => {}
                    Some(_) => {
                        let first = paths[opened.holders[&name]].clone();
                        let name = name.chars().take(200).collect();
                        return Err(MappedError::Twice { name, first, second: path.clone() });
                    }
                }
            }
            opened.files.push(file);
        }
        Ok(opened)
    }

    fn view(&self, name: &str) -> Option<TensorView<'_>> {
        self.files[*self.holders.get(name)?].get(name).ok()
    }

    /// A tensor's dtype and shape, if the files hold it.
    #[must_use]
    pub fn describe(&self, name: &str) -> Option<(Option<DType>, Vec<usize>)> {
        let view = self.view(name)?;
        Some((DType::try_from(view.dtype()).ok(), view.shape().to_vec()))
    }

    /// The name of a tensor's dtype, which candle need not have, if the files hold it.
    #[must_use]
    pub fn dtype_name(&self, name: &str) -> Option<String> {
        Some(self.view(name)?.dtype().to_string().to_lowercase())
    }

    /// Whether the files hold both tensors and they are the same: dtype, shape and data.
    #[must_use]
    pub fn are_equal(&self, a: &str, b: &str) -> bool {
        self.view(a).zip(self.view(b)).is_some_and(|(a, b)| are_equal(&a, &b))
    }

    /// The names of all tensors.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.holders.keys().cloned().collect()
    }

    /// Copies a tensor out of its file, in its own dtype.
    ///
    /// # Errors
    /// No such tensor, or a dtype that candle does not have.
    pub fn load(&self, name: &str) -> Result<Tensor, MappedError> {
        let missing = || candle_core::Error::CannotFindTensor { path: name.to_owned() };
        let tensor = self.view(name).ok_or_else(missing).and_then(|view| view.load(&Device::Cpu));
        tensor.map_err(|reason| MappedError::Tensor { name: name.to_owned(), reason })
    }
}

fn are_equal(a: &TensorView<'_>, b: &TensorView<'_>) -> bool {
    a.dtype() == b.dtype() && a.shape() == b.shape() && a.data() == b.data()
}

/// Maps a file after checking its length and the header in its first bytes.
fn open(path: &Path) -> Result<MmapedSafetensors, MappedError> {
    let io = |reason| MappedError::Io { path: path.to_owned(), reason };
    let invalid = |reason: String| MappedError::Invalid { path: path.to_owned(), reason };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(invalid("it is not a file".to_owned()));
    }
    let len = metadata.len();
    let mut head = Vec::new();
    file.take(64).read_to_end(&mut head).map_err(io)?;
    if head.is_empty() {
        return Err(invalid("it is empty".to_owned()));
    }
    if head.starts_with(LFS_POINTER) {
        return Err(MappedError::LfsPointer { path: path.to_owned() });
    }
    let Some(header) = head.first_chunk().copied().map(u64::from_le_bytes) else {
        return Err(invalid("it is shorter than a header's length".to_owned()));
    };
    // Only now: a header's length may begin with the same bytes as another format.
    if let Some(kind) = other_kind(&head).filter(|_| header > MAX_HEADER || 8 + header > len) {
        return Err(MappedError::OtherKind { path: path.to_owned(), kind });
    }
    if header > MAX_HEADER {
        let reason = format!("its first bytes give a header of {header} bytes, above {MAX_HEADER}");
        return Err(invalid(reason));
    }
    if 8 + header > len {
        let reason = format!("it ends after {len} bytes, within its header of {header}");
        return Err(invalid(reason));
    }
    // SAFETY: the mapping is read-only and private to this process; that
    // nobody shortens the files is the documented condition of `MappedSafetensors`.
    let parsed = unsafe { MmapedSafetensors::new(path) };
    parsed.map_err(|error| {
        let error = match error {
            // This error names the path already.
            candle_core::Error::WithPath { inner, .. } => *inner,
            other => other,
        };
        // A backtrace may follow.
        let text = error.to_string();
        let text = text.lines().next().unwrap_or("its header cannot be read");
        let reason = if text.contains("not fully covered") {
            format!("its header describes another number of bytes than the {len} that it has")
        } else if text.contains("invalid offset") {
            format!("{text}: data overlap, or there is a gap between them")
        } else {
            text.to_owned()
        };
        invalid(reason)
    })
}

/// What a file is that begins so, if it is known and no safetensors file.
fn other_kind(head: &[u8]) -> Option<&'static str> {
    let begins = |with: &[u8]| head.starts_with(with);
    if begins(b"GGUF") {
        Some("a GGUF file: name it with the ending .gguf")
    } else if begins(b"PK\x03\x04") || begins(b"\x80\x02") {
        Some("a PyTorch checkpoint: save the model with safe_serialization=True")
    } else if begins(b"<!") || begins(b"<html") {
        Some("a web page: its download went to the wrong address")
    } else {
        None
    }
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
    fn a_name_in_two_files_must_be_one_tensor() {
        let (dir, path, _) = whole();
        let second = dir.path().join("second.safetensors");
        let save = |numbers: &[f32]| {
            let tensor = Tensor::new(numbers, &Device::Cpu).unwrap();
            candle_core::safetensors::save(&HashMap::from([("b", tensor)]), &second).unwrap();
        };
        save(&[0.0, 1.0, 2.0, 3.0]);
        let files = MappedSafetensors::open(&[path.clone(), second.clone()]).unwrap();
        assert_eq!(files.load("b").unwrap().to_vec1::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(files.load("a").unwrap().dims(), [3, 5]);
        assert_eq!(files.names().len(), 3);
        for other in [&[0.0, 1.0, 2.0, 4.0][..], &[0.0]] {
            save(other);
            let error = MappedSafetensors::open(&[path.clone(), second.clone()]).err().unwrap();
            assert!(matches!(error, MappedError::Twice { .. }), "{error}");
            let message = error.to_string();
            for named in ["tensor b", "model.safetensors", "second.safetensors"] {
                assert!(message.contains(named), "{named}: {message}");
            }
        }
    }

    #[test]
    fn what_is_something_else_is_named() {
        let (_dir, path, _) = whole();
        let mut long = u64::MAX.to_le_bytes().to_vec();
        long.extend(b"{}");
        for (bytes, named) in [
            (&b""[..], "it is empty"),
            (b"1234", "shorter than a header's length"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
            (b"GGUF\x03\0\0\0\0\0\0\0", "a GGUF file"),
            (b"PK\x03\x04 and so on", "a PyTorch checkpoint"),
            (b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9", "a PyTorch checkpoint"),
            (b"<!DOCTYPE html><html>", "a web page"),
            (&long, "a header of 18446744073709551615 bytes"),
            (b"\xff\0\0\0\0\0\0\0{\"a\":", "ends after 13 bytes, within its header of 255"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let message = read_all(&path).unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
            assert!(message.contains("model.safetensors"), "{named}: {message}");
        }
    }

    #[test]
    fn a_header_as_long_as_a_pickle_begins_is_a_header() {
        let (_dir, path, _) = whole();
        let one = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        // 640 bytes: 80 02 00 and so on.
        std::fs::write(&path, with_header(&format!("{one:<640}"), 8)).unwrap();
        read_all(&path).expect("it is whole");
    }

    #[test]
    fn a_reason_is_in_the_message_or_in_the_chain_but_not_in_both() {
        let error = read_all(std::path::Path::new("/no/such/file")).unwrap_err();
        assert!(error.to_string().contains("os error 2"), "{error}");
        assert!(std::error::Error::source(&error).is_none());
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
