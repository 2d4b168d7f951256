//! Qwen's config.json, where it differs from Llama's.

use sconce_kernels::{Routing, cpu::Cpu};
use sconce_models::{Checkpoint, Decoder, Mixture, ModelError, qwen2, qwen3, qwen3_moe};
use serde_json::{Value, json};

use crate::tiny;

/// A config.json of an architecture with these fields alone, as transformers' classes are
/// made without any.
fn read<C: Clone + 'static>(class: &str, fields: &Value) -> Result<C, ModelError> {
    let mut config = fields.clone();
    config["architectures"] = json!([class]);
    let dir = tempfile::tempdir().unwrap();
    tiny::write_config(dir.path(), &config);
    let checkpoint = Checkpoint::<Cpu>::open(dir.path())?;
    Ok(checkpoint.config::<C>().expect("the family's own").clone())
}

fn qwen2(fields: &Value) -> Result<qwen2::Config, ModelError> {
    read("Qwen2ForCausalLM", fields)
}

fn qwen3(fields: &Value) -> Result<qwen3::Config, ModelError> {
    read("Qwen3ForCausalLM", fields)
}

#[test]
fn defaults_are_those_of_the_config_class() {
    let qwen2::Config { base, windows } = qwen2(&json!({})).unwrap();
    let expected = Decoder {
        vocab_size: 151_936,
        hidden_size: 4096,
        intermediate_size: 22_016,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 32,
        max_position_embeddings: 32_768,
        rms_norm_eps: 1e-6,
        rope: base.rope,
        tie_word_embeddings: false,
    };
    assert_eq!(base, expected);
    assert_eq!((base.rope.head_dim, base.rope.theta), (128, 10_000.0));
    assert_eq!(windows, vec![None; 32]);
    let third = qwen3(&json!({})).unwrap();
    assert_eq!(third, qwen3::Config { base, attention_bias: false, windows });
    // Absent it is 32, null it is the heads of Q.
    let kv_heads = |fields| qwen2(&fields).map(|config| config.base.num_key_value_heads);
    assert_eq!(kv_heads(json!({ "num_attention_heads": 64 })).unwrap(), 32);
    let null = json!({ "num_attention_heads": 64, "num_key_value_heads": null });
    assert_eq!(kv_heads(null).unwrap(), 64);
    assert!(kv_heads(json!({ "num_attention_heads": 16 })).is_err());
}

#[test]
fn the_heads_of_qwen3_are_not_cut_from_the_hidden_size() {
    let fields = json!({ "num_attention_heads": 64, "attention_bias": true });
    assert_eq!(qwen2(&fields).unwrap().base.rope.head_dim, 64);
    let config = qwen3(&fields).unwrap();
    assert!(config.attention_bias);
    assert_eq!(config.base.rope.head_dim, 128);
    let error = qwen3(&json!({ "head_dim": null })).unwrap_err().to_string();
    assert!(error.contains("head_dim is null"), "{error}");
}

#[test]
fn layers_have_windows_only_where_config_json_says_so() {
    let windows = |fields: Value| {
        let mut config = json!({ "num_hidden_layers": 3, "max_window_layers": 2 });
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        qwen2(&config).map(|config| config.windows)
    };
    let kinds = ["sliding_attention", "full_attention", "sliding_attention"];
    for (fields, expected) in [
        (json!({ "sliding_window": 8 }), [None; 3]),
        (json!({ "sliding_window": 8, "use_sliding_window": false }), [None; 3]),
        (json!({ "sliding_window": 8, "use_sliding_window": true }), [None, None, Some(8)]),
        (json!({ "use_sliding_window": true }), [None, None, Some(4096)]),
        (json!({ "sliding_window": null, "use_sliding_window": true }), [None; 3]),
        (json!({ "use_sliding_window": true, "max_window_layers": 0 }), [Some(4096); 3]),
        (
            json!({ "sliding_window": 8, "use_sliding_window": true, "layer_types": kinds }),
            [Some(8), None, Some(8)],
        ),
        (json!({ "layer_types": vec!["full_attention"; 3] }), [None; 3]),
        (json!({ "layer_types": null }), [None; 3]),
    ] {
        assert_eq!(windows(fields.clone()).unwrap(), expected, "{fields}");
    }
    for (fields, named) in [
        (json!({ "layer_types": kinds }), "layer_types is sliding_attention, but must be full"),
        (json!({ "layer_types": ["full_attention"] }), "layer_types is a list of 1"),
        (json!({ "layer_types": vec!["linear_attention"; 3] }), "layer_types is linear_attention"),
        (json!({ "use_sliding_window": "yes" }), "use_sliding_window"),
        (json!({ "use_sliding_window": true, "sliding_window": 0 }), "sliding_window is 0"),
        (json!({ "use_sliding_window": true, "max_window_layers": -1 }), "max_window_layers is -1"),
    ] {
        let error = windows(fields.clone()).unwrap_err().to_string();
        assert!(error.contains(named), "{fields}: {error}");
    }
}

