//! Chat templates beside transformers: llama.cpp's collection of real ones, and
//! small ones for each thing that they lean on (`data/templates.py`).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;
use sconce_text::{ChatTemplateOptions, TextConfig, TextError, TextModel};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::properties::{byte_level, write};

pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/data")
}

fn reference() -> Value {
    let text = std::fs::read(data().join("templates.json")).expect("the reference is committed");
    serde_json::from_slice(&text).expect("the reference is JSON")
}

/// llama.cpp's collection, fetched once.
pub(crate) fn collection() -> PathBuf {
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

/// A directory with a template; what `files` hold besides.
fn load(template: &str, files: &[(&str, Value)]) -> Result<TextModel, TextError> {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "tokenizer.json", &byte_level());
    for (name, value) in files {
        write(dir.path(), name, value);
    }
    if !template.is_empty() {
        std::fs::write(dir.path().join("chat_template.jinja"), template).expect("it is written");
    }
    TextModel::load(dir.path(), &TextConfig::default())
}

fn user(model: &TextModel) -> String {
    let messages = [json!({ "role": "user", "content": "Hi" })];
    model.apply_chat_template(&messages, &ChatTemplateOptions::default()).expect("it renders")
}

#[test]
fn special_tokens_are_found_where_transformers_finds_them() {
    let template = "{{ bos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}{{ image_token }}";
    let config = |listed: bool| {
        let mut config = json!({
            "bos_token": { "__type": "AddedToken", "content": "<s>" }, "unk_token": "<u>",
            "pad_token": null, "add_bos_token": true, "image_token": "<i>",
        });
        if listed {
            config["added_tokens_decoder"] = json!({});
        }
        config
    };
    let map = json!({ "pad_token": { "content": "<p>", "lstrip": false }, "unk_token": "<unk>" });
    let old = [("tokenizer_config.json", config(false)), ("special_tokens_map.json", map.clone())];
    assert_eq!(user(&load(template, &old).expect("it loads")), "<s><unk><p><i>");
    let new = [("tokenizer_config.json", config(true)), ("special_tokens_map.json", map)];
    assert_eq!(user(&load(template, &new).expect("it loads")), "<s><u><i>");
}

#[test]
fn a_processors_template_is_the_last_resort() {
    let processor = ("chat_template.json", json!({ "chat_template": "processor" }));
    let config = ("tokenizer_config.json", json!({ "chat_template": "tokenizer" }));
    let named = json!({ "chat_template": [{ "name": "default", "template": "named" }] });
    let with = |files: &[(&str, Value)]| user(&load("", files).expect("it loads"));
    assert_eq!(with(std::slice::from_ref(&processor)), "processor");
    assert_eq!(with(&[processor, config]), "tokenizer");
    assert_eq!(with(&[("tokenizer_config.json", named)]), "named");
}

#[test]
fn what_fails_is_known_before_the_first_request() {
    let faults = |template: &str| load(template, &[]).expect("it loads").chat_template_faults();
    assert_eq!(faults("{{ messages[0].content }}"), Vec::<String>::new());
    let whole = faults("{{ messages[0].content.nothing() }}");
    assert_eq!(whole.len(), 3, "{whole:?}");
    assert!(whole[0].starts_with("one user message: the chat template failed"), "{whole:?}");
    let turns =
        faults("{% for m in messages %}{{ m.role | assistant_only }}{% break %}{% endfor %}");
    assert_eq!(turns.len(), 3, "{turns:?}");
    let later =
        faults("{{ messages[0].content }}{% if messages | length > 2 %}{{ 1 / 0 }}{% endif %}");
    assert_eq!(later.len(), 1, "{later:?}");
    assert!(later[0].starts_with("three turns: "), "{later:?}");
    // Gemma's way.
    let system = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}";
    assert_eq!(faults(system), Vec::<String>::new());
    assert!(load("{% if %}", &[]).is_err());
}

#[test]
fn an_operators_template_is_read_up_to_a_length() {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path(), "tokenizer.json", &byte_level());
    let path = dir.path().join("operators.jinja");
    let load = || {
        TextModel::load(dir.path(), &TextConfig { chat_template: Some(path.clone()) })
            .map(|model| user(&model).len())
            .map_err(|error| error.to_string())
    };
    let missing = load().expect_err("there is no file");
    assert!(missing.contains("operators.jinja: No such file"), "{missing}");
    std::fs::write(&path, "a".repeat(1 << 20)).expect("it is written");
    assert_eq!(load(), Ok(1 << 20));
    std::fs::write(&path, "a".repeat((1 << 20) + 1)).expect("it is written");
    let long = load().expect_err("it is too long");
    assert!(long.ends_with("the file has more than 1048576 bytes"), "{long}");
    std::fs::write(&path, b"\xff\xfe").expect("it is written");
    let binary = load().expect_err("it is no text");
    assert!(binary.contains("operators.jinja: stream did not contain valid UTF-8"), "{binary}");
    std::fs::remove_file(&path).expect("it is removed");
    std::fs::create_dir(&path).expect("it is made");
    assert!(load().expect_err("a folder").starts_with("cannot read "));
}

proptest! {
    /// Whatever a template holds: it is refused, or it renders or fails.
    #[test]
    fn no_template_panics(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "{{", "}}", "{%", "%}", "{#", "#}", "-", "+", "%", "~", "|", "(", ")", "[", "]",
                "{", "}", ":", ",", ".", "'", "\"", "\\", " ", "\n", "\r", "1", "1.5", "é", "🦖", "x",
                "messages", "for ", " in ", "if ", "endfor", "endif", "raw", "endraw", "set ", "=",
                "generation", "endgeneration", "safe", "e", "'a'", "'%s'", "[::-1]", "[1:]", "**",
                "is ", "not ", "none", "range(3)", "tojson", "list", "{{ messages", " }}", "{% ",
            ]),
            0..24,
        ),
    ) {
        if let Ok(model) = load(&parts.concat(), &[]) {
            for fault in model.chat_template_faults() {
                prop_assert!(!fault.contains("panicked"), "{fault}");
            }
        }
    }
}
