//! Files of the families beside Llama's, and of SentencePiece's tokenizers.

use std::collections::HashMap;

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file::Value},
};
use serde_json::json;
use tokenizers::Tokenizer;

use super::{Source, TOKENS, strings};
use crate::tiny::Random;

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
const EXPERT: usize = 32;
const EXPERTS: usize = 3;
const HEAD_DIM: usize = 16;
const Q: usize = 4 * HEAD_DIM;
const KV: usize = 2 * HEAD_DIM;
const LAYERS: usize = 7;

/// A tensor of a layer: its name in the checkpoint, its name in the file, its shape.
type Row = (&'static str, &'static str, &'static [usize]);

const ALL: [Row; 5] = [
    ("input_layernorm.weight", "attn_norm.weight", &[HIDDEN]),
    ("self_attn.q_proj.weight", "attn_q.weight", &[Q, HIDDEN]),
    ("self_attn.k_proj.weight", "attn_k.weight", &[KV, HIDDEN]),
    ("self_attn.v_proj.weight", "attn_v.weight", &[KV, HIDDEN]),
    ("self_attn.o_proj.weight", "attn_output.weight", &[HIDDEN, Q]),
];
const DENSE: [Row; 3] = [
    ("mlp.gate_proj.weight", "ffn_gate.weight", &[INTERMEDIATE, HIDDEN]),
    ("mlp.up_proj.weight", "ffn_up.weight", &[INTERMEDIATE, HIDDEN]),
    ("mlp.down_proj.weight", "ffn_down.weight", &[HIDDEN, INTERMEDIATE]),
];
/// An expert's; in the file all experts of a layer are one tensor.
const EXPERT_ROWS: [Row; 3] = [
    ("gate_proj.weight", "ffn_gate_exps.weight", &[EXPERT, HIDDEN]),
    ("up_proj.weight", "ffn_up_exps.weight", &[EXPERT, HIDDEN]),
    ("down_proj.weight", "ffn_down_exps.weight", &[HIDDEN, EXPERT]),
];
const FEED_FORWARD_NORM: [Row; 1] =
    [("post_attention_layernorm.weight", "ffn_norm.weight", &[HIDDEN])];
const BIASES: [Row; 3] = [
    ("self_attn.q_proj.bias", "attn_q.bias", &[Q]),
    ("self_attn.k_proj.bias", "attn_k.bias", &[KV]),
    ("self_attn.v_proj.bias", "attn_v.bias", &[KV]),
];
const QK_NORMS: [Row; 2] = [
    ("self_attn.q_norm.weight", "attn_q_norm.weight", &[HEAD_DIM]),
    ("self_attn.k_norm.weight", "attn_k_norm.weight", &[HEAD_DIM]),
];
const GEMMA_NORMS: [Row; 3] = [
    ("post_attention_layernorm.weight", "post_attention_norm.weight", &[HIDDEN]),
    ("pre_feedforward_layernorm.weight", "ffn_norm.weight", &[HIDDEN]),
    ("post_feedforward_layernorm.weight", "post_ffw_norm.weight", &[HIDDEN]),
];

/// What a file has and what must become of it.
struct Case {
    source: Source,
    expected: HashMap<String, Tensor>,
    random: Random,
    /// Norms lie in the file with 1 added.
    is_gemma: bool,
}

impl Case {
    fn new(architecture: &str, metadata: &[(&str, Value)]) -> Self {
        let number = |n: usize| Value::U32(u32::try_from(n).unwrap());
        let mut kinds = vec![Value::I32(1); TOKENS.len()];
        kinds[..3].clone_from_slice(&[3, 3, 4].map(Value::I32));
        let mut all: HashMap<String, Value> = HashMap::from([
            ("general.architecture".to_owned(), Value::String(architecture.to_owned())),
            ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".into())),
            ("tokenizer.ggml.tokens".to_owned(), strings(&TOKENS)),
            ("tokenizer.ggml.token_type".to_owned(), Value::Array(kinds)),
            ("tokenizer.ggml.merges".to_owned(), strings(&["a b"])),
        ]);
        let sizes = [
            ("block_count", number(LAYERS)),
            ("context_length", number(256)),
            ("embedding_length", number(HIDDEN)),
            ("feed_forward_length", number(INTERMEDIATE)),
            ("attention.head_count", number(4)),
            ("attention.head_count_kv", number(2)),
            ("attention.key_length", number(HEAD_DIM)),
            ("attention.value_length", number(HEAD_DIM)),
            ("attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
            ("rope.freq_base", Value::F32(50_000.0)),
        ];
        for (key, value) in sizes.iter().chain(metadata) {
            all.insert(format!("{architecture}.{key}"), value.clone());
        }
        let mut case = Self {
            source: Source { metadata: all, tensors: HashMap::new() },
            expected: HashMap::new(),
            random: Random(5),
            is_gemma: architecture == "gemma3",
        };
        let vocab = TOKENS.len();
        case.add("model.embed_tokens.weight", "token_embd.weight", &[vocab, HIDDEN]);
        case.add("model.norm.weight", "output_norm.weight", &[HIDDEN]);
        case
    }

    /// Numbers that bf16 holds.
    fn numbers(&mut self, shape: &[usize]) -> Tensor {
        let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| self.random.next()).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap()
    }

    /// Adds a tensor to both sides.
    fn add(&mut self, name: &str, source: &str, shape: &[usize]) {
        let tensor = self.numbers(shape);
        let mut stored = tensor.to_dtype(DType::F32).unwrap();
        if self.is_gemma && name.contains("norm") {
            stored = (stored + 1.0).unwrap();
        }
        self.expected.insert(name.to_owned(), tensor);
        self.store(source, &stored);
    }

    fn store(&mut self, source: &str, tensor: &Tensor) {
        let tensor = QTensor::quantize(tensor, GgmlDType::F32).unwrap();
        self.source.tensors.insert(source.to_owned(), tensor);
    }

    fn with_layers(mut self, rows: &[&[Row]]) -> Self {
        for layer in 0..LAYERS {
            for (name, source, shape) in rows.concat() {
                let name = format!("model.layers.{layer}.{name}");
                self.add(&name, &format!("blk.{layer}.{source}"), shape);
            }
        }
        self
    }

    /// Converts, compares all tensors, and gives config.json.
    fn check(&self, label: &str) -> serde_json::Value {
        let dir = tempfile::tempdir().unwrap();
        let reports = self.source.convert(dir.path()).unwrap();
        assert_eq!(reports.len(), self.expected.len(), "{label}");
        let path = dir.path().join("model.safetensors");
        let converted = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let mut names: Vec<_> = converted.keys().collect();
        let mut expected: Vec<_> = self.expected.keys().collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected, "{label}");
        let numbers =
            |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<half::bf16>().unwrap();
        for (name, expected) in &self.expected {
            assert_eq!(converted[name].dims(), expected.dims(), "{label} {name}");
            assert_eq!(numbers(&converted[name]), numbers(expected), "{label} {name}");
        }
        let config = std::fs::read(dir.path().join("config.json")).unwrap();
        serde_json::from_slice(&config).unwrap()
    }
}

