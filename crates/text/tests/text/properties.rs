//! Detokenizer and stop strings against what they should come to.

use std::path::Path;

use proptest::prelude::*;
use sconce_text::{StopStrings, TextConfig, TextError, TextModel};
use serde_json::{Map, Value, json};

/// GPT-2's printable stand-in for a byte.
pub(crate) fn stand_in(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&byte| !printable(byte)).count();
    char::from_u32(0x100 + u32::try_from(rank).expect("below 256")).expect("a character")
}

/// A byte-level BPE of all bytes, two merges and two special tokens.
pub(crate) fn byte_level() -> Value {
    let mut vocab = Map::new();
    for byte in 0..=255 {
        vocab.insert(stand_in(byte).to_string(), json!(byte));
    }
    vocab.insert("he".to_owned(), json!(256));
    // The first two bytes of "é" in a row of two: a token that ends within a character.
    let split: String = "éé".bytes().take(3).map(stand_in).collect();
    vocab.insert(split, json!(257));
    let special = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(258, "<s>"), special(259, "</s>")],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [["h", "e"]] },
    })
}

/// Llama 2's kind: words with a marked space, bytes for what has no token.
pub(crate) fn sentencepiece() -> Value {
    let mut vocab = Map::new();
    for (id, token) in ["<unk>", "▁", "▁he", "he", "llo", "▁wor", "ld", "é", "!"].iter().enumerate()
    {
        vocab.insert((*token).to_owned(), json!(id));
    }
    for byte in 0..=255_u32 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(9 + byte));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "post_processor": null,
        "pre_tokenizer": null,
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": [] },
    })
}

pub(crate) fn model(tokenizer: &Value) -> TextModel {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "tokenizer.json", tokenizer);
    TextModel::load(dir.path(), &TextConfig::default()).expect("it loads")
}

pub(crate) fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), value.to_string()).expect("it is written");
}

/// The text of tokens pushed one by one, and whether any piece ended within a
/// character.
fn pieces(model: &TextModel, tokens: &[u32], skip: bool) -> String {
    let mut text = String::new();
    let mut detokenizer = model.detokenizer(&[], skip);
    for &token in tokens {
        detokenizer.push(token, &mut text);
    }
    detokenizer.finish(&mut text);
    text
}

proptest! {
    /// Of any bytes, valid text or not, the pieces make up the whole.
    #[test]
    fn bytes_in_pieces_are_the_whole(tokens in prop::collection::vec(0_u32..260, 0..40), skip: bool) {
        let model = model(&byte_level());
        let whole = model.decode(&tokens, skip).expect("it decodes");
        prop_assert_eq!(pieces(&model, &tokens, skip), whole);
    }

    /// A text comes back whole, and no piece of it holds a broken character.
    #[test]
    fn texts_come_back_without_broken_characters(text in "\\PC{0,40}") {
        prop_assume!(!text.contains('\u{fffd}'));
        let model = model(&byte_level());
        let tokens = model.encode(&text, false).expect("it encodes");
        let mut detokenizer = model.detokenizer(&[], true);
        let mut out = String::new();
        for token in tokens {
            detokenizer.push(token, &mut out);
            prop_assert!(text.starts_with(&out), "{:?} is no beginning of {:?}", out, text);
        }
        detokenizer.finish(&mut out);
        prop_assert_eq!(out, text);
    }

    /// Decoders that look back at earlier tokens: the pieces are the whole too,
    /// where the whole is valid text.
    #[test]
    fn words_in_pieces_are_the_whole(words in prop::collection::vec(1_u32..9, 1..30)) {
        let model = model(&sentencepiece());
        let whole = model.decode(&words, true).expect("it decodes");
        prop_assert_eq!(pieces(&model, &words, true), whole);
    }

    /// Over a tiny alphabet with overlapping stops: the matcher finds what a
    /// plain search finds, wherever the text is cut, and leaks nothing.
    #[test]
    fn stops_are_found_as_by_a_plain_search(
        text in "[abé]{0,24}",
        stops in prop::collection::vec("[abé]{1,4}", 1..4),
        cuts in prop::collection::vec(1_usize..4, 0..24),
        include: bool,
    ) {
        // The match that ends first; of those, the one that began first.
        let found = stops
            .iter()
            .filter_map(|stop| text.find(stop.as_str()).map(|at| (at + stop.len(), at)))
            .min();
        let expected = match found {
            None => text.as_str(),
            Some((end, _)) if include => &text[..end],
            Some((_, start)) => &text[..start],
        };
        let mut matcher = StopStrings::new(stops.clone(), include).expect("valid stops");
        let mut out = String::new();
        let mut rest = text.as_str();
        let mut matched = None;
        for cut in cuts.into_iter().chain(std::iter::repeat(1)) {
            if rest.is_empty() || matched.is_some() {
                break;
            }
            let end = rest.char_indices().nth(cut).map_or(rest.len(), |(at, _)| at);
            matched = matcher.push(&rest[..end], true, &mut out);
            rest = &rest[end..];
            prop_assert!(expected.starts_with(&out), "{:?} leaks beyond {:?}", out, expected);
        }
        if matched.is_none() {
            matcher.finish(&mut out);
        }
        prop_assert_eq!(matched.is_some(), found.is_some());
        prop_assert_eq!(out, expected);
    }
}

