//! Which tokens end an answer, by the files that name them.

use std::{path::Path, slice::from_ref};

use sconce_text::{TextConfig, TextModel};
use serde_json::{Map, Value, json};

const NAMES: [&str; 9] = [
    "a",
    "</s>",
    "<|im_end|>",
    "<|im_start|>",
    "<|custom_end|>",
    "<|end|>",
    "<|return|>",
    "<plain>",
    "<|eot_id|>",
];

/// Ids of the end tokens of a directory with these files; the last of `NAMES` but one is
/// no special token, `<|return|>` is there if `with_return`.
fn ends(files: &[(&str, Value)], with_return: bool) -> Vec<u32> {
    let dir = tempfile::tempdir().expect("a directory");
    let mut vocab = Map::new();
    for name in NAMES.iter().filter(|name| with_return || **name != "<|return|>") {
        let id = vocab.len();
        vocab.insert((*name).to_owned(), json!(id));
    }
    let special = |(name, id): (&String, &Value)| {
        json!({
            "id": id, "content": name, "special": name != "<plain>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let added: Vec<Value> = vocab.iter().filter(|(name, _)| *name != "a").map(special).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    write(dir.path(), "tokenizer.json", &tokenizer);
    files.iter().for_each(|(name, value)| write(dir.path(), name, value));
    let model = TextModel::load(dir.path(), &TextConfig::default()).expect("it loads");
    model.eos_token_ids().to_vec()
}

fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), value.to_string()).expect("it is written");
}

#[test]
fn every_file_that_names_an_end_is_heard() {
    let generation = ("generation_config.json", json!({ "eos_token_id": [1, 4] }));
    let config = ("config.json", json!({ "eos_token_id": 2 }));
    let tokenizer = ("tokenizer_config.json", json!({ "eos_token": { "content": "<|eot_id|>" } }));
    let map = ("special_tokens_map.json", json!({ "eos_token": "<|im_start|>" }));
    assert_eq!(ends(&[], false), [0; 0]);
    assert_eq!(ends(from_ref(&generation), false), [1, 4]);
    assert_eq!(ends(from_ref(&config), false), [2]);
    assert_eq!(ends(from_ref(&tokenizer), false), [7]);
    assert_eq!(ends(from_ref(&map), false), [3]);
    assert_eq!(ends(&[generation, config, tokenizer, map], false), [1, 4, 2, 7, 3]);
    let same = json!({ "eos_token_id": 1 });
    let files = [("generation_config.json", same.clone()), ("config.json", same)];
    assert_eq!(ends(&files, false), [1]);
    let unknown = ("tokenizer_config.json", json!({ "eos_token": "<none>" }));
    assert_eq!(ends(&[unknown], false), [0; 0]);
}

#[test]
fn a_templates_ends_of_turns_are_ends() {
    let of = |template: &str, with_return: bool| {
        let config = json!({ "eos_token": "</s>", "chat_template": template });
        ends(&[("tokenizer_config.json", config)], with_return)
    };
    let chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    assert_eq!(of(chatml, false), [1, 2]);
    // By its place, whatever it is called.
    assert_eq!(of(&chatml.replace("im_end", "custom_end"), false), [1, 4]);
    // No special token ends a turn: text, an eos token, the beginning of the next turn.
    assert_eq!(of(&chatml.replace("<|im_end|>", "<plain>"), false), [1]);
    assert_eq!(of(&chatml.replace("<|im_end|>", "{{ eos_token }}"), false), [1]);
    assert_eq!(of("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", false), [1]);
    // A template that cannot be probed still names a token that is known.
    let picky = "{{ raise_exception('no') }}{{ messages[0].content }}<|eot_id|>";
    assert_eq!(of(picky, false), [1, 7]);
    // <|end|> ends a turn, but only a message of one where <|return|> ends the turn.
    let phi = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}";
    assert_eq!(of(phi, false), [1, 5]);
    let harmony = "{% for m in messages %}{{ m.content }}{% if loop.last %}<|return|>\
        {% else %}<|end|>{% endif %}{% endfor %}";
    assert_eq!(of(harmony, true), [1, 6]);
}