fn qwen3_moe(fields: &Value) -> Result<qwen3_moe::Config, ModelError> {
    read("Qwen3MoeForCausalLM", fields)
}

#[test]
fn defaults_of_experts_are_those_of_the_config_class() {
    let qwen3_moe::Config { base, attention_bias, sliding_window, mixture } =
        qwen3_moe(&json!({})).unwrap();
    let sizes = (base.hidden_size, base.intermediate_size, base.num_hidden_layers);
    assert_eq!(sizes, (2048, 6144, 24));
    assert_eq!((base.num_attention_heads, base.num_key_value_heads), (32, 4));
    assert_eq!((base.vocab_size, base.max_position_embeddings), (151_936, 32_768));
    assert_eq!((base.rope.head_dim, attention_bias, sliding_window), (64, false, None));
    let expected = Mixture {
        routing: Routing { num_experts: 128, top_k: 8, normalise: false },
        moe_intermediate_size: 768,
        decoder_sparse_step: 1,
        mlp_only_layers: vec![],
    };
    assert_eq!(mixture, Some(expected));
}

#[test]
fn layers_have_experts_where_config_json_says_so() {
    let sparse = |fields: Value| {
        let config = qwen3_moe(&fields).unwrap();
        config.mixture.map(|mixture| [0, 1, 2, 3].map(|layer| mixture.is_sparse(layer)))
    };
    assert_eq!(sparse(json!({})), Some([true; 4]));
    let fields = json!({ "decoder_sparse_step": 2, "mlp_only_layers": [3] });
    assert_eq!(sparse(fields), Some([false, true, false, false]));
    assert_eq!(sparse(json!({ "mlp_only_layers": null })), Some([true; 4]));
    for none in [
        json!({ "num_experts": 0 }),
        json!({ "decoder_sparse_step": 25 }),
        json!({ "num_hidden_layers": 2, "mlp_only_layers": [0, 1] }),
    ] {
        assert_eq!(sparse(none.clone()), None, "{none}");
    }
    // The one name of transformers 5, the other of checkpoints before it.
    for (fields, expected) in [
        (json!({ "num_experts": 16 }), 16),
        (json!({ "num_local_experts": 24 }), 24),
        (json!({ "num_experts": 16, "num_local_experts": 24 }), 24),
    ] {
        let mixture = qwen3_moe(&fields).unwrap().mixture.unwrap();
        assert_eq!(mixture.routing.num_experts, expected, "{fields}");
    }
}

#[test]
fn a_window_is_that_of_all_layers_of_experts() {
    for (fields, expected) in [
        (json!({ "sliding_window": 8 }), None),
        (json!({ "sliding_window": 8, "use_sliding_window": true }), Some(8)),
        (json!({ "sliding_window": null, "use_sliding_window": true }), None),
        (json!({ "use_sliding_window": true }), Some(4096)),
    ] {
        assert_eq!(qwen3_moe(&fields).unwrap().sliding_window, expected, "{fields}");
    }
}

#[test]
fn experts_that_cannot_be_are_refused_by_name() {
    for (fields, named) in [
        (json!({ "num_experts": 4 }), "num_experts_per_tok is 8, but must be at most num_experts"),
        (json!({ "num_experts": 2048 }), "num_experts is 2048"),
        (json!({ "num_experts_per_tok": 0 }), "num_experts_per_tok is 0"),
        (json!({ "moe_intermediate_size": 24 }), "moe_intermediate_size is 24"),
        (json!({ "hidden_size": 2056, "head_dim": 64 }), "hidden_size is 2056"),
        (json!({ "decoder_sparse_step": 0 }), "decoder_sparse_step is 0"),
        (json!({ "mlp_only_layers": [-1] }), "mlp_only_layers is [-1]"),
        (json!({ "mlp_only_layers": 3 }), "mlp_only_layers is 3"),
        (json!({ "norm_topk_prob": "yes" }), "norm_topk_prob"),
    ] {
        let error = qwen3_moe(&fields).unwrap_err().to_string();
        assert!(error.contains(named), "{fields}: {error}");
    }
}
