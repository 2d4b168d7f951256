//! Checks a GGUF file's header before candle reads it, for errors that candle's reader cannot
//! explain: tensor types that it lacks, split files and other byte orders.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use sconce_kernels::mapped;

use super::{
    GgufError,
    architecture::{self, ARCHITECTURES, Architecture},
};

const MAX_DEPTH: u32 = 64;

/// ggml's types by number; those with `true` can be dequantised here.
const TYPES: [(u32, &str, bool); 43] = [
    (0, "F32", true),
    (1, "F16", true),
    (2, "Q4_0", true),
    (3, "Q4_1", true),
    (4, "Q4_2", false),
    (5, "Q4_3", false),
    (6, "Q5_0", true),
    (7, "Q5_1", true),
    (8, "Q8_0", true),
    (9, "Q8_1", false),
    (10, "Q2_K", true),
    (11, "Q3_K", true),
    (12, "Q4_K", true),
    (13, "Q5_K", true),
    (14, "Q6_K", true),
    (15, "Q8_K", false),
    (16, "IQ2_XXS", false),
    (17, "IQ2_XS", false),
    (18, "IQ3_XXS", false),
    (19, "IQ1_S", false),
    (20, "IQ4_NL", false),
    (21, "IQ3_S", false),
    (22, "IQ2_S", false),
    (23, "IQ4_XS", false),
    (24, "I8", false),
    (25, "I16", false),
    (26, "I32", false),
    (27, "I64", false),
    (28, "F64", false),
    (29, "IQ1_M", false),
    (30, "BF16", true),
    (31, "Q4_0_4_4", false),
    (32, "Q4_0_4_8", false),
    (33, "Q4_0_8_8", false),
    (34, "TQ1_0", false),
    (35, "TQ2_0", false),
    (36, "IQ4_NL_4_4", false),
    (37, "IQ4_NL_4_8", false),
    (38, "IQ4_NL_8_8", false),
    (39, "MXFP4", false),
    (40, "NVFP4", false),
    (41, "Q1_0", false),
    (42, "Q2_0", false),
];

/// Refuses a file that cannot be converted whatever the rest of it holds, and leaves the
/// reader at its beginning. Gives the file's architecture.
pub(super) fn check(path: &Path, file: &mut File) -> Result<&'static Architecture, GgufError> {
    let io = |reason| GgufError::Io { path: path.to_owned(), reason };
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(invalid(path, "it is not a file"));
    }
    let mut scan =
        Scan { path, reader: BufReader::new(&mut *file), left: metadata.len(), is_v1: false };
    let about = scan.about()?;
    if let Some((part, parts)) = about.part().or_else(|| part_by_name(path)) {
        let what = format!("is part {part} of {parts} of a split model");
        let remedy = "join the parts with `llama-gguf-split --merge FIRST-PART WHOLE.gguf` and \
                      name the whole file";
        return Err(unsupported(path, what, remedy));
    }
    if let Some(kind) = about.kind.as_deref().filter(|kind| *kind != "model") {
        let what = format!("holds a {kind:?}, not a model");
        return Err(unsupported(path, what, "name the file of the model"));
    }
    let Some(architecture) = about.architecture else {
        return Err(GgufError::MissingKey { key: "general.architecture".to_owned() });
    };
    let Some(architecture) = architecture::find(&architecture) else {
        let what = format!("has the architecture {architecture:?}");
        let known: Vec<_> = ARCHITECTURES.iter().map(|known| known.name).collect();
        let remedy =
            format!("supported are {}; \"llama\" is Mistral's and SmolLM2's too", known.join(", "));
        return Err(unsupported(path, what, remedy));
    };
    if !about.unsupported.is_empty() {
        let kinds: Vec<_> =
            about.unsupported.iter().map(|(kind, found)| found.describe(*kind)).collect();
        let what = format!("has tensors of types that are not read: {}", kinds.join(", "));
        let names = TYPES.iter().filter(|(_, _, is_read)| *is_read).map(|(_, name, _)| *name);
        let remedy = format!(
            "use a file of other types ({}), such as the model's Q4_K_M or Q8_0",
            names.collect::<Vec<_>>().join(", ")
        );
        return Err(unsupported(path, what, remedy));
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    Ok(architecture)
}

