//! Gemma's config.json, in both of its spellings.

use sconce_kernels::cpu::Cpu;
use sconce_models::{Checkpoint, Decoder, ModelError, RopeParams, RopeScaling, gemma3};
use serde_json::{Value, json};

use crate::tiny::{self, Tiny};

/// A config.json with these fields alone, as transformers' class is made without any.
fn read(fields: &Value) -> Result<gemma3::Config, ModelError> {
    let mut config = fields.clone();
    config["architectures"] = json!([tiny::GEMMA]);
    let dir = tempfile::tempdir().unwrap();
    tiny::write_config(dir.path(), &config);
    let checkpoint = Checkpoint::<Cpu>::open(dir.path())?;
    Ok(checkpoint.config::<gemma3::Config>().expect("a Gemma's").clone())
}

#[test]
fn defaults_are_those_of_the_config_class() {
    let config = read(&json!({})).unwrap();
    let rope = |theta| RopeParams { head_dim: 256, theta, scaling: RopeScaling::Default };
    let local = |index: usize| Some(4096).filter(|_| index % 6 != 5);
    let expected = gemma3::Config {
        base: Decoder {
            vocab_size: 262_208,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-6,
            rope: rope(1e6),
            tie_word_embeddings: true,
        },
        local_rope: rope(1e4),
        windows: (0..26).map(local).collect(),
        query_pre_attn_scalar: 256.0,
        attention_bias: false,
        final_logit_softcapping: None,
    };
    assert_eq!(config, expected);
    // Given as null they are as absent.
    let nulls = json!({
        "layer_types": null, "rope_scaling": null, "rope_parameters": null,
        "use_bidirectional_attention": null, "final_logit_softcapping": null,
        "attn_logit_softcapping": null,
    });
    assert_eq!(read(&nulls).unwrap(), expected);
}

#[test]
fn both_spellings_mean_the_same() {
    let tiny =
        Tiny { class: Some(tiny::GEMMA), layers: 5, sliding_window: Some(9), ..Tiny::default() };
    let newer = read(&tiny.config()).unwrap();
    let older = read(&Tiny { older: true, ..tiny }.config()).unwrap();
    assert_eq!(newer, older);
    assert_eq!(newer.windows, [Some(9), None, Some(9), None, Some(9)]);
    assert_ne!(newer.base.rope, newer.local_rope);
}

/// What transformers' `Gemma3TextConfig` makes of the same fields.
#[test]
fn each_kind_of_layers_has_its_own_rotary_embeddings() {
    let (none, linear) = (RopeScaling::Default, |factor| RopeScaling::Linear { factor });
    let scaled = json!({ "rope_type": "linear", "factor": 8.0 });
    let scaled_from =
        |theta: f64| json!({ "rope_type": "linear", "factor": 8.0, "rope_theta": theta });
    let plain = json!({ "rope_type": "default" });
    let plain_from = |theta: f64| json!({ "rope_type": "default", "rope_theta": theta });
    for (fields, global, local) in [
        (
            json!({ "rope_theta": 5e5, "rope_local_base_freq": 7e3, "rope_scaling": scaled }),
            (5e5, linear(8.0)),
            (7e3, none),
        ),
        (
            json!({ "rope_parameters": {
                "full_attention": scaled_from(5e5), "sliding_attention": plain_from(7e3),
            } }),
            (5e5, linear(8.0)),
            (7e3, none),
        ),
        // The bases beside them.
        (
            json!({
                "rope_theta": 5e5, "rope_local_base_freq": 7e3,
                "rope_parameters": { "full_attention": scaled, "sliding_attention": plain },
            }),
            (5e5, linear(8.0)),
            (7e3, none),
        ),
        // Within and beside: what is within counts.
        (
            json!({
                "rope_theta": 6e5, "rope_local_base_freq": 6e3,
                "rope_parameters": { "full_attention": scaled_from(5e5) },
            }),
            (5e5, linear(8.0)),
            (6e3, none),
        ),
        // Both spellings of the scaling: the older's fields over the newer's.
        (
            json!({
                "rope_scaling": { "factor": 2.0, "rope_theta": 3e5 },
                "rope_parameters": {
                    "full_attention": scaled_from(5e5), "sliding_attention": plain_from(7e3),
                },
            }),
            (3e5, linear(2.0)),
            (7e3, none),
        ),
        (
            json!({ "rope_parameters": { "sliding_attention": scaled } }),
            (1e6, none),
            (1e4, linear(8.0)),
        ),
        (
            json!({ "rope_parameters": { "full_attention": null, "sliding_attention": null } }),
            (1e6, none),
            (1e4, none),
        ),
        // `type` alone does not replace the default's `rope_type`.
        (json!({ "rope_scaling": { "type": "linear", "factor": 8.0 } }), (1e6, none), (1e4, none)),
    ] {
        let config = read(&fields).unwrap();
        let of = |(theta, scaling)| RopeParams { head_dim: 256, theta, scaling };
        assert_eq!((config.base.rope, config.local_rope), (of(global), of(local)), "{fields}");
    }
}