#[test]
fn qwens_weights_keep_their_rows() {
    let biased = Case::new("qwen2", &[]).with_layers(&[&ALL, &FEED_FORWARD_NORM, &DENSE, &BIASES]);
    let config = biased.check("qwen2");
    assert_eq!(config["architectures"], json!(["Qwen2ForCausalLM"]));
    assert_eq!(config["rope_theta"], 50_000.0);
    assert_eq!(config["tie_word_embeddings"], true);

    let rows: [&[Row]; 4] = [&ALL, &FEED_FORWARD_NORM, &DENSE, &QK_NORMS];
    let config = Case::new("qwen3", &[]).with_layers(&rows).check("qwen3");
    assert_eq!(config["model_type"], "qwen3");
    assert_eq!(config["head_dim"], HEAD_DIM);
}

#[test]
fn experts_are_taken_apart() {
    let metadata = [
        ("expert_count", Value::U32(3)),
        ("expert_used_count", Value::U32(2)),
        ("expert_feed_forward_length", Value::U32(32)),
    ];
    let rows: [&[Row]; 3] = [&ALL, &FEED_FORWARD_NORM, &QK_NORMS];
    let mut case = Case::new("qwen3moe", &metadata).with_layers(&rows);
    for layer in 0..LAYERS {
        let router = format!("model.layers.{layer}.mlp.gate.weight");
        case.add(&router, &format!("blk.{layer}.ffn_gate_inp.weight"), &[EXPERTS, HIDDEN]);
        for (name, source, shape) in EXPERT_ROWS {
            let experts: Vec<_> = (0..EXPERTS).map(|_| case.numbers(shape)).collect();
            let stacked = Tensor::stack(&experts, 0).unwrap().to_dtype(DType::F32).unwrap();
            case.store(&format!("blk.{layer}.{source}"), &stacked);
            for (expert, tensor) in experts.into_iter().enumerate() {
                let name = format!("model.layers.{layer}.mlp.experts.{expert}.{name}");
                case.expected.insert(name, tensor);
            }
        }
    }
    let config = case.check("qwen3moe");
    assert_eq!(config["architectures"], json!(["Qwen3MoeForCausalLM"]));
    assert_eq!(config["num_experts"], EXPERTS);
    assert_eq!(config["num_experts_per_tok"], 2);
    assert_eq!(config["moe_intermediate_size"], EXPERT);
    assert_eq!(config["norm_topk_prob"], true);

    for (key, value, named) in [
        ("qwen3moe.expert_count", Value::U32(1 << 20), "at most 1024"),
        ("qwen3moe.expert_count", Value::U32(4), "must be [4, 64]"),
        ("qwen3moe.expert_count", Value::U32(0), "no metadata key qwen3moe.expert_count"),
    ] {
        let was = case.source.metadata.insert(key.to_owned(), value);
        let dir = tempfile::tempdir().unwrap();
        let error = case.source.convert(dir.path()).unwrap_err().to_string();
        assert!(error.contains(named), "{key}: {error}");
        case.source.metadata.insert(key.to_owned(), was.unwrap());
    }
}

