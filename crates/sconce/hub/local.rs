//! Models that are files here: what a path is, and GGUF files' conversions.

use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
};

use sconce_runner::{LFS_POINTER, gguf};

use super::{FoundModel, HubError, HubOptions, Phase, Progress, convert, io_at, prepare};

/// The files without which a converted model is not one.
const PARTS: [&str; 3] = ["config.json", "tokenizer.json", "model.safetensors"];

/// Whether a directory that [`prepare`] has made still holds a model.
pub(super) fn is_whole(dir: &Path) -> bool {
    PARTS.iter().all(|part| dir.join(part).is_file())
}

/// Converts a GGUF file into the cache, once for each content.
///
/// The name there holds a hash of the whole file. Path, inode, size and times do not tell
/// its content (`cp -p` over it keeps them all, network shares have coarse times), and a
/// wrong guess serves another model's weights without a sign. BLAKE3 hashes several GB/s on
/// one core with AVX2 or AVX-512, SHA-256 without SHA instructions about 0.4; loading reads
/// the conversion, which is several times larger, in any case.
pub(super) fn convert_file(
    file: &Path,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<FoundModel, HubError> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let hash = content_hash(file, progress)?;
    // File systems allow 255 bytes.
    let short: String = stem.chars().take(40).collect();
    let version = format!("{short}-{}-{}", &hash[..32], gguf::CONVERTER_VERSION);
    let path = prepare(&version, options, |out| {
        convert(file, out, progress)?;
        // Had it been written to meanwhile, the conversion would be a mixture.
        if content_hash(file, progress)? == hash {
            Ok(())
        } else {
            Err(HubError::Changed { path: file.to_owned() })
        }
    })?;
    Ok(FoundModel { path, name: stem, license: None })
}

fn content_hash(path: &Path, progress: &dyn Progress) -> Result<String, HubError> {
    let mut file = File::open(path).map_err(io_at(path))?;
    let total = file.metadata().map_err(io_at(path))?.len();
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let len = file.read(&mut buffer).map_err(io_at(path))?;
        if len == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..len]);
        done += len as u64;
        progress.update(Phase::Hash, done, total);
    }
}

/// Refuses a file that is no GGUF file, by its ending in any case or by how it begins.
pub(super) fn check_file(path: &Path) -> Result<(), HubError> {
    let named = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    if named || first_bytes(path)?.starts_with(b"GGUF") {
        return Ok(());
    }
    let reason = "it is a file, but no GGUF file; to serve safetensors, name their directory";
    Err(HubError::NoModel { path: path.to_owned(), reason: reason.to_owned() })
}

/// Why a directory is no model, and what may be meant.
pub(super) fn no_model(dir: &Path) -> HubError {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let gguf = names.iter().find(|name| name.to_ascii_lowercase().ends_with(".gguf"));
    let reason = match gguf {
        Some(name) => format!("to serve a GGUF file, name it: {}", dir.join(name).display()),
        None if names.iter().any(|name| name == "adapter_config.json") => {
            "it holds a LoRA adapter; merge it into its base model".to_owned()
        }
        None if names.iter().any(|name| name == "snapshots") => {
            "of a hub's cache, name a directory in its snapshots, or the model's hub id".to_owned()
        }
        None => "the directory has no config.json".to_owned(),
    };
    HubError::NoModel { path: dir.to_owned(), reason }
}

/// Refuses a directory in which Git LFS has not fetched what the model is made of.
pub(super) fn refuse_pointers(dir: &Path) -> Result<(), HubError> {
    let mut paths: Vec<_> = fs::read_dir(dir)
        .map_err(io_at(dir))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let ending = path.extension().and_then(|ending| ending.to_str());
            matches!(ending, Some("json" | "jinja" | "safetensors" | "model")) && path.is_file()
        })
        .collect();
    paths.sort();
    for path in paths {
        if first_bytes(&path)?.starts_with(LFS_POINTER) {
            return Err(HubError::LfsPointer { path });
        }
    }
    Ok(())
}

fn first_bytes(path: &Path) -> Result<Vec<u8>, HubError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(io_at(path))
}
