//! Checkpoints: sharded, incomplete, misshapen, damaged.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{WeightDtype, cpu::Cpu, cpu::CpuConfig};
use sconce_models::{Checkpoint, ModelError};
use serde_json::json;

use crate::tiny::Tiny;

fn save(dir: &Path, name: &str, tensors: &HashMap<String, Tensor>) {
    candle_core::safetensors::save(tensors, dir.join(name)).unwrap();
}

/// Loads a directory and counts the tensors reported.
fn load(dir: &Path) -> Result<usize, ModelError> {
    Ok(load_with_warnings(dir)?.0)
}

fn load_with_warnings(dir: &Path) -> Result<(usize, Vec<String>), ModelError> {
    let checkpoint = Checkpoint::open(dir)?;
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let mut reports = Vec::new();
    let report = &mut |done, total| reports.push((done, total));
    let loaded = checkpoint.load(&cpu, WeightDtype::F32, 32, report)?;
    let total = reports.len();
    let expected: Vec<_> = (1..=total).map(|done| (done, total)).collect();
    assert_eq!(reports, expected, "each tensor is reported once, in order");
    Ok((total, loaded.warnings))
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
    // From the least to the most that a hint could be about.
    for (name, named) in [
        ("pytorch_model.bin", "pytorch_model.bin: only safetensors are read"),
        ("Model.GGUF", "Model.GGUF: to serve a GGUF file"),
        ("consolidated.safetensors", "consolidated.safetensors: weights are read under those"),
        ("adapter_model.safetensors", "a LoRA adapter"),
    ] {
        std::fs::write(dir.path().join(name), "").unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(named), "{name}: {error}");
    }

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

/// A copy of the weights under other names, or with others among them.
fn saved_with(tiny: &Tiny, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tiny.write(dir.path());
    change(&mut tensors);
    save(dir.path(), "model.safetensors", &tensors);
    dir
}

fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
}

#[test]
fn tensors_that_are_not_used_are_named() {
    let warnings = |names: &[&str]| {
        let dir = saved_with(&Tiny::default(), |tensors| {
            for name in names {
                tensors.insert((*name).to_owned(), zeros(&[4], DType::F32));
            }
        });
        load_with_warnings(dir.path()).map(|(_, warnings)| warnings)
    };
    let harmless = [
        "model.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.masked_bias",
    ];
    assert_eq!(warnings(&harmless).unwrap(), [""; 0]);
    let told = warnings(&["v_head.weight", "score.weight"]).unwrap();
    assert_eq!(told, ["tensors that are not used: score.weight, v_head.weight"]);
    for part in [
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.norm.bias",
        "model.embed_positions.weight",
        "lm_head.bias",
        "base_model.model.q_proj.lora_A.weight",
    ] {
        match warnings(&["score.weight", part]) {
            Err(ModelError::Tensors { problems }) => {
                let told = |name: &str| format!("{name} has no place in the model");
                let mut expected = [told(part), told("score.weight")];
                expected.sort();
                assert_eq!(problems, expected);
            }
            other => panic!("{part}: {other:?}"),
        }
    }
    let many: Vec<String> = (0..500).map(|i| format!("{}{i}", "extra".repeat(100))).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let told = warnings(&many).unwrap();
    assert!(told[0].len() < 6000 && told[0].ends_with("and 480 more"), "{}", told[0]);
}

#[test]
fn a_message_is_bounded_however_much_is_wrong() {
    let tiny = Tiny { layers: 60, ..Tiny::default() };
    let dir = saved_with(&tiny, |tensors| {
        let renamed = tensors.drain().map(|(name, tensor)| (format!("other.{name}"), tensor));
        *tensors = renamed.collect();
    });
    let error = load(dir.path()).unwrap_err();
    let ModelError::Tensors { problems } = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 2 * tiny.shapes().len(), "missing, and not used");
    let message = error.to_string();
    // A line for each kind of tensor in a layer, and for those of none.
    assert_eq!(message.lines().count(), 1 + 2 * (9 + 2), "{message}");
    let of_layers = "model.layers.0.mlp.up_proj.weight [80, 48] is missing, and so for 59 with";
    assert!(message.contains(of_layers), "{message}");

    // None like another.
    let dir = saved_with(&Tiny::default(), |tensors| {
        for len in 1..=52 {
            tensors.insert(format!("model.{}", "x".repeat(len)), zeros(&[1], DType::F32));
        }
    });
    let message = load(dir.path()).unwrap_err().to_string();
    assert!(message.ends_with("and 12 more"), "{message}");
    assert_eq!(message.lines().count(), 1 + 40 + 1, "{message}");
}

#[test]
fn other_dtypes_are_refused_by_name() {
    let name = "model.layers.1.mlp.up_proj.weight";
    for (dtype, named) in [(DType::F64, "f64"), (DType::U8, "u8"), (DType::I64, "i64")] {
        let dir = saved_with(&Tiny::default(), |tensors| {
            tensors.insert(name.to_owned(), zeros(&[80, 48], dtype));
        });
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{name} has dtype {named}")), "{error}");
    }
    // Of the same size, so only the name in the header changes.
    for dtype in ["F8_E4M3", "F8_E5M2", "I8", "BOOL"] {
        let dir = saved_with(&Tiny::default(), |tensors| {
            *tensors = HashMap::from([(name.to_owned(), zeros(&[80, 48], DType::U8))]);
        });
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let (head, data) = bytes.split_at(bytes.len() - 80 * 48);
        let header = String::from_utf8(head[8..].to_vec()).unwrap();
        let header = header.replace("\"U8\"", &format!("\"{dtype}\""));
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend(data);
        std::fs::write(&path, bytes).unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("has dtype {}", dtype.to_lowercase())), "{error}");
    }
}

#[test]
fn shards_that_disagree_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = Tiny::default().write(dir.path());
    std::fs::rename(dir.path().join("model.safetensors"), dir.path().join("a.safetensors"))
        .unwrap();
    let name = "model.norm.weight";
    let index = json!({ "weight_map": { "a": "a.safetensors", "b": "b.safetensors" } });
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let second =
        |tensor| save(dir.path(), "b.safetensors", &HashMap::from([(name.into(), tensor)]));
    second(tensors[name].clone());
    assert_eq!(load(dir.path()).unwrap(), tensors.len(), "the same twice is no harm");
    second(zeros(&[48], DType::BF16));
    let error = load(dir.path()).unwrap_err().to_string();
    for named in [name, "a.safetensors", "b.safetensors"] {
        assert!(error.contains(named), "{named}: {error}");
    }
}
