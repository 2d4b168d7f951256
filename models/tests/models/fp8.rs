//! Checkpoints whose weights are in fp8, in every layout that is read: what they stand for is
//! what is computed with.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use sconce_kernels::{
    Dtype, StepPlan, WeightDtype,
    cpu::{Cpu, CpuConfig},
};
use sconce_models::{Checkpoint, ModelError};
use serde_json::{Value, json};

use crate::{
    forward::{Runner, push},
    tiny::{Tiny, write_config},
};

/// Where scales lie, and what they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Tensor,
    Channel,
    Blocks,
    ModelOpt,
}

impl Layout {
    const ALL: [Self; 4] = [Self::Tensor, Self::Channel, Self::Blocks, Self::ModelOpt];

    /// What config.json says of it, if anything.
    fn config(self) -> Option<Value> {
        let strategy = match self {
            Self::Tensor => "tensor",
            Self::Channel => "channel",
            Self::Blocks => {
                return Some(json!({
                    "quant_method": "fp8", "weight_block_size": [128, 128],
                    "modules_to_not_convert": ["lm_head"],
                }));
            }
            Self::ModelOpt => return None,
        };
        let numbers = json!({ "num_bits": 8, "type": "float", "strategy": strategy });
        Some(json!({
            "quant_method": "compressed-tensors", "format": "float-quantized",
            "config_groups": { "group_0": { "weights": numbers } }, "ignore": ["lm_head"],
        }))
    }

    /// Rows and columns of what has one scale, of a weight `[n, k]`.
    fn block(self, (n, k): (usize, usize)) -> (usize, usize) {
        match self {
            Self::Tensor | Self::ModelOpt => (n, k),
            Self::Channel => (1, k),
            Self::Blocks => (128, 128),
        }
    }

    /// The scales' name and shape.
    fn scales(self, (n, k): (usize, usize)) -> (&'static str, Vec<usize>) {
        match self {
            Self::Tensor => ("weight_scale", vec![1]),
            Self::ModelOpt => ("weight_scale", vec![]),
            Self::Channel => ("weight_scale", vec![n, 1]),
            Self::Blocks => ("weight_scale_inv", vec![n.div_ceil(128), k.div_ceil(128)]),
        }
    }
}

/// A mixture of experts whose layers have more than one block.
fn tiny() -> Tiny {
    let class = Some("Qwen3MoeForCausalLM");
    Tiny { class, hidden: 144, intermediate: 160, tied: false, ..Tiny::default() }
}

fn save(dir: &Path, tensors: &HashMap<String, Tensor>) {
    candle_core::safetensors::save(tensors, dir.join("model.safetensors")).unwrap();
}

/// Whether a layout leaves a matrix out of fp8.
fn is_left_out(name: &str) -> bool {
    name.contains("lm_head")
        || name.contains("embed_tokens")
        || name.ends_with("mlp.gate.weight")
        // One of Q, K and V, which are multiplied together.
        || name.contains("layers.0.self_attn.k_proj")
}

/// A checkpoint in a layout, and one of what it stands for, in f32.
fn write(layout: Layout, narrow: &Path, wide: &Path) {
    let tiny = tiny();
    let mut config = tiny.config();
    write_config(wide, &config);
    match layout.config() {
        Some(stored) => config["quantization_config"] = stored,
        None => {
            let algorithm = json!({ "quant_algo": "FP8", "exclude_modules": ["lm_head"] });
            let file = json!({ "quantization": algorithm }).to_string();
            std::fs::write(narrow.join("hf_quant_config.json"), file).unwrap();
        }
    }
    write_config(narrow, &config);
    let (mut stored, mut meant) = (HashMap::new(), HashMap::new());
    for (name, tensor) in tiny.tensors() {
        if tensor.rank() != 2 || is_left_out(&name) {
            stored.insert(name.clone(), tensor.clone());
            meant.insert(name, tensor);
            continue;
        }
        let (n, k) = tensor.dims2().unwrap();
        let (rows, cols) = layout.block((n, k));
        let (end, shape) = layout.scales((n, k));
        let numbers = tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        // Any scales will do, so that they are told apart.
        let of_row = k.div_ceil(cols);
        let scales: Vec<f32> =
            (0..n.div_ceil(rows) * of_row).map(|i| 0.01 + (i % 7) as f32 / 512.0).collect();
        let scale = |row: usize, col: usize| scales[row / rows * of_row + col / cols];
        let narrow: Vec<f32> =
            (0..n * k).map(|i| numbers[i / k][i % k] / scale(i / k, i % k)).collect();
        let narrow = Tensor::from_vec(narrow, (n, k), &Device::Cpu).unwrap();
        let narrow = narrow.to_dtype(DType::F8E4M3).unwrap();
        let kept = narrow.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        let kept: Vec<f32> = (0..n * k).map(|i| kept[i / k][i % k] * scale(i / k, i % k)).collect();
        meant.insert(name.clone(), Tensor::from_vec(kept, (n, k), &Device::Cpu).unwrap());
        let stem = name.strip_suffix(".weight").unwrap();
        let scales = Tensor::from_vec(scales, shape, &Device::Cpu).unwrap();
        stored.insert(format!("{stem}.{end}"), scales);
        if layout == Layout::ModelOpt {
            // How its input was to be quantized, and a cache.
            let one = Tensor::new(1.0_f32, &Device::Cpu).unwrap();
            stored.insert(format!("{stem}.input_scale"), one.clone());
            stored.insert(format!("{stem}.k_scale"), one);
        }
        stored.insert(name, narrow);
    }
    save(narrow, &stored);
    save(wide, &meant);
}