#[test]
fn special_tokens_are_shown_or_skipped_and_have_their_text() {
    let model = model(&byte_level());
    let tokens = [104, 258, 105];
    assert_eq!(pieces(&model, &tokens, true), "hi");
    assert_eq!(pieces(&model, &tokens, false), "h<s>i");
    assert_eq!(model.encode("h<s>i", false).expect("it encodes"), tokens);
    let half = model.token_text(0xc3);
    assert_eq!((half.text.as_str(), half.bytes.as_slice()), ("\u{fffd}", &[0xc3][..]));
}

#[test]
fn a_tokenizer_that_does_not_fit_says_both_numbers() {
    let model = model(&byte_level());
    assert_eq!(model.vocab_size(), 260);
    assert!(model.check_fits(260).is_ok());
    let error = model.check_fits(259).expect_err("token 259 has no place");
    assert!(matches!(error, TextError::VocabularyMismatch { largest_token: 259, vocab_size: 259 }));
}

#[test]
fn what_is_wrong_with_a_directory_is_told_by_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let load = || match TextModel::load(dir.path(), &TextConfig::default()) {
        Ok(_) => panic!("it must not load"),
        Err(error) => error.to_string(),
    };
    assert!(load().contains("tokenizer.json"));
    std::fs::write(dir.path().join("tokenizer.json"), "{ not json").expect("it is written");
    assert!(load().contains("tokenizer.json"));
    write(dir.path(), "tokenizer.json", &byte_level());
    write(dir.path(), "generation_config.json", &json!({ "eos_token_id": "two" }));
    assert!(load().contains("eos_token_id"));
    write(dir.path(), "generation_config.json", &json!({ "eos_token_id": [258, 259] }));
    write(dir.path(), "tokenizer_config.json", &json!({ "chat_template": "{% if %}" }));
    assert!(load().contains("chat template"));
    write(dir.path(), "tokenizer_config.json", &json!({ "chat_template": "{{ messages }}" }));
    let model = TextModel::load(dir.path(), &TextConfig::default()).expect("it loads");
    assert_eq!(model.eos_token_ids()[..], [258, 259]);
    assert!(model.has_chat_template());
}

#[test]
fn stops_beyond_the_limits_are_refused() {
    let refused = |stops: Vec<String>| StopStrings::new(stops, false).is_err();
    assert!(refused(vec![String::new()]));
    assert!(refused(vec!["a".to_owned(); 17]));
    assert!(refused(vec!["a".repeat(1025)]));
    assert!(!refused(vec!["a".repeat(1024); 16]));
}
