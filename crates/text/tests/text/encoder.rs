//! Long texts have the tokens that they have when they are tokenized at once, and texts
//! that are too long are refused.

use proptest::prelude::*;
use sconce_text::TextError;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::properties::{byte_level, model, sentencepiece};

/// `byte_level` with merges: some words, a run of spaces and, if wanted, two words in one.
fn words(pre_tokenizer: &Value, more: &[(&str, &str)]) -> Value {
    let mut tokenizer = byte_level();
    let merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("Ġ", "o"),
        ("Ġo", "f"),
        ("Ġ", "Ġ"),
        ("ĠĠ", "ĠĠ"),
        ("1", "2"),
        ("e", "Ġ"),
    ];
    let mut merged = Vec::new();
    for (left, right) in merges.iter().chain(more) {
        let id = 300 + merged.len();
        tokenizer["model"]["vocab"][format!("{left}{right}")] = json!(id);
        merged.push(json!([left, right]));
    }
    tokenizer["model"]["merges"] = merged.into();
    tokenizer["pre_tokenizer"] = pre_tokenizer.clone();
    let part = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let special = |token: &str, id: u32| json!({ "id": token, "ids": [id], "tokens": [token] });
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [part("<s>"), { "Sequence": { "id": "A", "type_id": 0 } }, part("</s>")],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<s>": special("<s>", 258), "</s>": special("</s>", 259) },
    });
    tokenizer
}

fn tokenizers() -> Vec<(&'static str, Value)> {
    let bytes = |use_regex: bool| {
        json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex,
        })
    };
    let split = |pattern: &str| {
        let split = json!({
            "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
            "invert": false,
        });
        json!({ "type": "Sequence", "pretokenizers": [split, bytes(false)] })
    };
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let superwords = [("Ġof", "Ġthe")];
    let mut composed = words(&bytes(true), &[]);
    composed["normalizer"] = json!({ "type": "NFC" });
    vec![
        ("gpt2", words(&bytes(true), &[])),
        ("llama3", words(&split(llama3), &[])),
        ("composed", composed),
        ("lines", words(&split(r"[^\n]+|\n"), &superwords)),
        ("unsplit", words(&bytes(false), &superwords)),
        ("sentencepiece", sentencepiece()),
    ]
}

/// Much text, with all that a tokenizer may look at beside a cut.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => Just(" of the".to_owned()),
        2 => Just("the ".to_owned()),
        2 => " {1,9}",
        1 => Just("\n".to_owned()),
        1 => Just("e\u{301}".to_owned()),
        1 => Just("<s>".to_owned()),
        2 => "[a-e0-3'.é漢🦖 ]{1,12}",
        1 => "[a-z]{1,400}",
    ];
    prop::collection::vec(part, 1..60).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn a_long_text_has_the_tokens_of_the_whole(text in text(), special: bool) {
        let text = text.repeat(40_000 / text.len() + 1);
        for (name, json) in tokenizers() {
            let model = model(&json);
            let reference = Tokenizer::from_bytes(json.to_string()).expect("it is one");
            let expected = reference.encode(text.as_str(), special).expect("it encodes");
            let tokens = model.encode(&text, special).expect("it encodes");
            prop_assert!(tokens == expected.get_ids(), "{} differs", name);
            // The limit is the number of tokens, exactly.
            let most = tokens.len();
            prop_assert!(model.encode_within(&text, special, most).expect("it fits") == tokens);
            let more = model.encode_within(&text, special, most - 1);
            prop_assert!(matches!(more, Err(TextError::TooManyTokens { .. })), "{}", name);
        }
    }
}

#[test]
fn what_cannot_fit_is_refused_by_its_length() {
    for (name, json) in tokenizers() {
        let model = model(&json);
        let most = model.max_bytes(100);
        assert!((100..10_000).contains(&most), "{name}: {most}");
        let long = model.encode_within(&"the ".repeat(1 << 20), true, 100);
        assert!(matches!(long, Err(TextError::TooManyTokens { most: 100 })), "{name}");
    }
}