fn invalid(path: &Path, reason: impl Into<String>) -> GgufError {
    GgufError::Invalid { path: path.to_owned(), reason: reason.into() }
}

fn unsupported(path: &Path, what: String, remedy: impl Into<String>) -> GgufError {
    GgufError::Unsupported { path: path.to_owned(), what, remedy: remedy.into() }
}

/// `-00002-of-00005.gguf`, as llama-gguf-split names its parts.
fn part_by_name(path: &Path) -> Option<(u64, u64)> {
    let stem = path.file_stem()?.to_str()?;
    let (rest, parts) = stem.rsplit_once("-of-")?;
    let (_, part) = rest.rsplit_once('-')?;
    let number = |digits: &str| {
        let all = digits.len() == 5 && digits.bytes().all(|digit| digit.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|_| all)
    };
    Some((number(part)?, number(parts)?)).filter(|(_, parts)| *parts > 1)
}

/// Tensors of one type.
struct Found {
    first: String,
    count: u64,
}

impl Found {
    fn describe(&self, kind: u32) -> String {
        let known = TYPES.iter().find(|(number, ..)| *number == kind);
        let name =
            known.map_or_else(|| format!("number {kind}"), |(_, name, _)| (*name).to_owned());
        match self.count - 1 {
            0 => format!("{name} ({})", self.first),
            more => format!("{name} ({} and {more} more)", self.first),
        }
    }
}

#[derive(Default)]
struct About {
    architecture: Option<String>,
    kind: Option<String>,
    split_no: Option<u64>,
    split_count: Option<u64>,
    /// By type's number.
    unsupported: BTreeMap<u32, Found>,
}

impl About {
    fn part(&self) -> Option<(u64, u64)> {
        let count = self.split_count.filter(|count| *count > 1)?;
        Some((self.split_no.map_or(1, |index| index.saturating_add(1)), count))
    }
}

/// Reads a header, every length checked against what is left of the file.
struct Scan<'a> {
    path: &'a Path,
    reader: BufReader<&'a mut File>,
    left: u64,
    is_v1: bool,
}

