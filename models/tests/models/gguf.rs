//! The converter, on GGUF files that the tests write.

mod families;

use std::{collections::HashMap, fs::File, io::BufWriter, path::Path};

use candle_core::{
    DType, Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use sconce_kernels::{
    WeightDtype,
    cpu::{Cpu, CpuConfig},
};
use sconce_models::{
    Checkpoint, RopeScaling,
    gguf::{self, GgufError, Progress},
};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::tiny::{self, Tiny};

/// A GGUF file before it is written.
struct Source {
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, QTensor>,
}

fn strings(list: &[&str]) -> Value {
    Value::Array(list.iter().map(|text| Value::String((*text).to_owned())).collect())
}

/// The vocabulary: two control tokens, one defined by users, and pieces.
const TOKENS: [&str; 16] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<tool>",
    "a",
    "b",
    "c",
    "Ġ",
    "Ċ",
    "1",
    "2",
    "ab",
    "Ġa",
    "abc",
    "12",
    "Ġab",
    "Ã©",
];

impl Source {
    /// What llama.cpp's converter would make of a tiny model: its names, and
    /// the rows of Q and K in its order.
    fn new(tiny: &Tiny, weights: &HashMap<String, Tensor>, dtype: GgmlDType) -> Self {
        let number = |n: usize| Value::U32(u32::try_from(n).unwrap());
        let mut kinds = vec![Value::I32(1); TOKENS.len()];
        kinds[..3].clone_from_slice(&[3, 3, 4].map(Value::I32));
        let metadata = [
            ("general.architecture", Value::String("llama".into())),
            ("llama.block_count", number(tiny.layers)),
            ("llama.context_length", number(256)),
            ("llama.embedding_length", number(tiny.hidden)),
            ("llama.feed_forward_length", number(tiny.intermediate)),
            ("llama.attention.head_count", number(tiny.heads)),
            ("llama.attention.head_count_kv", number(tiny.kv_heads)),
            ("llama.attention.key_length", number(tiny.head_dim)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(1000.0)),
            ("llama.rope.dimension_count", number(tiny.head_dim)),
            ("tokenizer.ggml.model", Value::String("gpt2".into())),
            ("tokenizer.ggml.pre", Value::String("smollm".into())),
            ("tokenizer.ggml.tokens", strings(&TOKENS)),
            ("tokenizer.ggml.token_type", Value::Array(kinds)),
            ("tokenizer.ggml.merges", strings(&["a b", "Ġ a", "ab c", "1 2", "Ġ ab"])),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(0)),
            ("tokenizer.chat_template", Value::String("{{ messages }}".into())),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let tensor = |(name, tensor): (&String, &Tensor)| {
            let (name, heads) = llama_cpp_name(name, tiny);
            let mut tensor = tensor.to_dtype(DType::F32).unwrap();
            if let Some(heads) = heads {
                tensor = interleave(&tensor, heads);
            }
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
            (name, QTensor::quantize(&tensor, dtype).unwrap())
        };
        Self { metadata, tensors: weights.iter().map(tensor).collect() }
    }

    fn write(&self, path: &Path) {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let mut file = BufWriter::new(File::create(path).unwrap());
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    }

    /// Writes and converts.
    fn convert(&self, dir: &Path) -> Result<Vec<Progress>, GgufError> {
        let path = dir.join("model.gguf");
        self.write(&path);
        let mut reports = Vec::new();
        gguf::convert(&path, dir, &mut |progress| reports.push(progress))?;
        Ok(reports)
    }
}

/// A tensor's name in GGUF, and the heads whose rows change places.
fn llama_cpp_name(name: &str, tiny: &Tiny) -> (String, Option<usize>) {
    let heads = match name {
        _ if name.contains("q_proj") => Some(tiny.heads),
        _ if name.contains("k_proj") => Some(tiny.kv_heads),
        _ => None,
    };
    let mut name = name.replace("model.layers.", "blk.");
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        name = name.replace(from, to);
    }
    (name, heads)
}

/// The order in which llama.cpp stores Q and K: as its converter writes it,
/// `reshape(heads, 2, head_dim / 2, k).swapaxes(1, 2)`.
fn interleave(weight: &Tensor, heads: usize) -> Tensor {
    let (n, k) = weight.dims2().unwrap();
    let split = weight.reshape((heads, 2, n / heads / 2, k)).unwrap();
    let swapped = split.transpose(1, 2).unwrap().contiguous().unwrap();
    swapped.reshape((n, k)).unwrap()
}

