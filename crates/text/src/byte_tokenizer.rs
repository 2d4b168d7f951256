//! A tokenizer without a file.

use std::collections::HashMap;

use serde_json::json;

use crate::token_table::byte_of_char;

/// A tokenizer.json whose tokens are the bytes and, as 256, an end token.
pub(crate) fn byte_tokenizer() -> Vec<u8> {
    let vocab: HashMap<String, u8> =
        byte_of_char().into_iter().map(|(c, byte)| (c.to_string(), byte)).collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let end = json!({
        "id": 256, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [end], "pre_tokenizer": byte_level,
        "decoder": byte_level, "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    tokenizer.to_string().into_bytes()
}
