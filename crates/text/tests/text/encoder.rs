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

/// An added token that takes the whitespace beside it, as Phi-3's and RoBERTa's have.
fn greedy_token(mut tokenizer: Value, lstrip: bool) -> Value {
    let token = json!({
        "id": 290, "content": "<greedy>", "special": true, "single_word": false,
        "lstrip": lstrip, "rstrip": !lstrip, "normalized": false,
    });
    let added = tokenizer["added_tokens"].as_array_mut().expect("a list");
    added.push(token);
    tokenizer
}

fn with(mut tokenizer: Value, part: &str, value: Value) -> Value {
    tokenizer[part] = value;
    tokenizer
}

/// BERT's kind: a word with an unknown part, or of more than ten characters, is one token.
fn word_piece() -> Value {
    let vocab = json!({ "[UNK]": 0, "the": 1, "a": 2, "##a": 3, "##b": 4, "of": 5, "'": 6 });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab,
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 300 },
    })
}

fn word_level() -> Value {
    let model = json!({
        "type": "WordLevel", "unk_token": "[UNK]", "vocab": { "[UNK]": 0, "the": 1, "of": 2 },
    });
    with(with(word_piece(), "model", model), "pre_tokenizer", json!({ "type": "WhitespaceSplit" }))
}

/// T5's kind, whose unknown characters in a row are one token.
fn unigram(bytes: bool) -> Value {
    let known = ["<unk>", "\u{2581}", "\u{2581}the", "the", "\u{2581}of", "a", "b"];
    let mut vocab: Vec<Value> = known.iter().map(|token| json!([token, -1.0])).collect();
    if bytes {
        vocab.extend((0..=255).map(|byte| json!([format!("<0x{byte:02X}>"), -9.0])));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "post_processor": null, "decoder": null,
        "pre_tokenizer": { "type": "Metaspace", "replacement": "\u{2581}",
            "prepend_scheme": "always", "split": true },
        "model": { "type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": bytes },
    })
}

/// SentencePiece without tokens for bytes.
fn characters(unk_token: Option<&str>, fuse_unk: bool) -> Value {
    let mut tokenizer = sentencepiece();
    tokenizer["model"]["byte_fallback"] = json!(false);
    tokenizer["model"]["fuse_unk"] = json!(fuse_unk);
    tokenizer["model"]["unk_token"] = json!(unk_token);
    tokenizer
}

/// Tokenizers of which one token can stand for text of any length.
fn unbounded() -> Vec<(&'static str, Value)> {
    let normalized = |normalizer: Value| with(byte_level(), "normalizer", normalizer);
    let bert = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": false,
        "strip_accents": null, "lowercase": false,
    });
    let removed = |pattern: Value| {
        let split = json!({
            "type": "Split", "pattern": pattern, "behavior": "Removed", "invert": false,
        });
        let bytes = byte_level()["pre_tokenizer"].clone();
        let sequence = json!({ "type": "Sequence", "pretokenizers": [split, bytes] });
        with(byte_level(), "pre_tokenizer", sequence)
    };
    let replaced = |pattern: Value, content: &str| {
        normalized(json!({ "type": "Replace", "pattern": pattern, "content": content }))
    };
    let mut some_bytes = byte_level();
    let vocab = some_bytes["model"]["vocab"].as_object_mut().expect("a vocabulary");
    vocab.remove("x").expect("it has all bytes");
    vec![
        ("lstrip", greedy_token(byte_level(), true)),
        ("rstrip", greedy_token(byte_level(), false)),
        ("word piece", word_piece()),
        ("word level", word_level()),
        ("unigram", unigram(false)),
        ("fused unknown", characters(Some("<unk>"), true)),
        ("no unknown", characters(None, false)),
        ("a byte without a token", some_bytes),
        ("Strip", normalized(json!({ "type": "Strip", "strip_left": true, "strip_right": true }))),
        ("StripAccents", normalized(json!({ "type": "StripAccents" }))),
        ("Nmt", normalized(json!({ "type": "Nmt" }))),
        ("BertNormalizer", normalized(bert)),
        ("Replace with nothing", replaced(json!({ "String": "x" }), "")),
        ("Replace by pattern", replaced(json!({ "Regex": "<i>.*</i>| {2,}" }), " ")),
        ("Split", removed(json!({ "Regex": "<i>.*</i>" }))),
        ("Split at text", removed(json!({ "String": " " }))),
    ]
}