/// A model with the vocabulary of these tests.
fn tiny() -> Tiny {
    Tiny { vocab: TOKENS.len(), hidden: 64, intermediate: 96, tied: false, ..Tiny::default() }
}

#[test]
fn a_converted_directory_holds_the_model_it_came_from() {
    for tied in [false, true] {
        let tiny = Tiny { tied, ..tiny() };
        let weights = tiny.tensors();
        let dir = tempfile::tempdir().unwrap();
        // The numbers are bf16, so f32 and f16 lose nothing of these.
        let source = Source::new(&tiny, &weights, GgmlDType::F32);
        let reports = source.convert(dir.path()).unwrap();
        let total = weights.len();
        let expected: Vec<_> = (1..=total).map(|done| Progress { done, total }).collect();
        assert_eq!(reports, expected);

        let path = dir.path().join("model.safetensors");
        let converted = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        assert_eq!(converted.len(), weights.len());
        for (name, expected) in &weights {
            let got = &converted[name];
            assert_eq!(got.dtype(), DType::BF16);
            assert_eq!(got.dims(), expected.dims(), "{name}");
            let bits = |tensor: &Tensor| {
                let numbers = tensor.flatten_all().unwrap();
                numbers.to_vec1::<half::bf16>().unwrap()
            };
            assert_eq!(bits(got), bits(expected), "{name}");
        }

        let config = tiny::config_of(dir.path()).unwrap().base;
        assert_eq!(config.tie_word_embeddings, tied);
        assert_eq!(config.rms_norm_eps.to_bits(), 1e-5f32.to_bits());
        assert_eq!(config.rope.theta, 1000.0);
        assert_eq!(config.rope.head_dim, tiny.head_dim);
        let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        checkpoint.load(&cpu, WeightDtype::Bf16, 16, &mut |_, _| {}).unwrap();
    }
}

#[test]
fn quantised_weights_are_dequantised_and_rounded() {
    let tiny = tiny();
    let weights = tiny.tensors();
    let dir = tempfile::tempdir().unwrap();
    let source = Source::new(&tiny, &weights, GgmlDType::Q8_0);
    source.convert(dir.path()).unwrap();
    let path = dir.path().join("model.safetensors");
    let converted = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let expected = source.tensors["blk.1.ffn_down.weight"].dequantize(&Device::Cpu).unwrap();
    let numbers = |tensor: &Tensor| -> Vec<half::bf16> {
        let rounded = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        rounded.into_iter().map(half::bf16::from_f32).collect()
    };
    let got = converted["model.layers.1.mlp.down_proj.weight"].to_dtype(DType::F32).unwrap();
    assert_eq!(numbers(&got), numbers(&expected));
}

#[test]
fn the_tokenizer_is_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = tiny();
    let mut source = Source::new(&tiny, &tiny.tensors(), GgmlDType::F32);
    source.convert(dir.path()).unwrap();
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.path().join(name)).unwrap()).unwrap()
    };
    let tokenizer = || Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    let ids = |text: &str| tokenizer().encode(text, true).unwrap().get_ids().to_vec();
    assert_eq!(ids("abc ab"), [12, 14]);
    // Digits stand alone, though there is a merge.
    assert_eq!(ids("12"), [8, 9]);
    assert_eq!(ids("a<|im_start|>b<tool>\n"), [3, 1, 4, 2, 7]);
    let decoded = |skip: bool| tokenizer().decode(&[3, 1, 14, 2, 15], skip).unwrap();
    assert_eq!(decoded(false), "a<|im_start|> ab<tool>é");
    // A token that users defined is text; a control token is not.
    assert_eq!(decoded(true), "a ab<tool>é");

    let config = read("tokenizer_config.json");
    assert_eq!(config["bos_token"], "<|im_start|>");
    assert_eq!(config["eos_token"], "<|endoftext|>");
    assert_eq!(config["chat_template"], "{{ messages }}");
    assert_eq!(read("generation_config.json")["eos_token_id"], 0);

    let set = |source: &mut Source, key: &str, value| {
        source.metadata.insert(format!("tokenizer.ggml.{key}"), value);
    };
    set(&mut source, "add_bos_token", Value::Bool(true));
    set(&mut source, "eot_token_id", Value::U32(2));
    set(&mut source, "eom_token_id", Value::U32(0));
    source.convert(dir.path()).unwrap();
    assert_eq!(ids("ab"), [1, 10]);
    assert_eq!(read("generation_config.json")["eos_token_id"], json!([0, 2]));

    // Llama 3's: digits in threes, whole words first, the token by default.
    set(&mut source, "pre", Value::String("llama-bpe".into()));
    source.metadata.remove("tokenizer.ggml.add_bos_token");
    source.convert(dir.path()).unwrap();
    assert_eq!(ids("12"), [1, 13]);
}

