//! Weights in fp8: quantized while loading, and stored so.

use std::{fs, path::PathBuf};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use super::{Answer, Ask, Gpu, models, refusal};
use crate::tiny::folder;

const FP8: [&str; 2] = ["--quantization", "fp8"];
/// In natural logarithms: numbers have 3 bits of mantissa, those of rows too where their
/// product is of e4m3.
const BOUND: f32 = 1.0;

fn asks() -> Vec<Ask> {
    vec![Ask::new(70, 12, 1), Ask::new(3, 20, 3), Ask::new(31, 14, 5)]
}

fn answers(gpu: &Gpu) -> Vec<Answer> {
    asks().iter().map(|ask| ask.answer(&gpu.server)).collect()
}

fn count(gpu: &Gpu, kernel: &str) -> usize {
    gpu.trace().iter().filter(|work| work.name.contains(kernel)).count()
}

/// Prompts by widened weights, decodes by their own kernel, on devices with and without tensor
/// cores for fp8.
#[test]
fn weights_that_are_quantized_while_loading_serve_near_those_that_are_not() {
    let model = models::tiny();
    let plain = answers(&Gpu::start(&model, &[], &[]));
    let of = |fake_gpu: &[&str], args: &[&str]| {
        let gpu = Gpu::start(&model, fake_gpu, &[&FP8, args].concat());
        let answers = answers(&gpu);
        gpu.assert_clean(&format!("{fake_gpu:?}"));
        assert!(count(&gpu, "widen_weight_bf16") > 0 && count(&gpu, "_e4m3_m1_") > 0);
        answers
    };
    let late = of(&["--mode", "late"], &[]);
    assert_ne!(late, plain, "they are other weights");
    for (own, other) in late.iter().zip(&plain) {
        own.assert_near(other, BOUND, "fp8");
    }
    assert_eq!(late, of(&["--mode", "random", "--seed", "4"], &[]));
    assert_eq!(late, of(&["--profile", "a100"], &["--enforce-eager"]));
}

/// The layers' matrices by a rule, the rest as it is.
fn stored(name: &str, config: Value, block: Option<usize>) -> PathBuf {
    folder(name, |to| {
        let from = models::tiny();
        fs::copy(from.join("tokenizer.json"), to.join("tokenizer.json")).expect("a tokenizer");
        let of_model = fs::read(from.join("config.json")).expect("a config");
        let mut of_model: Value = serde_json::from_slice(&of_model).expect("JSON");
        of_model["quantization_config"] = config;
        fs::write(to.join("config.json"), of_model.to_string()).expect("a config");
        let bytes = fs::read(from.join("model.safetensors")).expect("weights");
        let all = SafeTensors::deserialize(&bytes).expect("a checkpoint");
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, view) in all.tensors() {
            let (shape, data) = (view.shape().to_vec(), view.data());
            let Some(stem) = name.strip_suffix("_proj.weight") else {
                tensors.push((name, view.dtype(), shape, data.to_vec()));
                continue;
            };
            let (n, k) = (shape[0], shape[1]);
            let (rows, cols) = block.map_or((1, k), |block| (block, block));
            let number = |i: usize| {
                let pair = [data[2 * i], data[2 * i + 1]];
                f32::from_bits(u32::from(u16::from_le_bytes(pair)) << 16)
            };
            let of_row = k.div_ceil(cols);
            let mut scales = vec![0.0_f32; n.div_ceil(rows) * of_row];
            let place = |i: usize| i / k / rows * of_row + i % k / cols;
            for i in 0..n * k {
                scales[place(i)] = scales[place(i)].max(number(i).abs() / 448.0);
            }
            let bits =
                (0..n * k).map(|i| sconce_kernels::fp8::narrow(number(i) / scales[place(i)]));
            tensors.push((name.clone(), Dtype::F8_E4M3, shape, bits.collect()));
            let (end, of_scales) = match block {
                None => ("weight_scale", vec![n, 1]),
                Some(_) => ("weight_scale_inv", vec![n.div_ceil(rows), of_row]),
            };
            let scales = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            tensors.push((format!("{stem}_proj.{end}"), Dtype::F32, of_scales, scales));
        }
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).expect("its bytes"))
        });
        safetensors::serialize_to_file(views, None, &to.join("model.safetensors"))
            .expect("the folder takes files");
    })
}

/// Numbers that were stored by the same rule are the same weights, to the bit.
#[test]
fn stored_weights_are_served_as_they_are() {
    let numbers = json!({ "num_bits": 8, "type": "float", "strategy": "channel" });
    let by_output = json!({
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": { "group_0": { "weights": numbers } }, "ignore": ["lm_head"],
    });
    let by_output = stored("fp8-channel-1", by_output, None);
    let gpu = Gpu::start(&by_output, &["--mode", "late"], &[]);
    let quantized = Gpu::start(&models::tiny(), &[], &FP8);
    assert_eq!(answers(&gpu), answers(&quantized));
    gpu.assert_clean("a scale for each output");
    // Blocks of a scale each.
    let in_blocks = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    let in_blocks = stored("fp8-blocks-1", in_blocks, Some(128));
    let gpu = Gpu::start(&in_blocks, &["--mode", "late"], &[]);
    let plain = Gpu::start(&models::tiny(), &[], &[]);
    for (own, other) in answers(&gpu).iter().zip(answers(&plain)) {
        own.assert_near(&other, BOUND, "blocks");
    }
    gpu.assert_clean("blocks");
    // A CPU widens them.
    let on_cpu = Gpu::start(&in_blocks, &[], &["--device", "cpu", "--dtype", "bfloat16"]);
    for (own, other) in answers(&on_cpu).iter().zip(answers(&gpu)) {
        own.assert_near(&other, 0.1, "the CPU");
    }
}

#[test]
fn a_cpu_refuses_fp8_and_names_what_it_takes() {
    let args = ["--device", "cpu", "--quantization", "fp8"];
    let (code, log) = refusal(&models::tiny(), "", &[], &args);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("--quantization fp8 is not supported on a CPU"), "{log}");
    assert!(log.contains("--quantization int8 is"), "{log}");
}
