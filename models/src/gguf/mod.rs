//! From a GGUF file of a family that is served to a Hugging Face directory.
//!
//! Quantised weights are dequantised to f32 and rounded to bf16; what llama.cpp does to
//! weights (the order of the rows of Llama's Q and K, the 1 added to Gemma's norms) is
//! undone; the tokenizer, byte-level BPE or SentencePiece's BPE with byte fallback, is
//! rebuilt from the file's vocabulary and its merges or scores.

mod architecture;
mod header;
mod metadata;
mod rope;
mod sentence_piece;
mod tensors;
mod tokenizer;

use std::{
    io::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use architecture::Sizes;
use candle_core::quantized::gguf_file::Content;
use metadata::Metadata;
use sconce_kernels::mapped;
use serde_json::{Value, json};

/// Grows whenever [`convert`] makes something else of the same file, so that what an
/// earlier release has made is not taken for it.
pub const CONVERTER_VERSION: u32 = 1;

/// Why a GGUF file cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// A file cannot be read or written.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason; in the message, so not in the chain of sources too.
        reason: std::io::Error,
    },
    /// The file is not GGUF, or is damaged.
    #[error("{} is not a whole GGUF file: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The file is of a kind that is not converted.
    #[error("{} {what}; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What would help.
        remedy: String,
    },
    /// Git LFS left a pointer where the file should be.
    #[error("{}", mapped::lfs_advice(path))]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A metadata key is missing.
    #[error("the GGUF file has no metadata key {key}")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata key holds something that cannot be converted.
    #[error("GGUF metadata {key} is {value}, but must be {accepted}")]
    Key {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What would be accepted.
        accepted: String,
    },
    /// A tensor is missing, unknown, or misshapen.
    #[error("GGUF tensor {name}: {reason}")]
    Tensor {
        /// The tensor, by its name in the file.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

/// How far a conversion has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tensors written.
    pub done: usize,
    /// Tensors in all.
    pub total: usize,
}

/// `general.architecture` of the files that become models of a `model_type`.
pub(crate) fn architecture_of(model_type: &str) -> Option<&'static str> {
    let mut known = architecture::ARCHITECTURES.iter();
    known.find(|known| known.model_type == model_type).map(|known| known.name)
}

/// Converts a GGUF file to config.json, model.safetensors (bf16),
/// tokenizer.json, tokenizer_config.json and generation_config.json in
/// `out_dir`, which must exist. On an error the directory may hold some of
/// them: callers that need all or nothing convert into a temporary one.
///
/// # Errors
/// A damaged file, another architecture or kind of tokenizer, a full disk.
pub fn convert(
    gguf: &Path,
    out_dir: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), GgufError> {
    let mut file = std::fs::File::open(gguf)
        .map_err(|reason| GgufError::Io { path: gguf.to_owned(), reason })?;
    let invalid = |reason: String| GgufError::Invalid { path: gguf.to_owned(), reason };
    let architecture = header::check(gguf, &mut file)?;
    // candle's reader checks lengths, but arithmetic on a lying header may panic.
    let content = catch_unwind(AssertUnwindSafe(|| Content::read(&mut file)))
        .map_err(|_| invalid("its header is inconsistent".to_owned()))?
        .map_err(|error| invalid(error.to_string()))?;
    let metadata = Metadata::new(&content, architecture);
    let sizes = Sizes::read(&metadata, &content)?;
    let rope_scaling = rope::scaling(&metadata, &content, &mut file, sizes.head_dim)?;
    let (tokenizer, tokenizer_config) = tokenizer::convert(&metadata, sizes.vocab_size)?;
    write_json(&out_dir.join("config.json"), &sizes.config(&metadata, &rope_scaling)?)?;
    write_json(&out_dir.join("tokenizer.json"), &tokenizer)?;
    write_json(&out_dir.join("tokenizer_config.json"), &tokenizer_config)?;
    write_json(
        &out_dir.join("generation_config.json"),
        &generation_config(&metadata, sizes.vocab_size)?,
    )?;
    let out = out_dir.join("model.safetensors");
    tensors::convert(gguf, file, &content, architecture, &sizes, &out, progress)?;
    // The writer's file is the owner's alone; the model is read by whoever may
    // read the files beside it.
    let io = |reason| GgufError::Io { path: out.clone(), reason };
    let beside = std::fs::metadata(out_dir.join("config.json")).map_err(io)?;
    std::fs::set_permissions(&out, beside.permissions()).map_err(io)
}

/// As llama.cpp, which takes tokens of these names for ends of a turn whatever the
/// file's metadata say.
const END_OF_TURN: [&str; 9] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|eom_id|>",
    "<EOT>",
    "<|end_of_turn|>",
    "<end_of_utterance>",
    "<|eot|>",
];

fn generation_config(metadata: &Metadata<'_>, vocab_size: usize) -> Result<Value, GgufError> {
    // Chat models may end a turn with another token than a text.
    let mut end = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let id = metadata.optional_size(&key)?;
        if let Some(id) = id.filter(|&id| id >= vocab_size as u64) {
            return Err(metadata::refuse(&key, &id, format!("below {vocab_size}")));
        }
        end.extend(id.filter(|id| !end.contains(id)));
    }
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let kinds = metadata.integers("tokenizer.ggml.token_type")?;
    // Where there is this token too, <|end|> ends only a message of the answer.
    let has_return = tokens.contains(&"<|return|>");
    for (id, (token, kind)) in (0..).zip(tokens.iter().zip(kinds)) {
        let ends_turn = END_OF_TURN.contains(token) && !(has_return && *token == "<|end|>");
        if kind == tokenizer::CONTROL && ends_turn && !end.contains(&id) {
            end.push(id);
        }
    }
    let end = match end[..] {
        [] => Value::Null,
        [id] => json!(id),
        _ => json!(end),
    };
    Ok(json!({
        "bos_token_id": metadata.optional_size("tokenizer.ggml.bos_token_id")?,
        "eos_token_id": end,
        "pad_token_id": metadata.optional_size("tokenizer.ggml.padding_token_id")?,
    }))
}

fn write_json(path: &Path, value: &Value) -> Result<(), GgufError> {
    let io = |reason| GgufError::Io { path: path.to_owned(), reason };
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).map_err(io)?);
    serde_json::to_writer_pretty(&mut file, value).map_err(|error| io(error.into()))?;
    file.flush().map_err(io)
}