impl Scan<'_> {
    fn about(&mut self) -> Result<About, GgufError> {
        let len = self.left;
        if len == 0 {
            return Err(invalid(self.path, "it is empty"));
        }
        self.check_kind()?;
        let (tensors, keys) = (self.length()?, self.length()?);
        let mut about = About::default();
        for _ in 0..keys {
            let key = self.string()?;
            let kind = self.u32()?;
            match (&*key, kind) {
                ("general.architecture", 8) => about.architecture = Some(self.string()?),
                ("general.type", 8) => about.kind = Some(self.string()?),
                ("split.no", 2) => about.split_no = Some(u64::from(self.u16()?)),
                ("split.count", 2) => about.split_count = Some(u64::from(self.u16()?)),
                ("split.no", 4 | 5) => about.split_no = Some(u64::from(self.u32()?)),
                ("split.count", 4 | 5) => about.split_count = Some(u64::from(self.u32()?)),
                _ => self.skip_value(&key, kind, 0)?,
            }
        }
        for _ in 0..tensors {
            let name = self.string()?;
            let dimensions = self.u32()?;
            if dimensions > 4 {
                return Err(invalid(
                    self.path,
                    format!("tensor {name} has {dimensions} dimensions"),
                ));
            }
            self.skip(u64::from(dimensions) * self.length_bytes())?;
            let kind = self.u32()?;
            self.skip(8)?;
            if !TYPES.iter().any(|(number, _, is_read)| *number == kind && *is_read) {
                let found = about.unsupported.entry(kind);
                found.or_insert(Found { first: name, count: 0 }).count += 1;
            }
        }
        Ok(about)
    }

    /// Magic and version.
    fn check_kind(&mut self) -> Result<(), GgufError> {
        let path = self.path;
        let mut magic = [0; 4];
        let read = usize::try_from(self.left).map_or(4, |left| left.min(4));
        self.bytes(&mut magic[..read])?;
        match &magic {
            b"GGUF" => {}
            b"FUGG" => return Err(big_endian(path)),
            b"ggml" | b"lmgg" | b"ggmf" | b"fmgg" | b"ggjt" | b"tjgg" | b"ggla" | b"algg" => {
                let what = "is in a format from before GGUF".to_owned();
                return Err(unsupported(path, what, "convert the model to GGUF anew"));
            }
            b"vers" => {
                let rest = &mapped::LFS_POINTER[4..];
                let mut read = vec![0; rest.len()];
                if self.bytes(&mut read).is_ok() && read == rest {
                    return Err(GgufError::LfsPointer { path: path.to_owned() });
                }
                return Err(invalid(path, "it does not begin with GGUF"));
            }
            b"PK\x03\x04" => {
                let reason = "it is a zip archive, or a PyTorch checkpoint, which is one";
                return Err(invalid(path, reason));
            }
            _ => return Err(invalid(path, "it does not begin with GGUF")),
        }
        match self.u32()? {
            1 => self.is_v1 = true,
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 1..=3) => return Err(big_endian(path)),
            version => {
                let reason = format!("its version is {version}, but versions 1 to 3 are read");
                return Err(invalid(path, reason));
            }
        }
        Ok(())
    }

    fn bytes(&mut self, buffer: &mut [u8]) -> Result<(), GgufError> {
        self.take(buffer.len() as u64)?;
        let io = |reason| GgufError::Io { path: self.path.to_owned(), reason };
        self.reader.read_exact(buffer).map_err(io)
    }

    /// Counts bytes off what is left.
    fn take(&mut self, len: u64) -> Result<(), GgufError> {
        let ends = || {
            let reason = "it ends within its header; it may be half downloaded";
            invalid(self.path, reason)
        };
        self.left = self.left.checked_sub(len).ok_or_else(ends)?;
        Ok(())
    }

    fn skip(&mut self, len: u64) -> Result<(), GgufError> {
        self.take(len)?;
        let io = |reason| GgufError::Io { path: self.path.to_owned(), reason };
        self.reader.seek_relative(len.cast_signed()).map_err(io)
    }

    fn u16(&mut self) -> Result<u16, GgufError> {
        let mut bytes = [0; 2];
        self.bytes(&mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        let mut bytes = [0; 4];
        self.bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn length_bytes(&self) -> u64 {
        if self.is_v1 { 4 } else { 8 }
    }

    fn length(&mut self) -> Result<u64, GgufError> {
        if self.is_v1 {
            return Ok(u64::from(self.u32()?));
        }
        let mut bytes = [0; 8];
        self.bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A name: the first of its bytes, as it may be shown to a person.
    fn string(&mut self) -> Result<String, GgufError> {
        const MAX: u64 = 200;
        let len = self.length()?;
        let mut bytes = vec![0; usize::try_from(len.min(MAX)).expect("below MAX")];
        self.bytes(&mut bytes)?;
        self.skip(len.saturating_sub(MAX))?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.trim_end_matches('\0').chars().flat_map(char::escape_debug).collect())
    }

    fn skip_value(&mut self, key: &str, kind: u32, depth: u32) -> Result<(), GgufError> {
        match kind {
            0 | 1 | 7 => self.skip(1),
            2 | 3 => self.skip(2),
            4..=6 => self.skip(4),
            10..=12 => self.skip(8),
            8 => {
                let len = self.length()?;
                self.skip(len)
            }
            9 if depth < MAX_DEPTH => {
                let (of, len) = (self.u32()?, self.length()?);
                for _ in 0..len {
                    self.skip_value(key, of, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(invalid(self.path, format!("metadata {key} has a value of type {kind}"))),
        }
    }
}

fn big_endian(path: &Path) -> GgufError {
    let remedy = "convert it with `gguf-convert-endian FILE little` (of the Python package gguf)";
    unsupported(path, "is big-endian".to_owned(), remedy)
}