#[test]
fn windows_alternate_as_config_json_says() {
    let windows = |fields: Value| {
        let mut config = json!({ "num_hidden_layers": 3, "sliding_window": 8 });
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        read(&config).unwrap().windows
    };
    assert_eq!(windows(json!({})), [Some(8); 3]);
    assert_eq!(windows(json!({ "sliding_window_pattern": 1 })), [None; 3]);
    assert_eq!(windows(json!({ "sliding_window_pattern": 2 })), [Some(8), None, Some(8)]);
    // transformers writes this one beside `layer_types` and does not read it.
    assert_eq!(windows(json!({ "_sliding_window_pattern": 2 })), [Some(8); 3]);
    let kinds = ["full_attention", "sliding_attention", "full_attention"];
    let both = json!({ "layer_types": kinds, "sliding_window_pattern": 2 });
    assert_eq!(windows(both), [None, Some(8), None]);
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    for (field, value, told) in [
        (
            "use_bidirectional_attention",
            json!(true),
            "use_bidirectional_attention is true, but must be false",
        ),
        ("attn_logit_softcapping", json!(50.0), "attn_logit_softcapping is 50.0, but must be null"),
        (
            "final_logit_softcapping",
            json!(0.0),
            "final_logit_softcapping is 0, but must be a number above 0",
        ),
        ("final_logit_softcapping", json!("30"), "final_logit_softcapping is \"30\""),
        ("query_pre_attn_scalar", json!(0), "query_pre_attn_scalar is 0"),
        ("query_pre_attn_scalar", json!(null), "query_pre_attn_scalar is null"),
        (
            "hidden_activation",
            json!("silu"),
            "hidden_activation is silu, but must be \"gelu_pytorch_tanh\"",
        ),
        ("sliding_window", json!(null), "sliding_window is null"),
        ("sliding_window_pattern", json!(0), "sliding_window_pattern is 0"),
        (
            "layer_types",
            json!(["full_attention"]),
            "layer_types is a list of 1, but must be as long as",
        ),
        ("layer_types", json!(vec!["chunked_attention"; 26]), "layer_types is chunked_attention"),
        ("num_key_value_heads", json!(null), "num_key_value_heads is null"),
        ("rope_theta", json!(null), "rope_theta is null"),
        (
            "rope_local_base_freq",
            json!(-1.0),
            "rope_local_base_freq is -1, but must be a number above 0",
        ),
        (
            "rope_parameters",
            json!({ "rope_type": "default" }),
            "rope_parameters.rope_type is \"default\", but must be an object",
        ),
        (
            "rope_parameters",
            json!({ "sliding_attention": { "rope_type": "su" } }),
            "rope_parameters.sliding_attention.rope_type is su",
        ),
        ("rope_scaling", json!({ "rope_type": "linear" }), "rope_scaling.factor is absent"),
    ] {
        let error = read(&json!({ (field): value })).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

/// A model with a vision tower is another class; which is told.
#[test]
fn a_multimodal_gemma_is_told_which_is_served() {
    let fields = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
        "text_config": { "model_type": "gemma3_text" }, "vision_config": {},
    });
    let error = tiny::read_config(&fields).unwrap_err().to_string();
    assert!(error.contains("architectures is Gemma3ForConditionalGeneration"), "{error}");
    assert!(
        error.ends_with("Gemma3ForCausalLM; the nearest of these is Gemma3ForCausalLM"),
        "{error}"
    );
}
