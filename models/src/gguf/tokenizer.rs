//! tokenizer.json from a GGUF file's vocabulary, with its merges (byte-level BPE) or its
//! scores (SentencePiece).

use serde_json::{Map, Value, json};

use super::{
    GgufError,
    metadata::{Metadata, refuse},
    sentence_piece,
};

/// llama.cpp's kinds of tokens.
pub(super) const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const BYTE: i32 = 6;

/// What a kind of tokenizer makes of text.
pub(super) struct Parts {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) decoder: Value,
    /// What is fixed of the model, `unk_token` on.
    pub(super) model: Value,
    pub(super) merges: Vec<(String, String)>,
    /// Whether a text begins with the token for that where the file does not say.
    pub(super) add_bos: bool,
}

/// tokenizer.json and tokenizer_config.json.
pub(super) fn convert(
    metadata: &Metadata<'_>,
    vocab_size: usize,
) -> Result<(Value, Value), GgufError> {
    let key = "tokenizer.ggml.model";
    let is_sentence_piece = match metadata.string(key)? {
        "gpt2" => false,
        "llama" => true,
        other => {
            let accepted = "\"gpt2\" (byte-level BPE) or \"llama\" (SentencePiece's BPE)";
            return Err(refuse(key, &other, accepted));
        }
    };
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let kinds = metadata.integers("tokenizer.ggml.token_type")?;
    if kinds.len() != vocab_size {
        let accepted = format!("one for each of {vocab_size} tokens");
        return Err(refuse(
            "tokenizer.ggml.token_type",
            &format_args!("{} kinds", kinds.len()),
            accepted,
        ));
    }
    // What users have defined is in the file as text, all else as the pieces of words are.
    let piece = |id: usize| match is_sentence_piece && kinds[id] == USER_DEFINED {
        true => tokens[id].replace(' ', sentence_piece::SPACE),
        false => tokens[id].to_owned(),
    };
    let mut vocab = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert(piece(id), json!(id)).is_some() {
            return Err(refuse(
                "tokenizer.ggml.tokens",
                &format_args!("{token:?} twice"),
                "distinct",
            ));
        }
    }
    let added: Vec<Value> = kinds
        .iter()
        .enumerate()
        .filter(|(_, kind)| matches!(**kind, UNKNOWN | CONTROL | USER_DEFINED))
        .map(|(id, &kind)| {
            json!({
                "id": id, "content": piece(id), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": kind != USER_DEFINED,
            })
        })
        .collect();
    let special = |key: &str| -> Result<Option<&str>, GgufError> {
        let Some(id) = metadata.optional_size(key)? else {
            return Ok(None);
        };
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let token = tokens.get(index).copied();
        token.map(Some).ok_or_else(|| refuse(key, &id, format!("below {vocab_size}")))
    };
    let bos = special("tokenizer.ggml.bos_token_id")?;
    let unknown = special("tokenizer.ggml.unknown_token_id")?;
    let parts = match is_sentence_piece {
        true => sentence_piece::parts(metadata, &vocab, &kinds, unknown)?,
        false => byte_level_parts(metadata)?,
    };
    let add_bos = metadata.flag_or("tokenizer.ggml.add_bos_token", parts.add_bos)?;
    let Value::Object(mut model) = parts.model else { unreachable!("it is an object") };
    let post_processor = bos.filter(|_| add_bos).map(|bos| prepend(bos, &vocab[bos]));
    model.insert("vocab".into(), vocab.into());
    let merges: Vec<_> = parts.merges.into_iter().map(|(a, b)| json!([a, b])).collect();
    model.insert("merges".into(), merges.into());
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": post_processor,
        "decoder": parts.decoder,
        "model": model,
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.size(&metadata.key("context_length"))?,
        "clean_up_tokenization_spaces": false,
        "add_bos_token": add_bos,
        "bos_token": bos,
        "eos_token": special("tokenizer.ggml.eos_token_id")?,
        "unk_token": unknown,
        "pad_token": special("tokenizer.ggml.padding_token_id")?,
        "chat_template": metadata.optional_string("tokenizer.chat_template")?,
    });
    Ok((tokenizer, config))
}

fn merges(metadata: &Metadata<'_>) -> Result<Vec<(String, String)>, GgufError> {
    let key = "tokenizer.ggml.merges";
    let pair = |merge: &str| match merge.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok((a.to_owned(), b.to_owned())),
        _ => Err(refuse(key, &format_args!("{merge:?}"), "two tokens with a space between")),
    };
    metadata.strings(key)?.into_iter().map(pair).collect()
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

/// A pre-tokenizer that cuts by a pattern.
fn split(pattern: &str) -> Value {
    let split = json!({
        "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
        "invert": false,
    });
    sequence(&[split, byte_level(false)])
}

fn sequence(pre_tokenizers: &[Value]) -> Value {
    json!({ "type": "Sequence", "pretokenizers": pre_tokenizers })
}

/// How text is cut before BPE goes by llama.cpp's name for it.
fn byte_level_parts(metadata: &Metadata<'_>) -> Result<Parts, GgufError> {
    let key = "tokenizer.ggml.pre";
    let mut normalizer = Value::Null;
    // Whole words of the vocabulary are taken without merging.
    let mut ignore_merges = false;
    let pre_tokenizer = match metadata.optional_string(key)?.unwrap_or("default") {
        "smollm" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            sequence(&[digits, byte_level(true)])
        }
        "gpt-2" | "default" => byte_level(true),
        "llama-bpe" | "llama3" => {
            ignore_merges = true;
            split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            )
        }
        "qwen2" => {
            normalizer = json!({ "type": "NFC" });
            split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            )
        }
        other => {
            let accepted = "one of smollm, gpt-2, default, llama-bpe, qwen2";
            return Err(refuse(key, &other, accepted));
        }
    };
    Ok(Parts {
        normalizer,
        pre_tokenizer,
        decoder: byte_level(true),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": ignore_merges,
        }),
        merges: merges(metadata)?,
        // As llama.cpp: its pre-tokenizer of Llama 3 alone has the token by default.
        add_bos: ignore_merges,
    })
}

/// A post-processor that puts a token before every text.
fn prepend(token: &str, id: &Value) -> Value {
    let first = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let text = |id: &str, type_id: u32| json!({ "Sequence": { "id": id, "type_id": type_id } });
    json!({
        "type": "TemplateProcessing",
        "single": [first, text("A", 0)],
        "pair": [first, text("A", 0), text("B", 1)],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}
