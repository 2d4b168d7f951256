//! SentencePiece's BPE (Kudo and Richardson, 2018) as tokenizer.json says it.
//!
//! SentencePiece joins the two neighbours whose whole has the best score; tokenizer.json
//! lists pairs, of which the first is joined first. A token is any two tokens that make it,
//! so the pairs follow from the vocabulary and the scores.

use std::cmp::Reverse;

use serde_json::{Map, Value, json};

use super::{
    GgufError,
    metadata::{Metadata, refuse},
    tokenizer::{BYTE, NORMAL, Parts, USER_DEFINED},
};

/// What a space is in the vocabulary.
pub(super) const SPACE: &str = "▁";

/// The longest token that is cut in two at every place, in characters.
const MAX_PIECE: usize = 256;

pub(super) fn parts(
    metadata: &Metadata<'_>,
    vocab: &Map<String, Value>,
    kinds: &[i32],
    unknown: Option<&str>,
) -> Result<Parts, GgufError> {
    let space = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let mut normalizer = space.clone();
    // Whether a text begins with a space that is not in it.
    if metadata.flag_or("tokenizer.ggml.add_space_prefix", true)? {
        let prefix = json!({ "type": "Prepend", "prepend": SPACE });
        normalizer = json!({ "type": "Sequence", "normalizers": [prefix, space] });
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": kinds.contains(&BYTE), "ignore_merges": false,
        }),
        merges: merges(metadata, vocab, kinds)?,
        add_bos: true,
    })
}

/// Every pair of tokens that is a token together: those of the best score first, and of the
/// same score, as different halves of one token have it, the one with the longest left half.
fn merges(
    metadata: &Metadata<'_>,
    vocab: &Map<String, Value>,
    kinds: &[i32],
) -> Result<Vec<(String, String)>, GgufError> {
    let key = "tokenizer.ggml.scores";
    let scores = metadata.floats(key)?;
    if scores.len() != kinds.len() {
        let accepted = format!("one for each of {} tokens", kinds.len());
        return Err(refuse(key, &format_args!("{} scores", scores.len()), accepted));
    }
    let mut merges = Vec::new();
    for (id, token) in vocab.keys().enumerate() {
        // What users have defined is whole before anything is joined.
        let score = match kinds[id] {
            NORMAL => scores[id],
            USER_DEFINED => f32::INFINITY,
            _ => continue,
        };
        let starts: Vec<usize> = token.char_indices().map(|(start, _)| start).collect();
        if starts.len() > MAX_PIECE {
            let shown = format!("a token of {} characters", starts.len());
            let accepted = format!("tokens of at most {MAX_PIECE}");
            return Err(refuse("tokenizer.ggml.tokens", &shown, accepted));
        }
        for (left_len, &middle) in starts.iter().enumerate().skip(1) {
            let (left, right) = token.split_at(middle);
            if vocab.contains_key(left) && vocab.contains_key(right) {
                let right_len = starts.len() - left_len;
                merges.push((score, left_len, right_len, left.to_owned(), right.to_owned()));
            }
        }
    }
    // Stable: what is equal in all stays in the vocabulary's order.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(Reverse((a.1, a.2)).cmp(&Reverse((b.1, b.2)))));
    Ok(merges.into_iter().map(|(.., left, right)| (left, right)).collect())
}
