//! config.json: what is read, and what is refused by name.

use sconce_kernels::cpu::Cpu;
use sconce_models::{Checkpoint, Decoder, ModelError, RopeParams, llama};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::tiny::{self, Tiny};

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    effective: Option<Effective>,
    refused: Option<String>,
    refused_here: Option<String>,
}

#[derive(Deserialize)]
struct Effective {
    architecture: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    tie_word_embeddings: bool,
    attention_bias: bool,
    mlp_bias: bool,
    sliding_window: Option<usize>,
    inverse_frequencies: Vec<f64>,
    attention_factor: f64,
}

/// `data/configs.py` wrote the cases: what transformers' config classes and rotary
/// embeddings make of files with fields absent, null, misplaced and at odds.
#[test]
fn every_field_is_read_as_transformers_reads_it() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("data/configs.json")).unwrap();
    assert!(cases.len() > 200);
    let mut wrong = Vec::new();
    for Case { name, config, effective, refused, refused_here } in cases {
        let read = tiny::read_config(&config);
        let verdict = match (effective, read) {
            (Some(effective), Ok((architecture, _))) if effective.architecture != architecture => {
                format!("{architecture} for {}", effective.architecture)
            }
            (Some(effective), Ok((_, read))) => differences(&effective, &read),
            (Some(_), Err(error)) => format!("refused: {error}"),
            (None, Ok(_)) => format!("accepted, but {:?}", refused.or(refused_here)),
            (None, Err(error)) => {
                assert!(matches!(error, ModelError::Config { .. }), "{name}: {error}");
                String::new()
            }
        };
        if !verdict.is_empty() {
            wrong.push(format!("{name}: {verdict}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn differences(effective: &Effective, read: &llama::Config) -> String {
    let Effective { inverse_frequencies, attention_factor, .. } = effective;
    let rope = read.base.rope;
    let expected = llama::Config {
        base: Decoder {
            vocab_size: effective.vocab_size,
            hidden_size: effective.hidden_size,
            intermediate_size: effective.intermediate_size,
            num_hidden_layers: effective.num_layers,
            num_attention_heads: effective.num_heads,
            num_key_value_heads: effective.num_kv_heads,
            max_position_embeddings: effective.max_position_embeddings,
            rms_norm_eps: effective.rms_norm_eps,
            tie_word_embeddings: effective.tie_word_embeddings,
            // The rest of it is compared by what follows from it.
            rope: RopeParams { head_dim: effective.head_dim, ..rope },
        },
        attention_bias: effective.attention_bias,
        mlp_bias: effective.mlp_bias,
        sliding_window: effective.sliding_window,
    };
    if *read != expected {
        return format!("{read:?} for {expected:?}");
    }
    // Position 1: the angles are the frequencies themselves.
    let table = rope.table(2);
    let (cos, sin) = table[rope.head_dim..].split_at(rope.head_dim / 2);
    for (i, frequency) in inverse_frequencies.iter().enumerate() {
        for (got, expected) in [(cos[i], frequency.cos()), (sin[i], frequency.sin())] {
            let expected = expected * attention_factor;
            if (f64::from(got) - expected).abs() > 1e-6 * expected.abs() {
                return format!("frequency {i}: {got} for {expected}");
            }
        }
    }
    String::new()
}

#[test]
fn a_quantized_checkpoint_is_refused_by_its_method() {
    for method in ["awq", "gptq", "bitsandbytes", "mxfp4"] {
        for field in ["quantization_config", "compression_config"] {
            let mut config = Tiny::default().config();
            config[field] = json!({ "quant_method": method, "bits": 4 });
            let error = tiny::read_config(&config).unwrap_err().to_string();
            assert!(error.contains(&format!("{field} is {method}")), "{error}");
        }
    }
}

#[test]
fn a_class_is_found_among_several() {
    let architecture = |classes: Value, model_type: Value| {
        let mut config = Tiny::default().config();
        config["architectures"] = classes;
        config["model_type"] = model_type;
        tiny::read_config(&config).map(|(architecture, _)| architecture)
    };
    let own = json!(["OwnForCausalLM", "LlamaForCausalLM"]);
    assert_eq!(architecture(own, Value::Null).unwrap(), "LlamaForCausalLM");
    let both = json!(["LlamaForCausalLM", "MistralForCausalLM"]);
    assert_eq!(architecture(both.clone(), json!("mistral")).unwrap(), "MistralForCausalLM");
    for (classes, model_type, named) in [
        (both, Value::Null, "architectures is LlamaForCausalLM, MistralForCausalLM"),
        (json!("LlamaForCausalLM"), Value::Null, "a list of strings"),
        (json!(["LlamaForCausalLM", 1]), Value::Null, "a list of strings"),
        (json!(["LlamaForCausalLM"]), json!("gemma2"), "model_type is gemma2"),
        (json!(["LlamaForCausalLM"]), json!(1), "model_type is 1"),
        (Value::Null, Value::Null, "architectures is absent"),
    ] {
        let error = architecture(classes, model_type).unwrap_err().to_string();
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn an_unknown_family_is_told_which_are_known_and_the_nearest() {
    let message = |classes: Value, model_type: Value| {
        let mut config = Tiny::default().config();
        config["architectures"] = classes;
        config["model_type"] = model_type;
        tiny::read_config(&config).unwrap_err().to_string()
    };
    let known = "must be one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
                 Qwen3ForCausalLM, Qwen3MoeForCausalLM, Gemma3ForCausalLM";
    for (class, nearest) in
        [("LLaMAForCausalLM", "LlamaForCausalLM"), ("MixtralForCausalLM", "MistralForCausalLM")]
    {
        let told = message(json!(["OtherModel", class]), Value::Null);
        let expected = format!("{known}; the nearest of these is {nearest}");
        assert!(told.contains(class) && told.ends_with(&expected), "{told}");
    }
    let told = message(Value::Null, json!("mistrall"));
    assert!(
        told.ends_with("qwen3, qwen3_moe, gemma3_text; the nearest of these is mistral"),
        "{told}"
    );
    // There is nothing to be near to.
    assert!(message(Value::Null, Value::Null).ends_with(known));
    let both = json!(["LlamaForCausalLM", "MistralForCausalLM"]);
    assert!(message(both, Value::Null).ends_with(known));
    // However long the name is, the message is not.
    let told = message(json!(["x".repeat(100_000)]), Value::Null);
    assert!(told.len() < 300, "{told}");
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
    let read = || match Checkpoint::<Cpu>::open(dir.path()) {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error,
    };
    assert!(matches!(read(), ModelError::Io { .. }));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    std::fs::write(dir.path().join("config.json"), pointer).unwrap();
    assert!(matches!(read(), ModelError::LfsPointer { .. }));
    assert!(read().to_string().contains("git lfs pull"), "{}", read());
    for text in ["", "{", "[]", "null", "{} {}", "\u{0}"] {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let error = read();
        assert!(matches!(error, ModelError::Json { .. }), "{text:?}: {error}");
        assert!(error.to_string().contains("config.json"), "{text:?}: {error}");
    }
}
