//! The detokenizer over every kind of decoder, on cases worked out by hand.

use sconce_text::{Detokenizer, TextConfig, TextModel, TokenText};
use serde_json::{Map, Value, json};

/// A vocabulary of the given tokens, and a decoder.
fn model(tokens: &[&str], decoder: &Value) -> TextModel {
    let mut vocab = Map::new();
    for token in tokens {
        let id = vocab.len();
        vocab.insert((*token).to_owned(), json!(id));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": decoder,
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    load(&tokenizer)
}

fn load(tokenizer: &Value) -> TextModel {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tokenizer.json");
    std::fs::write(path, tokenizer.to_string()).expect("it is written");
    TextModel::load(dir.path(), &TextConfig::default()).expect("it loads")
}

fn finish(mut detokenizer: Detokenizer, tokens: &[u32]) -> Vec<String> {
    let push = |&token: &u32| {
        let mut text = String::new();
        detokenizer.push(token, &mut text);
        text
    };
    let mut pieces: Vec<String> = tokens.iter().map(push).collect();
    let mut text = String::new();
    detokenizer.finish(&mut text);
    pieces.push(text);
    pieces
}

const SPM: [&str; 10] =
    ["▁he", "llo", "▁", "<0xF0>", "<0x9F>", "<0xA6>", "<0x96>", "<0x0A>", "true", "▁true"];

fn llama() -> Value {
    json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" }, { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
    ] })
}

/// No table can be made of it: whether a byte becomes a space depends on its run.
fn bytes_before_metaspace() -> Value {
    json!({ "type": "Sequence", "decoders": [
        { "type": "ByteFallback" },
        { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false },
    ] })
}

#[test]
fn a_character_comes_with_its_last_byte() {
    let emoji = [3, 4, 5, 6].repeat(4);
    for decoder in [llama(), bytes_before_metaspace()] {
        let model = model(&SPM, &decoder);
        let pieces = finish(model.detokenizer(&[0], true), &emoji);
        let expected = ["", "", "", "🦖"].repeat(4);
        assert_eq!(pieces[..16], expected);
        assert_eq!(pieces[16], "");
        assert_eq!(model.decode(&[0, 1, 2, 9], true).expect("it decodes"), "hello  true");
    }
}

#[test]
fn a_character_that_begins_in_the_prompt_comes_whole() {
    let level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let byte_level = model(&["h", "i", "ð", "Ł", "¦", "ĸ"], &level);
    let after = |model: &TextModel, prompt: &[u32], tokens: &[u32]| {
        finish(model.detokenizer(prompt, true), tokens).concat()
    };
    for cut in 1..4 {
        let (before, rest) = ([2, 3, 4, 5]).split_at(cut);
        let prompt = [&[0, 1], before].concat();
        assert_eq!(after(&byte_level, &prompt, &[rest, &[0]].concat()), "🦖h");
        // What is the prompt's is not answered with U+FFFD, what is not is.
        assert_eq!(after(&byte_level, &prompt, &[0]), "h");
        assert_eq!(after(&byte_level, &prompt, &[]), "");
    }
    assert_eq!(after(&byte_level, &[0, 2], &[3]), "\u{fffd}");
    assert_eq!(after(&byte_level, &[0, 2], &[3, 0]), "\u{fffd}h");
    for decoder in [llama(), bytes_before_metaspace()] {
        let model = model(&SPM, &decoder);
        for cut in 1..4 {
            let (before, rest) = ([3, 4, 5, 6]).split_at(cut);
            for run in [0, 1, 5] {
                let prompt = [&[0], &[3, 4, 5, 6].repeat(run)[..], before].concat();
                assert_eq!(after(&model, &prompt, &[rest, &[1]].concat()), "🦖llo");
            }
        }
    }
    let model = model(&SPM, &llama());
    assert_eq!(after(&model, &[0, 3, 4], &[1]), "llo");
    assert_eq!(after(&model, &[0, 3, 4], &[5, 1]), "\u{fffd}llo");
}

#[test]
fn valid_characters_of_a_run_with_invalid_bytes_come_out() {
    let model = model(&SPM, &llama());
    assert_eq!(model.decode(&[7, 3, 4, 1], true).expect("it decodes"), "\n\u{fffd}\u{fffd}llo");
    assert_eq!(model.decode(&[6, 3, 4, 5, 6], true).expect("it decodes"), "\u{fffd}🦖");
}

