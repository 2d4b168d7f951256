//! Damaged tokenizer.json files: refused with a reason, or loaded and working.

use proptest::prelude::*;
use sconce_text::{TextConfig, TextError, TextModel};
use serde_json::{Value, json};

use crate::properties::{byte_level, sentencepiece};

fn load(bytes: &[u8]) -> Result<TextModel, TextError> {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("tokenizer.json"), bytes).expect("it is written");
    TextModel::load(dir.path(), &TextConfig::default())
}

fn refused(tokenizer: &Value) -> String {
    match load(tokenizer.to_string().as_bytes()) {
        Ok(_) => panic!("it must not load"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_id_far_beyond_the_vocabulary_is_refused_by_name() {
    for id in [1_u64 << 31, u64::from(u32::MAX), 1 << 20] {
        let mut tokenizer = byte_level();
        tokenizer["model"]["vocab"]["far"] = json!(id);
        let reason = refused(&tokenizer);
        assert!(reason.contains("tokenizer.json") && reason.contains("\"far\""), "{reason}");
        assert!(reason.contains(&id.to_string()) && reason.contains("65535"), "{reason}");
    }
    let mut tokenizer = byte_level();
    tokenizer["added_tokens"][0]["id"] = json!(1_u64 << 31);
    assert!(refused(&tokenizer).contains("\"<s>\""));
    // Gaps are usual.
    let mut tokenizer = byte_level();
    tokenizer["model"]["vocab"]["far"] = json!(60_000);
    assert!(load(tokenizer.to_string().as_bytes()).is_ok());
}

#[test]
fn what_panics_in_the_crate_is_an_error() {
    let mut tokenizer = byte_level();
    // A character map whose offsets lead out of it.
    let map = "BAAAAP////////////////8=";
    tokenizer["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": map });
    let reason = refused(&tokenizer);
    assert!(reason.contains("tokenizer.json") && reason.contains("charsmap"), "{reason}");
}

/// One change of a JSON document.
#[derive(Clone, Debug)]
enum Damage {
    Byte(usize, u8),
    Cut(usize),
    Field(usize, Value),
}

fn damage() -> impl Strategy<Value = Damage> {
    let value = prop_oneof![
        Just(Value::Null),
        Just(json!(-1)),
        Just(json!(1_u64 << 31)),
        Just(json!(u64::MAX)),
        Just(json!(1e300)),
        Just(json!("")),
        Just(json!("\u{0}é")),
        Just(json!([])),
        Just(json!({})),
        Just(json!(true)),
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), value).prop_map(|(at, value)| Damage::Field(at, value)),
    ]
}

/// The value that is the `at`-th in a walk through the document.
fn nth<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, at)),
        Value::Object(fields) => fields.values_mut().find_map(|item| nth(item, at)),
        _ => None,
    }
}

fn damaged(mut file: Value, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if let Damage::Field(at, with) = damage {
            // Most of the document is its vocabulary; the fields around it matter more.
            let mut at = if at % 2 == 0 { at % 60 } else { at % 700 };
            if let Some(value) = nth(&mut file, &mut at) {
                *value = with.clone();
            }
        }
    }
    let mut bytes = file.to_string().into_bytes();
    for damage in damages {
        match damage {
            Damage::Byte(at, byte) if !bytes.is_empty() => {
                let at = at % bytes.len();
                bytes[at] = *byte;
            }
            Damage::Cut(at) => bytes.truncate(at % (bytes.len() + 1)),
            _ => {}
        }
    }
    bytes
}

proptest! {
    /// Whatever is wrong with the file: an error that names it, or a tokenizer
    /// whose tables are bounded and which works.
    #[test]
    fn a_damaged_file_is_refused_or_works(
        level: bool, damages in prop::collection::vec(damage(), 1..4),
    ) {
        let file = if level { byte_level() } else { sentencepiece() };
        match load(&damaged(file, &damages)) {
            Err(error) => prop_assert!(error.to_string().contains("tokenizer.json"), "{error}"),
            Ok(model) => {
                prop_assert!(model.vocab_size() <= 1 << 20);
                _ = model.encode("Hello, wörld! 🦖", true);
                _ = model.decode(&[0, 1, 2, 300], false);
            }
        }
    }
}
