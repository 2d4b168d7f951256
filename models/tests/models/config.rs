//! config.json: what is read, and what is refused by name.

use sconce_models::ModelError;
use serde_json::{Value, json};

use crate::tiny::{self, Tiny};

#[test]
fn defaults_follow_transformers() {
    let mut config = Tiny::default().config();
    for field in ["num_key_value_heads", "head_dim", "rope_theta", "sliding_window"] {
        config.as_object_mut().unwrap().remove(field);
    }
    config["hidden_size"] = json!(64);
    let read = tiny::read_config(&config).unwrap();
    assert_eq!(read.num_kv_heads, read.num_heads);
    assert_eq!(read.head_dim, 64 / read.num_heads);
    assert_eq!(read.rope_theta, 10_000.0);
    assert_eq!(read.sliding_window, None);
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let huge = json!(u64::MAX);
    let yarn = |field: &str, value: Value| {
        let mut scaling = json!({ "rope_type": "yarn", "factor": 2.0 });
        scaling[field] = value;
        scaling
    };
    let cases: Vec<(&str, Value, &str)> = vec![
        ("architectures", json!(["GPT2LMHeadModel"]), "LlamaForCausalLM"),
        ("architectures", json!([]), "architectures"),
        ("vocab_size", json!(0), "vocab_size"),
        ("vocab_size", json!("many"), "vocab_size"),
        ("vocab_size", json!(-1), "vocab_size"),
        ("hidden_size", huge.clone(), "hidden_size"),
        ("intermediate_size", huge.clone(), "intermediate_size"),
        ("num_hidden_layers", json!(1_000_000), "num_hidden_layers"),
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_key_value_heads", json!(3), "num_key_value_heads"),
        ("num_key_value_heads", json!(0), "num_key_value_heads"),
        ("head_dim", json!(12), "head_dim"),
        ("intermediate_size", json!(88), "intermediate_size"),
        ("head_dim", huge.clone(), "head_dim"),
        ("max_position_embeddings", huge, "max_position_embeddings"),
        ("rms_norm_eps", json!(0.0), "rms_norm_eps"),
        ("rope_theta", json!(-1.0), "rope_theta"),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("sliding_window", json!(0), "sliding_window"),
        ("quantization_config", json!({ "quant_method": "awq" }), "quantization_config"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("rope_scaling", json!({ "type": "dynamic", "factor": 2.0 }), "dynamic"),
        ("rope_scaling", json!({ "type": "linear" }), "factor"),
        ("rope_scaling", json!({ "type": "linear", "factor": "two" }), "rope_scaling.factor"),
        ("rope_scaling", json!({ "rope_type": "llama3", "factor": 8.0 }), "low_freq_factor"),
        ("rope_scaling", yarn("original_max_position_embeddings", json!(0)), "original_max"),
        ("rope_scaling", yarn("beta_fast", json!(-1.0)), "beta_fast"),
        ("rope_scaling", yarn("attention_factor", json!(0.0)), "attention_factor"),
    ];
    for (field, value, named) in cases {
        let mut config = Tiny::default().config();
        config[field] = value.clone();
        let message = match tiny::read_config(&config) {
            Ok(_) => panic!("{field} = {value} was accepted"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(named), "{field} = {value}: {message}");
    }
}

#[test]
fn heads_that_do_not_divide_the_hidden_size_need_a_head_dim() {
    let mut config = Tiny::default().config();
    config["head_dim"] = Value::Null;
    config["hidden_size"] = json!(50);
    let error = tiny::read_config(&config).unwrap_err();
    assert!(error.to_string().contains("num_attention_heads is 4"), "{error}");
}

#[test]
fn a_file_that_is_no_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let read = || sconce_models::ModelConfig::read(dir.path()).unwrap_err();
    assert!(matches!(read(), ModelError::Io { .. }));
    for text in ["", "{", "[]", "null", "{} {}", "\u{0}"] {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let error = read();
        assert!(matches!(error, ModelError::Json { .. }), "{text:?}: {error}");
        assert!(error.to_string().contains("config.json"), "{text:?}: {error}");
    }
}