#[test]
fn gemmas_norms_lose_the_one_that_was_added() {
    let metadata = [
        ("attention.sliding_window", Value::U32(24)),
        ("rope.scaling.type", Value::String("linear".into())),
        ("rope.scaling.factor", Value::F32(8.0)),
    ];
    let rows: [&[Row]; 4] = [&ALL, &GEMMA_NORMS, &DENSE, &QK_NORMS];
    let config = Case::new("gemma3", &metadata).with_layers(&rows).check("gemma3");
    assert_eq!(config["architectures"], json!(["Gemma3ForCausalLM"]));
    assert_eq!(config["hidden_activation"], "gelu_pytorch_tanh");
    assert!(config.get("hidden_act").is_none());
    assert_eq!(config["sliding_window"], 24);
    let (local, global) = ("sliding_attention", "full_attention");
    assert_eq!(config["layer_types"], json!([local, local, local, local, local, global, local]));
    assert_eq!(config["rope_local_base_freq"], 10_000.0);
    assert_eq!(config["rope_scaling"], json!({ "rope_type": "linear", "factor": 8.0 }));
    assert_eq!(config["query_pre_attn_scalar"], HEAD_DIM);
    assert_eq!(config["final_logit_softcapping"], json!(null));
}

/// A vocabulary of SentencePiece's kind with its scores.
fn sentence_piece() -> Source {
    let mut case =
        Case::new("qwen2", &[]).with_layers(&[&ALL, &FEED_FORWARD_NORM, &DENSE, &BIASES]);
    let mut tokens: Vec<(String, f32, i32)> = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("  ", -1000.0, 4),
        ("<tool>", -1000.0, 4),
    ]
    .map(|(token, score, kind)| (token.to_owned(), score, kind))
    .into();
    tokens.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    for (rank, token) in (0..).zip(["ab", "▁a", "bc", "▁ab", "▁abc", "▁", "a", "b", "c"]) {
        tokens.push((token.to_owned(), -f32::from(i16::try_from(rank).unwrap()), 1));
    }
    let metadata = &mut case.source.metadata;
    let mut set = |key: &str, value| metadata.insert(format!("tokenizer.ggml.{key}"), value);
    set("model", Value::String("llama".into()));
    let names: Vec<_> = tokens.iter().map(|(token, ..)| token.as_str()).collect();
    set("tokens", strings(&names));
    set("scores", Value::Array(tokens.iter().map(|(_, score, _)| Value::F32(*score)).collect()));
    set("token_type", Value::Array(tokens.iter().map(|(.., kind)| Value::I32(*kind)).collect()));
    set("bos_token_id", Value::U32(1));
    set("eos_token_id", Value::U32(2));
    set("unknown_token_id", Value::U32(0));
    metadata.remove("tokenizer.ggml.merges");
    // The vocabulary's size is the embedding's.
    case.add("model.embed_tokens.weight", "token_embd.weight", &[tokens.len(), HIDDEN]);
    case.source
}

#[test]
fn a_tokenizer_of_scores_is_rebuilt() {
    const FIRST: u32 = 5 + 256;
    let mut source = sentence_piece();
    let dir = tempfile::tempdir().unwrap();
    source.convert(dir.path()).unwrap();
    let tokenizer = || Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    let ids = |text: &str| tokenizer().encode(text, true).unwrap().get_ids().to_vec();
    // With the token that begins a text, and a space before the first word: "ab" has the best
    // score, "▁a" would be the first from the left.
    assert_eq!(ids("ab"), [1, FIRST + 3]);
    assert_eq!(ids("abc"), [1, FIRST + 4]);
    assert_eq!(ids("bc"), [1, FIRST + 5, FIRST + 2]);
    // Bytes for what has no token, and what users have defined whole.
    assert_eq!(ids("é"), [1, FIRST + 5, 5 + 0xC3, 5 + 0xA9]);
    assert_eq!(ids("ab  <tool>")[..3], [1, FIRST + 3, 3]);
    let decoded = |ids: &[u32]| tokenizer().decode(ids, true).unwrap();
    assert_eq!(decoded(&ids("ab é bc")), "ab é bc");
    assert_eq!(decoded(&[1, FIRST + 3, 3, FIRST + 6, 2]), "ab  a");

    // Without the space, and without the token.
    for (key, value) in [("add_space_prefix", false), ("add_bos_token", false)] {
        source.metadata.insert(format!("tokenizer.ggml.{key}"), Value::Bool(value));
    }
    source.convert(dir.path()).unwrap();
    assert_eq!(ids("ab ab"), [FIRST, FIRST + 3]);
    assert_eq!(decoded(&[FIRST + 3]), " ab");

    for (key, value, named) in [
        ("scores", Value::Array(vec![]), "0 scores"),
        ("scores", strings(&["x"]), "a list of f32"),
        ("model", Value::String("bert".into()), "\"gpt2\""),
    ] {
        let mut source = sentence_piece();
        source.metadata.insert(format!("tokenizer.ggml.{key}"), value);
        let error = source.convert(dir.path()).unwrap_err().to_string();
        assert!(error.contains(named), "{key}: {error}");
    }
}
