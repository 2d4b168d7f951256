//! Chat templates beside transformers: llama.cpp's collection of real ones, and
//! small ones for each thing that they lean on (`data/templates.py`).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use sconce_text::{ChatTemplateOptions, TextConfig, TextError, TextModel};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::properties::{byte_level, write};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/data")
}

fn reference() -> Value {
    let text = std::fs::read(data().join("templates.json")).expect("the reference is committed");
    serde_json::from_slice(&text).expect("the reference is JSON")
}

/// llama.cpp's collection, fetched once.
fn collection() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("llama.cpp-templates-0.3.36");
    if !folder.is_dir() {
        let fetch = data().join("fetch_templates.py");
        let output = Command::new("python3").arg(fetch).arg(&folder).output();
        let output = output.expect("Python 3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    folder
}

/// A directory with a tokenizer and the reference's special tokens, for as many
/// templates as there are.
struct Models {
    dir: tempfile::TempDir,
    reference: Value,
}

impl Models {
    fn new() -> Self {
        let (dir, reference) = (tempfile::tempdir().expect("a directory"), reference());
        write(dir.path(), "tokenizer.json", &byte_level());
        write(dir.path(), "tokenizer_config.json", &reference["tokens"]);
        Self { dir, reference }
    }

    fn render(&self, template: &str, conversation: &str) -> Result<String, TextError> {
        let dates = self.reference["dates"].as_str().filter(|_| template.contains("strftime_now"));
        let path = self.dir.path().join("template.jinja");
        std::fs::write(&path, [dates.unwrap_or(""), template].concat()).expect("it is written");
        let model = TextModel::load(self.dir.path(), &TextConfig { chat_template: Some(path) })?;
        let conversation = &self.reference["conversations"][conversation];
        let messages = conversation["messages"].as_array().expect("a list");
        let options = ChatTemplateOptions {
            add_generation_prompt: conversation["add_generation_prompt"] == true,
            kwargs: conversation["kwargs"].as_object().expect("an object").clone(),
        };
        model.apply_chat_template(messages, &options)
    }
}

/// A rendering as the reference has it: half of a checksum, what was raised, or
/// null for a failure.
fn digest(rendered: Result<String, TextError>) -> (Value, String) {
    match rendered {
        Ok(text) => {
            let hash = Sha256::digest(text.as_bytes());
            let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
            (hex.into(), text)
        }
        Err(TextError::InvalidMessages(reason)) => (json!({ "raises": reason }), String::new()),
        Err(error) => (Value::Null, error.to_string()),
    }
}

#[test]
fn real_templates_render_as_in_transformers() {
    let (models, collection) = (Models::new(), collection());
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (name, renderings) in models.reference["corpus"].as_object().expect("an object") {
        let source = std::fs::read_to_string(collection.join(format!("{name}.jinja")));
        let source = source.expect("the collection has it");
        for (conversation, want) in renderings.as_object().expect("an object") {
            let (got, text) = digest(models.render(&source, conversation));
            compared += 1;
            if got != *want {
                wrong.push(format!("{name} / {conversation}: want {want}, got {got}: {text:.400}"));
            }
        }
    }
    assert!(compared > 1500, "{compared} renderings");
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_construct_renders_as_in_transformers() {
    let models = Models::new();
    let mut wrong = Vec::new();
    for case in models.reference["snippets"].as_array().expect("a list") {
        let template = case[0].as_str().expect("a template");
        match (models.render(template, "two calls"), case[1].as_str()) {
            (Ok(got), Some(want)) if got == want => {}
            (Err(_), None) => {}
            (got, want) => wrong.push(format!("{template}\n  want {want:?}\n  got  {got:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}