#[test]
fn only_the_first_word_of_a_text_loses_its_space() {
    let model = model(&SPM, &llama());
    let after = |prompt: &[u32]| finish(model.detokenizer(prompt, true), &[0, 1]).concat();
    assert_eq!(after(&[]), "hello");
    assert_eq!(after(&[1]), " hello");
    assert_eq!(after(&[2]), " hello");
    assert_eq!(after(&[0, 1]), " hello");
}

#[test]
fn decoders_of_every_kind_come_to_the_whole() {
    let words = ["he", "##llo", ".", "do", "n", "'", "t"];
    let word_piece = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let bpe = json!({ "type": "BPEDecoder", "suffix": "</w>" });
    let regex = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "Regex": "[_]+" }, "content": " " }, { "type": "Fuse" },
    ] });
    let ctc = json!({
        "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true,
    });
    let cases: [(&[&str], Value, &[u32], &str); 6] = [
        (&words, word_piece, &[0, 1, 2, 0, 1], "hello. hello"),
        (&["he", "llo</w>", "you</w>"], bpe, &[0, 1, 2, 0, 1], "hello you hello"),
        (&["a__b", "_c"], regex, &[0, 1, 0], "a b ca b"),
        (&["a", "b"], Value::Null, &[0, 1, 1], "a b b"),
        (&["h", "<pad>", "e", "|"], ctc, &[0, 0, 1, 0, 2, 2, 3, 0], "hhe h"),
        (&SPM, bytes_before_metaspace(), &[0, 1, 9, 3, 4, 5, 6, 7], "hello true🦖\n"),
    ];
    for (tokens, decoder, ids, expected) in cases {
        let model = model(tokens, &decoder);
        assert_eq!(model.decode(ids, true).expect("it decodes"), expected, "{decoder}");
        assert_eq!(finish(model.detokenizer(&[], true), ids).concat(), expected, "{decoder}");
        assert_eq!(model.decode(&[], true).expect("it decodes"), "", "{decoder}");
        for cut in 1..ids.len() {
            let before = model.decode(&ids[..cut], true).expect("it decodes");
            if before.ends_with('\u{fffd}') {
                continue;
            }
            let after = finish(model.detokenizer(&ids[..cut], true), &ids[cut..]).concat();
            assert_eq!(before + &after, expected, "{decoder} after {cut}");
        }
    }
}

/// Invalid bytes without end are passed on, in parts.
#[test]
fn a_window_does_not_grow_without_end() {
    let model = model(&SPM, &bytes_before_metaspace());
    let pieces = finish(model.detokenizer(&[0], true), &[3; 100]);
    assert_eq!(pieces.concat(), "\u{fffd}".repeat(100));
    assert!(pieces.iter().all(|piece| piece.chars().count() <= 16));
}

#[test]
fn a_tokens_text_has_its_space_and_its_bytes() {
    let text =
        |text: &str, bytes: &[u8]| TokenText { text: text.to_owned(), bytes: bytes.to_vec() };
    for decoder in [llama(), bytes_before_metaspace()] {
        let model = model(&SPM, &decoder);
        assert_eq!(model.token_text(8), text("true", b"true"));
        assert_eq!(model.token_text(3), text("\u{fffd}", &[0xf0]));
        assert_eq!(model.token_text(7), text("\n", b"\n"));
        assert_eq!(model.token_text(99), text("", b""));
        assert_eq!(model.token(9).as_deref(), Some("▁true"));
        assert_eq!(model.token(99), None);
    }
    assert_eq!(model(&SPM, &llama()).token_text(9), text(" true", b" true"));
}

#[test]
fn truncation_and_padding_are_not_the_prompts() {
    let tokenizer = |truncation: Value, padding: Value| {
        json!({
            "version": "1.0", "truncation": truncation, "padding": padding, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": { "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "vocab": { "a": 0, "b": 1 }, "merges": [] },
        })
    };
    let truncation = json!({
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
    });
    let padding = json!({
        "strategy": { "Fixed": 8 }, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 1,
        "pad_type_id": 0, "pad_token": "b",
    });
    for (truncation, padding) in [(truncation, Value::Null), (Value::Null, padding)] {
        let model = load(&tokenizer(truncation, padding));
        assert_eq!(model.encode("abab", true).expect("it encodes"), [0, 1, 0, 1]);
    }
}
