//! tokenizer.json from a GGUF file's vocabulary and merges.

use serde_json::{Map, Value, json};

use super::{
    GgufError,
    metadata::{Metadata, refuse},
};

/// llama.cpp's kinds of tokens that are no text of their own.
pub(super) const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// tokenizer.json and tokenizer_config.json.
pub(super) fn convert(
    metadata: &Metadata<'_>,
    vocab_size: usize,
) -> Result<(Value, Value), GgufError> {
    let model = metadata.string("tokenizer.ggml.model")?;
    if model != "gpt2" {
        let accepted = "\"gpt2\" (byte-level BPE)";
        return Err(refuse("tokenizer.ggml.model", &model, accepted));
    }
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
    let mut vocab = Map::new();
    for (id, token) in tokens.iter().enumerate() {
        if vocab.insert((*token).to_owned(), json!(id)).is_some() {
            return Err(refuse(
                "tokenizer.ggml.tokens",
                &format_args!("{token:?} twice"),
                "distinct",
            ));
        }
    }
    let added: Vec<Value> = tokens
        .iter()
        .zip(&kinds)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (token, &kind))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": kind == CONTROL,
            })
        })
        .collect();
    let (pre_tokenizer, ignore_merges) = pre_tokenizer(metadata)?;
    let special = |key: &str| -> Result<Option<&str>, GgufError> {
        let Some(id) = metadata.optional_size(key)? else {
            return Ok(None);
        };
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        let token = tokens.get(index).copied();
        token.map(Some).ok_or_else(|| refuse(key, &id, format!("below {vocab_size}")))
    };
    let bos = special("tokenizer.ggml.bos_token_id")?;
    // As llama.cpp: its pre-tokenizer of Llama 3 alone has the token by default.
    let add_bos = metadata.flag_or("tokenizer.ggml.add_bos_token", ignore_merges)?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": bos.filter(|_| add_bos).map(|bos| prepend(bos, &vocab[bos])),
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": ignore_merges,
            "vocab": vocab,
            "merges": merges(metadata)?,
        },
    });
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": metadata.size("llama.context_length")?,
        "clean_up_tokenization_spaces": false,
        "add_bos_token": add_bos,
        "bos_token": bos,
        "eos_token": special("tokenizer.ggml.eos_token_id")?,
        "unk_token": special("tokenizer.ggml.unknown_token_id")?,
        "pad_token": special("tokenizer.ggml.padding_token_id")?,
        "chat_template": metadata.optional_string("tokenizer.chat_template")?,
    });
    Ok((tokenizer, config))
}

fn merges(metadata: &Metadata<'_>) -> Result<Vec<Value>, GgufError> {
    let key = "tokenizer.ggml.merges";
    let pair = |merge: &str| match merge.split_once(' ') {
        Some((a, b)) if !a.is_empty() && !b.is_empty() => Ok(json!([a, b])),
        _ => Err(refuse(key, &format_args!("{merge:?}"), "two tokens with a space between")),
    };
    metadata.strings(key)?.into_iter().map(pair).collect()
}

fn byte_level() -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    })
}

/// How text is cut before BPE, and whether whole words of the vocabulary are
/// taken without merging, by llama.cpp's name for it.
fn pre_tokenizer(metadata: &Metadata<'_>) -> Result<(Value, bool), GgufError> {
    let key = "tokenizer.ggml.pre";
    match metadata.optional_string(key)?.unwrap_or("default") {
        "smollm" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            Ok((json!({ "type": "Sequence", "pretokenizers": [digits, byte_level()] }), false))
        }
        "gpt-2" | "default" => Ok((byte_level(), false)),
        "llama-bpe" | "llama3" => {
            let pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
            let split = json!({
                "type": "Split", "pattern": { "Regex": pattern },
                "behavior": "Isolated", "invert": false,
            });
            let bytes = json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": false,
            });
            Ok((json!({ "type": "Sequence", "pretokenizers": [split, bytes] }), true))
        }
        other => Err(refuse(key, &other, "one of smollm, gpt-2, default, llama-bpe")),
    }
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
