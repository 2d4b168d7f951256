//! Which of a directory's files are the checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use sconce_kernels::mapped::MappedSafetensors;
use serde::Deserialize;

use crate::{ModelError, json};

/// The checkpoint's files: one, or the shards that an index names.
pub(crate) fn open(dir: &Path) -> Result<Arc<MappedSafetensors>, ModelError> {
    let single = dir.join("model.safetensors");
    let index = dir.join("model.safetensors.index.json");
    let paths = if single.is_file() {
        vec![single]
    } else if index.is_file() {
        shards(dir, &index)?
    } else {
        return Err(ModelError::NoCheckpoint { path: dir.to_owned(), hint: hint(dir) });
    };
    Ok(Arc::new(MappedSafetensors::open(&paths)?))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let invalid = |reason| ModelError::Json { path: index.to_owned(), reason };
    let names: BTreeSet<String> = json::read::<Index>(index)?.weight_map.into_values().collect();
    if names.is_empty() {
        return Err(invalid("weight_map names no file".to_owned()));
    }
    // A shard lies beside its index: a name is no path.
    let plain = |name: &str| {
        let mut components = Path::new(name).components();
        matches!(components.next(), Some(Component::Normal(only)) if only == name)
            && components.next().is_none()
    };
    if let Some(name) = names.iter().find(|name| !plain(name)) {
        return Err(invalid(format!("weight_map names {name:?}, which is not a file's name")));
    }
    let missing: Vec<&str> =
        names.iter().filter(|name| !dir.join(name).is_file()).map(String::as_str).collect();
    if !missing.is_empty() {
        let missing = few(&missing);
        return Err(invalid(format!("these of its files are missing: {missing}")));
    }
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

/// Names for a message, not all where there are many.
fn few(names: &[&str]) -> String {
    const MAX: usize = 10;
    let mut text = names[..names.len().min(MAX)].join(", ");
    if names.len() > MAX {
        text += &format!(" and {} more", names.len() - MAX);
    }
    text
}

/// What a directory without a checkpoint holds instead, and what would help.
fn hint(dir: &Path) -> String {
    let names: BTreeSet<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let kinds: [(&[&str], &str); 4] = [
        (&["adapter_model.safetensors"], "a LoRA adapter is no model: merge it into its base"),
        (&[".safetensors"], "weights are read under those two names only"),
        (&[".gguf"], "to serve a GGUF file, name the file instead of the directory"),
        (
            &[".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"],
            "only safetensors are read: load the model with transformers and save it with \
             save_pretrained(..., safe_serialization=True)",
        ),
    ];
    for (ends, advice) in kinds {
        let is_one = |name: &&str| {
            let name = name.to_ascii_lowercase();
            ends.iter().any(|end| name.ends_with(end))
        };
        let found: Vec<&str> = names.iter().map(String::as_str).filter(is_one).collect();
        if !found.is_empty() {
            return format!("; it holds {}: {advice}", few(&found));
        }
    }
    String::new()
}