/// Text that one kind or another makes little of.
fn vanishing_texts() -> Vec<String> {
    let many = |text: &str| text.repeat(34_000 / text.len() + 1);
    vec![
        many("x"),
        many("\u{6f22}"),
        many(" "),
        many("\u{301}"),
        many("\u{1}"),
        format!("{}<greedy>", many(" ")),
        format!("<greedy>{}", many(" \n")),
        format!("<i>{}</i>", many("the of ")),
        // A word of which the last part alone has a token for each character.
        format!("{}{}", "\u{6f22}".repeat(11_000), "a".repeat(200)),
        many(&format!("{}\u{6f22} ", "a".repeat(200))),
    ]
}

#[test]
fn a_text_is_refused_only_if_it_has_more_tokens() {
    let bounded = [
        ("unigram with bytes", unigram(true)),
        ("unknown characters", characters(Some("<unk>"), false)),
        ("lowercase", with(byte_level(), "normalizer", json!({ "type": "Lowercase" }))),
        ("compatible", with(byte_level(), "normalizer", json!({ "type": "NFKC" }))),
    ];
    let all = unbounded().into_iter().chain(bounded).chain(tokenizers());
    let mut texts = vanishing_texts();
    // Four bytes that NFKC makes one of, and three that lower case makes one of.
    texts.extend(["\u{1d400}".repeat(1_000), "\u{212a}".repeat(1_000)]);
    for (name, json) in all {
        let model = model(&json);
        let reference = Tokenizer::from_bytes(json.to_string()).expect("it is one");
        for text in &texts {
            let expected = reference.encode(text.as_str(), false).expect("it encodes");
            let most = expected.len();
            let start: String = text.chars().take(12).collect();
            assert!(text.len() <= model.max_bytes(most), "{name}: {start}: {most} tokens");
            let tokens = model.encode_within(text, false, most);
            assert_eq!(tokens.expect(name), expected.get_ids(), "{name}: {start}");
            if let Some(fewer) = most.checked_sub(1) {
                let refused = model.encode_within(text, false, fewer);
                let is_refused = matches!(refused, Err(TextError::TooManyTokens { .. }));
                assert!(is_refused, "{name}: {start}");
            }
        }
    }
}

#[test]
fn without_a_bound_of_bytes_a_long_text_is_refused_by_its_pieces() {
    for (name, json) in unbounded() {
        assert_eq!(model(&json).max_bytes(1), usize::MAX, "{name}");
    }
    let model = model(&greedy_token(byte_level(), true));
    let long = model.encode_within(&"the of ".repeat(1 << 18), true, 100);
    assert!(matches!(long, Err(TextError::TooManyTokens { most: 100 })));
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
    for (name, json) in tokenizers().into_iter().chain([("unigram", unigram(true))]) {
        let model = model(&json);
        let most = model.max_bytes(100);
        assert!((100..10_000).contains(&most), "{name}: {most}");
        let long = model.encode_within(&"the ".repeat(1 << 20), true, 100);
        assert!(matches!(long, Err(TextError::TooManyTokens { most: 100 })), "{name}");
    }
}

/// BERT's kind: words in pieces, `[CLS]` before a text and `[SEP]` after it.
fn word_pieces() -> Value {
    let vocab = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "##b", "the"];
    let vocab: serde_json::Map<_, _> =
        vocab.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let part = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let special = |token: &str, id: u32| json!({ "id": token, "ids": [id], "tokens": [token] });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [part("[CLS]"), { "Sequence": { "id": "A", "type_id": 0 } }, part("[SEP]")],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "[CLS]": special("[CLS]", 1), "[SEP]": special("[SEP]", 2) },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    })
}

#[test]
fn a_cut_text_has_its_first_tokens_and_what_stands_around_texts() {
    let model = model(&word_pieces());
    // A word that has no token is one token, however long.
    let long_words = format!("{} the", "é".repeat(150)).repeat(60);
    for text in ["", "a", "The abb, a!", &"a bb the\n".repeat(90), &long_words, &"é".repeat(999)] {
        let whole = model.encode(text, false).expect("it is tokenized");
        for most in [1, 2, 3, 7, 40, 4000] {
            let cut = |special| model.encode_truncated(text, special, most).expect("tokenized");
            assert_eq!(cut(false), whole[..whole.len().min(most)], "{most}: {text}");
            let inner = &whole[..whole.len().min(most.saturating_sub(2))];
            let mut around = [&[1], inner, &[2]].concat();
            around.truncate(most);
            assert_eq!(cut(true), around, "{most}: {text}");
        }
    }
}