#[test]
fn every_layout_stands_for_its_numbers() {
    for layout in Layout::ALL {
        let (narrow, wide) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(layout, narrow.path(), wide.path());
        assert!(Checkpoint::<Cpu>::open(narrow.path()).unwrap().is_fp8(), "{layout:?}");
        let tokens: Vec<u32> = (0..21).map(|i| i * 3 % 80).collect();
        let mut plan = StepPlan::new(1);
        push(&mut plan, 0, &tokens, 0, &[5, 1]);
        let got = Runner::new(narrow.path(), Dtype::F32).logits(&mut plan);
        let want = Runner::new(wide.path(), Dtype::F32).logits(&mut plan);
        assert_eq!(got, want, "{layout:?}");
    }
}

/// What is wrong with a checkpoint that was changed so.
fn problems(layout: Layout, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> String {
    let (narrow, wide) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(layout, narrow.path(), wide.path());
    let path = narrow.path().join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    change(&mut tensors);
    save(narrow.path(), &tensors);
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let checkpoint = Checkpoint::open(narrow.path()).unwrap();
    match checkpoint.load(&cpu, WeightDtype::F32, 16, &mut |_, _| {}).err() {
        Some(ModelError::Tensors { problems }) => problems.join("\n"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn scales_that_are_missing_or_do_not_fit_are_named() {
    const STEM: &str = "model.layers.0.mlp.up_proj";
    let told = problems(Layout::Channel, |tensors| {
        tensors.remove(&format!("{STEM}.weight_scale"));
    });
    assert_eq!(told, format!("{STEM}.weight_scale is missing, and {STEM}.weight is in fp8"));
    let told = problems(Layout::Blocks, |tensors| {
        let scales = Tensor::zeros((3, 3), DType::F32, &Device::Cpu).unwrap();
        tensors.insert(format!("{STEM}.weight_scale_inv"), scales);
    });
    let shapes = "[], [1], [160, 1] or [2, 2]";
    assert_eq!(told, format!("{STEM}.weight_scale_inv is [3, 3], but must be {shapes}"));
    let told = problems(Layout::Tensor, |tensors| {
        let scales = Tensor::zeros(1, DType::U8, &Device::Cpu).unwrap();
        tensors.insert(format!("{STEM}.weight_scale"), scales);
    });
    assert_eq!(told, format!("{STEM}.weight_scale has dtype u8, but must be f32, bf16 or f16"));
}

/// Without a word of it in config.json, numbers in fp8 are of no known meaning.
#[test]
fn weights_in_fp8_that_nothing_declares_are_refused() {
    let (narrow, wide) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(Layout::Channel, narrow.path(), wide.path());
    write_config(narrow.path(), &tiny().config());
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let checkpoint = Checkpoint::open(narrow.path()).unwrap();
    let loaded = checkpoint.load(&cpu, WeightDtype::F32, 16, &mut |_, _| {});
    let error = loaded.err().expect("it is refused").to_string();
    assert!(error.contains("has dtype f8_e4m3, but must be f32, bf16 or f16"), "{error}");
}

#[test]
fn a_cpu_packs_no_fp8_and_says_what_it_does() {
    let dir = tempfile::tempdir().unwrap();
    Tiny::default().write(dir.path());
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let loaded = checkpoint.load(&cpu, WeightDtype::Fp8E4m3, 16, &mut |_, _| {});
    let error = loaded.err().expect("it is refused").to_string();
    assert!(error.contains("fp8 is not supported on a CPU; int8 is"), "{error}");
}