/// Tokens whose names say that they end a turn are ends beside those that the metadata
/// name, if they are control tokens.
#[test]
fn ends_of_turns_are_known_by_name_too() {
    let tiny = tiny();
    let mut source = Source::new(&tiny, &tiny.tensors(), GgmlDType::F32);
    let dir = tempfile::tempdir().unwrap();
    let mut ends = |names: [&str; 3], eot: u32| {
        let mut tokens = TOKENS;
        tokens[..3].copy_from_slice(&names);
        source.metadata.insert("tokenizer.ggml.tokens".to_owned(), strings(&tokens));
        source.metadata.insert("tokenizer.ggml.eot_token_id".to_owned(), Value::U32(eot));
        source.convert(dir.path())?;
        let file = std::fs::read(dir.path().join("generation_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&file).unwrap();
        Ok::<_, GgufError>(config["eos_token_id"].clone())
    };
    assert_eq!(ends(["<|endoftext|>", "<|im_end|>", "<tool>"], 0).unwrap(), json!([0, 1]));
    assert_eq!(ends(["</s>", "<|im_end|>", "<tool>"], 2).unwrap(), json!([0, 2, 1]));
    assert_eq!(ends(["<|end|>", "<|eot_id|>", "<tool>"], 0).unwrap(), json!([0, 1]));
    // The third is no control token; <|end|> beside <|return|> ends no turn.
    assert_eq!(ends(["</s>", "<|im_start|>", "<|im_end|>"], 0).unwrap(), json!(0));
    assert_eq!(ends(["<|return|>", "<|end|>", "<tool>"], 0).unwrap(), json!(0));
    let error = ends(["</s>", "<|im_start|>", "<tool>"], 16).unwrap_err().to_string();
    assert!(error.contains("eot_token_id is 16, but must be below 16"), "{error}");
}

#[test]
fn llama_3_scaling_is_recognised_by_its_divisors() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = tiny();
    let mut source = Source::new(&tiny, &tiny.tensors(), GgmlDType::F32);
    let theta = Value::F32(500_000.0);
    source.metadata.insert("llama.rope.freq_base".into(), theta);
    // As llama.cpp's converter computes them for Llama 3.2 at this head size.
    let divisor = |i: usize| {
        let wavelength = std::f32::consts::TAU * 500_000f32.powf(i as f32 / 8.0);
        let smooth = (8192.0 / wavelength - 1.0) / 3.0;
        match wavelength {
            short if short < 2048.0 => 1.0,
            long if long > 8192.0 => 32.0,
            _ => 1.0 / ((1.0 - smooth) / 32.0 + smooth),
        }
    };
    let mut divisors: Vec<f32> = (0..8).map(divisor).collect();
    let set = |source: &mut Source, divisors: &[f32]| {
        let tensor = Tensor::new(divisors, &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&tensor, GgmlDType::F32).unwrap();
        source.tensors.insert("rope_freqs.weight".into(), tensor);
    };
    set(&mut source, &divisors);
    source.convert(dir.path()).unwrap();
    let config = tiny::config_of(dir.path()).unwrap().base;
    let expected = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.rope.scaling, expected);

    divisors[0] = 2.0;
    set(&mut source, &divisors);
    let error = source.convert(dir.path()).unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight"), "{error}");
    set(&mut source, &divisors[1..]);
    let error = source.convert(dir.path()).unwrap_err().to_string();
    assert!(error.contains("[7], but must be [8]"), "{error}");
}

