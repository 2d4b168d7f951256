//! Checkpoints: sharded, incomplete, misshapen, damaged.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{WeightDtype, cpu::Cpu, cpu::CpuConfig};
use sconce_models::{ModelConfig, ModelError};
use serde_json::json;

use crate::tiny::Tiny;

fn save(dir: &Path, name: &str, tensors: &HashMap<String, Tensor>) {
    candle_core::safetensors::save(tensors, dir.join(name)).unwrap();
}

/// Loads a directory and counts the tensors reported.
fn load(dir: &Path) -> Result<usize, ModelError> {
    let config = ModelConfig::read(dir)?;
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let mut reports = Vec::new();
    sconce_models::load(dir, &config, &cpu, WeightDtype::F32, 32, &mut |done, total| {
        reports.push((done, total));
    })?;
    let total = reports.len();
    let expected: Vec<_> = (1..=total).map(|done| (done, total)).collect();
    assert_eq!(reports, expected, "each tensor is reported once, in order");
    Ok(total)
}

#[test]
fn everything_wrong_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = Tiny::default().write(dir.path());
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    tensors.remove("model.norm.weight");
    tensors.remove("model.layers.1.mlp.up_proj.weight");
    let swapped = "model.layers.0.self_attn.o_proj.weight";
    tensors.insert(swapped.to_owned(), zeros(&[64, 48], DType::F32));
    let integers = "model.layers.1.input_layernorm.weight";
    tensors.insert(integers.to_owned(), zeros(&[48], DType::U8));
    let denied = "model.layers.0.self_attn.q_proj.bias";
    tensors.insert(denied.to_owned(), zeros(&[64], DType::F32));
    // Harmless, and in many files.
    let computed = "model.layers.0.self_attn.rotary_emb.inv_freq";
    tensors.insert(computed.to_owned(), zeros(&[8], DType::F32));
    tensors.insert("lm_head.weight".to_owned(), zeros(&[80, 48], DType::F32));
    save(dir.path(), "model.safetensors", &tensors);

    let Err(ModelError::Tensors { mut problems }) = load(dir.path()) else {
        panic!("a broken checkpoint was accepted")
    };
    problems.sort();
    let expected = [
        format!("{swapped} is [64, 48], but must be [48, 64]"),
        format!("{denied} has no place in the model"),
        format!("{integers} has dtype u8, but must be f32, bf16 or f16"),
        "model.layers.1.mlp.up_proj.weight [80, 48] is missing".to_owned(),
        "model.norm.weight [48] is missing".to_owned(),
    ];
    assert_eq!(problems, expected);
}

#[test]
fn f16_and_f32_checkpoints_load_too() {
    for dtype in [DType::F16, DType::F32] {
        let dir = tempfile::tempdir().unwrap();
        let tensors = Tiny::default().write(dir.path());
        let converted = tensors
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()))
            .collect();
        save(dir.path(), "model.safetensors", &converted);
        assert_eq!(load(dir.path()).unwrap(), Tiny::default().shapes().len());
    }
}

#[test]
fn shards_are_found_by_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let untied = Tiny { tied: false, ..Tiny::default() };
    let tensors = untied.write(dir.path());
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(matches!(load(dir.path()), Err(ModelError::NoCheckpoint { .. })));

    let shard = |name: &str| {
        if name.contains(".1.") { "b.safetensors" } else { "a.safetensors" }
    };
    for file in ["a.safetensors", "b.safetensors"] {
        let part = tensors.iter().filter(|(name, _)| shard(name) == file);
        save(dir.path(), file, &part.map(|(n, t)| (n.clone(), t.clone())).collect());
    }
    let index = dir.path().join("model.safetensors.index.json");
    let weight_map: HashMap<_, _> = tensors.keys().map(|name| (name, shard(name))).collect();
    std::fs::write(&index, json!({ "weight_map": weight_map }).to_string()).unwrap();
    assert_eq!(load(dir.path()).unwrap(), tensors.len());

    std::fs::remove_file(dir.path().join("b.safetensors")).unwrap();
    let error = load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("missing: b.safetensors"), "{error}");

    for name in ["../a.safetensors", "/etc/passwd", "..", "", "a/b.safetensors"] {
        std::fs::write(&index, json!({ "weight_map": { "x": name } }).to_string()).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a file's name"), "{name:?}: {error}");
    }
    for text in ["{}", r#"{ "weight_map": {} }"#, r#"{ "weight_map": [] }"#] {
        std::fs::write(&index, text).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("weight_map"), "{text}: {error}");
    }
}

#[test]
fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    Tiny::default().write(dir.path());
    let path = dir.path().join("model.safetensors");
    let len = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(len - 1).unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(matches!(error, ModelError::Mapped(_)), "{error}");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}
