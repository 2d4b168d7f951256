//! The tokenizers and templates of Qwen3 and Gemma 3 beside transformers
//! (`data/tokenizers.py`).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use sconce_text::{ChatTemplateOptions, TextConfig, TextError, TextModel};
use serde_json::Value;

use crate::templates::data;

/// Both, fetched once.
fn fetched() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizers-3.7.2");
    if !folder.is_dir() {
        let fetch = data().join("fetch_tokenizers.py");
        let output = Command::new("python3").arg(fetch).arg(&folder).output();
        let output = output.expect("Python 3 runs");
        // Another test may have been first.
        let is_there = output.status.success() || folder.is_dir();
        assert!(is_there, "{}", String::from_utf8_lossy(&output.stderr));
    }
    folder
}

fn reference() -> Value {
    let text = std::fs::read(data().join("tokenizers.json")).expect("the reference is committed");
    serde_json::from_slice(&text).expect("the reference is JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("a list of token ids");
    ids.iter().map(|id| u32::try_from(id.as_u64().expect("an id")).expect("32 bits")).collect()
}

/// Token ids of texts of many kinds, and rendered conversations with their token ids.
fn check(name: &str, compared: usize) {
    let model = TextModel::load(&fetched().join(name), &TextConfig::default());
    let model = model.expect("the tokenizer and the template are read");
    let reference = reference();
    let expected = &reference["models"][name];
    let mut wrong = Vec::new();
    let texts = expected["texts"].as_array().expect("a list");
    for case in texts {
        let text = case["text"].as_str().expect("text");
        let got = model.encode(text, true).expect("it is encoded");
        if got != ids(&case["ids"]) {
            wrong.push(format!("{text:?}: want {}, got {got:?}", case["ids"]));
        }
    }
    let inputs = reference["conversations"].as_object().expect("an object");
    for (label, input) in inputs {
        let kwargs = input["kwargs"].as_object().expect("an object").clone();
        let options = ChatTemplateOptions { add_generation_prompt: true, kwargs };
        let messages = input["messages"].as_array().expect("a list");
        let want = &expected["conversations"][label];
        match (model.apply_chat_template(messages, &options), want["text"].as_str()) {
            (Ok(text), Some(want_text)) if text == want_text => {
                let got = model.encode(&text, false).expect("it is encoded");
                if got != ids(&want["ids"]) {
                    wrong.push(format!("{label}: want {}, got {got:?}", want["ids"]));
                }
            }
            (Err(TextError::InvalidMessages(reason)), None) if want["raises"] == *reason => {}
            (Err(_), None) if want.is_null() => {}
            (got, _) => wrong.push(format!("{label}: want {want}, got {got:?}")),
        }
    }
    assert_eq!(texts.len() + inputs.len(), compared);
    assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
}

#[test]
fn qwen3_is_as_in_transformers() {
    check("qwen3", 28);
}

#[test]
fn gemma3_is_as_in_transformers() {
    check("gemma3", 28);
}