#[test]
fn lying_metadata_is_named() {
    let tiny = tiny();
    let weights = tiny.tensors();
    let text = |text: &str| Value::String(text.to_owned());
    let cases = [
        ("general.architecture", text("mamba"), "llama, qwen2"),
        ("llama.block_count", Value::U32(3), "blk.2."),
        ("llama.block_count", Value::U32(1), "blk.1."),
        ("llama.block_count", Value::U64(u64::MAX), "llama.block_count"),
        ("llama.block_count", Value::U32(1 << 20), "llama.block_count"),
        ("llama.embedding_length", Value::U32(32), "is [16, 64]"),
        ("llama.embedding_length", text("64"), "llama.embedding_length"),
        ("llama.attention.head_count", Value::U32(0), "head_count"),
        ("llama.attention.head_count_kv", Value::U32(3), "head_count_kv"),
        ("llama.attention.key_length", Value::U32(15), "dimension_count"),
        ("llama.rope.dimension_count", Value::U32(8), "dimension_count"),
        ("llama.rope.freq_base", Value::F32(f32::NAN), "freq_base"),
        ("llama.rope.scaling.type", text("yarn"), "llama.rope.scaling.type"),
        ("llama.expert_count", Value::U32(8), "llama.expert_count is 8"),
        ("tokenizer.ggml.model", text("rwkv"), "\"gpt2\""),
        ("tokenizer.ggml.pre", text("bloom"), "smollm"),
        ("tokenizer.ggml.tokens", strings(&["a", "a"]), "token_type"),
        ("tokenizer.ggml.token_type", Value::Array(vec![]), "0 kinds"),
        ("tokenizer.ggml.merges", strings(&["ab"]), "tokenizer.ggml.merges"),
        ("tokenizer.ggml.eos_token_id", Value::U32(16), "eos_token_id is 16"),
        ("tokenizer.ggml.bos_token_id", Value::I32(-1), "bos_token_id"),
        // A division by it stands in the reader.
        ("general.alignment", Value::U32(0), "is not a whole GGUF file"),
    ];
    for (key, value, named) in cases {
        let mut source = Source::new(&tiny, &weights, GgmlDType::F32);
        source.metadata.insert(key.to_owned(), value);
        let dir = tempfile::tempdir().unwrap();
        let error = source.convert(dir.path()).unwrap_err().to_string();
        assert!(error.contains(named), "{key}: {error}");
    }
    for key in [
        "general.architecture",
        "llama.context_length",
        "llama.feed_forward_length",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
    ] {
        let mut source = Source::new(&tiny, &weights, GgmlDType::F32);
        source.metadata.remove(key);
        let dir = tempfile::tempdir().unwrap();
        match source.convert(dir.path()) {
            Err(GgufError::MissingKey { key: named }) => assert_eq!(named, key),
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn unknown_tensors_are_not_dropped() {
    let tiny = tiny();
    let mut source = Source::new(&tiny, &tiny.tensors(), GgmlDType::F32);
    let bias = Tensor::zeros(64, DType::F32, &Device::Cpu).unwrap();
    let bias = QTensor::quantize(&bias, GgmlDType::F32).unwrap();
    source.tensors.insert("blk.0.attn_q.bias".into(), bias);
    let dir = tempfile::tempdir().unwrap();
    let error = source.convert(dir.path()).unwrap_err().to_string();
    assert!(error.contains("blk.0.attn_q.bias"), "{error}");
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_ends() {
    let tiny = Tiny { layers: 1, ..tiny() };
    let source = Source::new(&tiny, &tiny.tensors(), GgmlDType::Q8_0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("whole.gguf");
    source.write(&path);
    let whole = std::fs::read(&path).unwrap();
    let cut = dir.path().join("cut.gguf");
    for len in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        std::fs::write(&cut, &whole[..len]).unwrap();
        let result = gguf::convert(&cut, dir.path(), &mut |_| {});
        assert!(result.is_err(), "{len} of {} bytes", whole.len());
        assert!(!dir.path().join("model.safetensors").exists());
    }
}

/// A header of GGUF with one key, `general.architecture`, others, and tensors without data.
fn header(keys: &[(&str, u32, Vec<u8>)], tensors: &[(&str, u32)]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    for (key, kind, value) in keys {
        bytes.extend(string(key));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    }
    for (name, kind) in tensors {
        bytes.extend(string(name));
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(256_u64.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
    }
    bytes
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes
}

fn refusal(name: &str, bytes: &[u8]) -> GgufError {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let error = gguf::convert(&path, dir.path(), &mut |_| {}).unwrap_err();
    assert!(!dir.path().join("model.safetensors").exists());
    error
}

#[test]
fn types_that_are_not_read_are_named() {
    let llama = ("general.architecture", 8, string("llama"));
    for (kind, named) in [
        (9, "Q8_1"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (20, "IQ4_NL"),
        (23, "IQ4_XS"),
        (28, "F64"),
        (29, "IQ1_M"),
        (31, "Q4_0_4_4"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
        (40, "NVFP4"),
        (41, "Q1_0"),
        (137, "number 137"),
    ] {
        let tensors = [("a", 0), ("blk.0.ffn_up.weight", kind), ("c", kind), ("d", 12)];
        let error = refusal("m.gguf", &header(std::slice::from_ref(&llama), &tensors));
        assert!(matches!(error, GgufError::Unsupported { .. }), "{error}");
        let error = error.to_string();
        let told = format!("not read: {named} (blk.0.ffn_up.weight and 1 more)");
        assert!(error.contains(&told), "{told}: {error}");
        assert!(error.contains("Q4_K_M") && error.contains("m.gguf"), "{error}");
    }
}

#[test]
fn what_a_file_is_instead_is_named() {
    let llama = ("general.architecture", 8, string("llama"));
    let no = ("split.no", 2, 1_u16.to_le_bytes().to_vec());
    let count = ("split.count", 2, 3_u16.to_le_bytes().to_vec());
    let adapter = ("general.type", 8, string("adapter"));
    let architecture = |name: &str| [("general.architecture", 8, string(name))];
    let mut big_endian = b"GGUF".to_vec();
    big_endian.extend(3_u32.to_be_bytes());
    big_endian.extend([0; 16]);
    let mut newer = b"GGUF".to_vec();
    newer.extend(4_u32.to_le_bytes());
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let one_of_two = "m-00001-of-00002.gguf";
    for (name, bytes, named) in [
        ("m.gguf", header(&[no, count.clone()], &[]), "is part 2 of 3 of a split model"),
        ("m.gguf", header(&[llama.clone(), count], &[]), "llama-gguf-split --merge"),
        (one_of_two, header(std::slice::from_ref(&llama), &[]), "is part 1 of 2"),
        ("m.gguf", header(&[llama, adapter], &[]), "holds a \"adapter\", not a model"),
        ("m.gguf", header(&architecture("gpt-oss"), &[("a", 39)]), "architecture \"gpt-oss\""),
        ("m.gguf", header(&architecture("qwen"), &[]), "supported are llama, qwen2, qwen3"),
        ("m.gguf", big_endian, "is big-endian; convert it with `gguf-convert-endian"),
        ("m.gguf", b"FUGG\0\0\0\x03".to_vec(), "is big-endian"),
        ("m.gguf", newer, "its version is 4, but versions 1 to 3 are read"),
        ("m.gguf", pointer.to_vec(), "is a Git LFS pointer, not the file itself"),
        ("m.gguf", Vec::new(), "it is empty"),
        ("m.gguf", b"GG".to_vec(), "does not begin with GGUF"),
        ("m.gguf", b"tjgg\x01\0\0\0".to_vec(), "a format from before GGUF"),
        ("m.gguf", b"PK\x03\x04abcd".to_vec(), "PyTorch"),
        ("m.gguf", b"versatile".to_vec(), "does not begin with GGUF"),
        ("m.gguf", b"GGUF\x03\0\0\0\xff".to_vec(), "ends within its header"),
        ("m.gguf", header(&[("x", 99, vec![])], &[]), "metadata x has a value of type 99"),
    ] {
        let error = refusal(name, &bytes).to_string();
        assert!(error.contains(named), "{named}: {error}");
        assert!(error.contains(name), "{named}: {error}");
    }
    // Whole, and only named like one part of one.
    let tiny = tiny();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m-00001-of-00001.gguf");
    Source::new(&tiny, &tiny.tensors(), GgmlDType::F32).write(&path);
    gguf::convert(&path, dir.path(), &mut |_| {}).unwrap();
}

#[test]
fn a_factor_alone_scales_linearly() {
    let tiny = tiny();
    for (key, value, expected) in [
        ("llama.rope.scaling.factor", 4.0, RopeScaling::Linear { factor: 4.0 }),
        ("llama.rope.scale_linear", 2.0, RopeScaling::Linear { factor: 2.0 }),
        ("llama.rope.scaling.factor", 0.0, RopeScaling::Default),
    ] {
        let mut source = Source::new(&tiny, &tiny.tensors(), GgmlDType::F32);
        source.metadata.insert(key.to_owned(), Value::F32(value));
        let dir = tempfile::tempdir().unwrap();
        source.convert(dir.path()).unwrap();
        let config = tiny::config_of(dir.path()).unwrap().base;
        assert_eq!(config.rope.scaling, expected, "{key}");
    }
}
