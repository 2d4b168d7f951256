//! Small models' text sides, written down here.

use std::sync::Arc;

use sconce_text::{TextConfig, TextModel};
use sconce_types::TokenId;
use serde_json::{Map, Value, json};

/// A text model, and tokens of a text that go over all its kinds of tokens.
pub(crate) struct Sample {
    pub(crate) model: Arc<TextModel>,
    pub(crate) tokens: Vec<TokenId>,
}

/// A byte-level BPE, as GPT-2's and Llama 3's are. Some characters come in
/// several tokens; all their bytes stand for themselves in its alphabet.
pub(crate) fn byte_level() -> Sample {
    let decoder = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let pieces = ["Ġthe", "Ġquick", "Ã", "©", "Ġa", "Ġfox", "ã", "¡", "¢", ",", "Ġand", "Ċ"];
    sample(&pieces, false, &decoder)
}

/// A SentencePiece BPE with byte fallback, as Llama 2's is.
pub(crate) fn sentence_piece() -> Sample {
    let decoder = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" },
        { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ] });
    let pieces = ["▁the", "▁quick", "<0xC3>", "<0xA9>", "▁a", "▁fox", ",", "▁and", "<0x0A>"];
    sample(&pieces, true, &decoder)
}

fn sample(pieces: &[&str], byte_fallback: bool, decoder: &Value) -> Sample {
    let mut vocab = Map::new();
    for piece in pieces.iter().map(|&piece| piece.to_owned()).chain(printable()) {
        let id = vocab.len();
        vocab.entry(piece).or_insert_with(|| json!(id));
    }
    let tokens = pieces.iter().map(|&piece| vocab[piece].as_u64().expect("an id") as TokenId);
    let tokens = tokens.collect();
    let pre_tokenizer = if byte_fallback { &Value::Null } else { decoder };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": decoder,
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": byte_fallback, "vocab": vocab, "merges": [] },
    });
    let config = json!({ "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}" });
    let dir = tempfile::tempdir().expect("a directory");
    for (name, value) in [("tokenizer.json", &tokenizer), ("tokenizer_config.json", &config)] {
        std::fs::write(dir.path().join(name), value.to_string()).expect("it is written");
    }
    let model = TextModel::load(dir.path(), &TextConfig::default()).expect("it loads");
    Sample { model: Arc::new(model), tokens }
}

/// Every printable ASCII character, for prompts.
fn printable() -> impl Iterator<Item = String> {
    (33..=126_u8).map(|byte| char::from(byte).to_string())
}
