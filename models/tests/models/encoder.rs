//! BERT as an encoder: its forward pass against a plain one in f64, the names of its
//! checkpoints, and what is refused of its files.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device as CandleDevice, Tensor};
use sconce_kernels::{
    CacheDtype, Device as _, KvLayout, StepLimits, StepPlan, WeightDtype,
    cpu::{Cpu, CpuBuffer, CpuConfig},
    reference,
};
use sconce_models::{EncoderCheckpoint, LoadedEncoder, ModelError, Pass, Pooling, Workspace};
use serde_json::{Value, json};

use crate::tiny::Random;

const VOCAB: usize = 50;
const HIDDEN: usize = 36;
const HEADS: usize = 3;
const INTERMEDIATE: usize = 52;
const LAYERS: usize = 2;
const POSITIONS: usize = 40;
const EPS: f64 = 1e-5;

type Tensors = HashMap<String, Tensor>;

fn config() -> Value {
    json!({
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": VOCAB,
        "hidden_size": HIDDEN, "num_attention_heads": HEADS, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS, "max_position_embeddings": POSITIONS, "type_vocab_size": 2,
        "layer_norm_eps": EPS, "hidden_act": "gelu",
    })
}

/// A checkpoint of random weights, whose names begin with `prefix`.
fn tensors(prefix: &str) -> Tensors {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add =
        |name: &str, shape: &[usize]| shapes.push((format!("{prefix}{name}"), shape.to_vec()));
    for (name, rows) in [("word", VOCAB), ("position", POSITIONS), ("token_type", 2)] {
        add(&format!("embeddings.{name}_embeddings.weight"), &[rows, HIDDEN]);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let below = format!("encoder.layer.{layer}");
        for (name, n, k) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", INTERMEDIATE, HIDDEN),
            ("output.dense", HIDDEN, INTERMEDIATE),
        ] {
            add(&format!("{below}.{name}.weight"), &[n, k]);
            add(&format!("{below}.{name}.bias"), &[n]);
        }
        norms.extend(
            ["attention.output.LayerNorm", "output.LayerNorm"].map(|n| format!("{below}.{n}")),
        );
    }
    for norm in norms {
        add(&format!("{norm}.weight"), &[HIDDEN]);
        add(&format!("{norm}.bias"), &[HIDDEN]);
    }
    add("pooler.dense.weight", &[HIDDEN, HIDDEN]);
    add("pooler.dense.bias", &[HIDDEN]);
    let mut random = Random(17);
    let mut tensor = |(name, shape): (String, Vec<usize>)| {
        let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| random.next() * 0.4).collect();
        (name, Tensor::from_vec(numbers, shape, &CandleDevice::Cpu).unwrap())
    };
    shapes.into_iter().map(&mut tensor).collect()
}

fn write(dir: &Path, config: &Value, tensors: &Tensors) {
    write_json(dir, "config.json", config);
    candle_core::safetensors::save(tensors, dir.join("model.safetensors")).unwrap();
}

fn write_json(dir: &Path, name: &str, value: &Value) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, value.to_string()).unwrap();
}

fn open(dir: &Path) -> EncoderCheckpoint {
    EncoderCheckpoint::open(dir).unwrap().expect("it is an encoder")
}

fn load(dir: &Path, cpu: &Cpu, dtype: WeightDtype) -> Result<LoadedEncoder<Cpu>, ModelError> {
    open(dir).load(cpu, dtype, &mut |_, _| {})
}

/// The hidden states of texts that are computed together.
fn hidden(dir: &Path, dtype: WeightDtype, texts: &[Vec<u32>]) -> Vec<f32> {
    let mut cpu = Cpu::new(CpuConfig { threads: Some(2), ..CpuConfig::default() });
    let model = load(dir, &cpu, dtype).unwrap().model;
    let limits =
        StepLimits { max_num_batched_tokens: 128, max_num_seqs: 8, max_model_len: POSITIONS };
    let layout =
        KvLayout { num_blocks: 0, num_groups: 0, layers: Vec::new(), dtype: CacheDtype::F32 };
    let mut cache = cpu.kv_cache(&layout, &limits).unwrap();
    let mut step = cpu.step(&limits, &[]).unwrap();
    let mut workspace = Workspace::<Cpu>::new(128, 1);
    workspace
        .poison_freed(|buffer: &mut CpuBuffer| buffer.rows_mut(buffer.capacity()).fill(f32::NAN));
    let mut plan = StepPlan::new(0);
    for (slot, text) in (0..).zip(texts) {
        plan.push(slot, text, 0, &[] as &[Vec<u32>]);
    }
    let mut states = Vec::new();
    // A second pass finds what the first one left, and takes no more buffers.
    for _ in 0..2 {
        cpu.stage(&plan, &mut step, &mut cache).unwrap();
        let rows = plan.num_tokens();
        let mut pass = Pass::begin(&mut cpu, &step, rows, &mut cache, &mut workspace);
        let out = model.forward(&mut pass).unwrap();
        states = cpu.read(workspace.get(&out), rows).unwrap();
        workspace.freeze();
    }
    states
}

/// The encoder as its definition reads: one text, all in f64.
struct Plain(HashMap<String, Vec<f64>>);

impl Plain {
    fn new(tensors: &Tensors) -> Self {
        let numbers = |(name, tensor): (&String, &Tensor)| {
            let wide = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
            (name.clone(), wide.to_vec1().unwrap())
        };
        Self(tensors.iter().map(numbers).collect())
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let bias = &self.0[&format!("{name}.bias")];
        reference::linear(x, &self.0[&format!("{name}.weight")], Some(bias))
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let [weight, bias] = ["weight", "bias"].map(|kind| &self.0[&format!("{name}.{kind}")]);
        reference::layer_norm(x, weight, bias, EPS)
    }

    fn hidden(&self, tokens: &[u32]) -> Vec<f64> {
        let row = |table: &str, index: usize| {
            &self.0[&format!("embeddings.{table}_embeddings.weight")][index * HIDDEN..][..HIDDEN]
        };
        let embed = |(position, &token): (usize, &u32)| {
            let rows =
                [row("word", token as usize), row("position", position), row("token_type", 0)];
            let sum: Vec<f64> = (0..HIDDEN).map(|i| rows.iter().map(|row| row[i]).sum()).collect();
            self.norm("embeddings.LayerNorm", &sum)
        };
        let mut states: Vec<Vec<f64>> = tokens.iter().enumerate().map(embed).collect();
        let sum = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
        for layer in 0..LAYERS {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            let project = |part: &str| -> Vec<Vec<f64>> {
                states
                    .iter()
                    .map(|x| self.linear(&name(&format!("attention.self.{part}")), x))
                    .collect()
            };
            let [q, k, v] = ["query", "key", "value"].map(project);
            let mut attended = vec![Vec::new(); states.len()];
            let head_dim = HIDDEN / HEADS;
            for head in 0..HEADS {
                let part = |rows: &[Vec<f64>]| -> Vec<f64> {
                    rows.iter()
                        .flat_map(|row| row[head * head_dim..][..head_dim].to_vec())
                        .collect()
                };
                let out = reference::full_attention(&part(&q), &part(&k), &part(&v), head_dim);
                for (row, out) in attended.iter_mut().zip(out.chunks(head_dim)) {
                    row.extend_from_slice(out);
                }
            }
            for (x, attended) in states.iter_mut().zip(&attended) {
                let dense = self.linear(&name("attention.output.dense"), attended);
                let h = self.norm(&name("attention.output.LayerNorm"), &sum(x, &dense));
                let up = self.linear(&name("intermediate.dense"), &h);
                let up: Vec<f64> = up.into_iter().map(reference::gelu).collect();
                let down = self.linear(&name("output.dense"), &up);
                *x = self.norm(&name("output.LayerNorm"), &sum(&h, &down));
            }
        }
        states.concat()
    }
}

fn texts() -> Vec<Vec<u32>> {
    let mut random = Random(3);
    let mut token = || ((random.next() + 1.0) * 24.9) as u32;
    [1, 33, 5, 16].map(|len| (0..len).map(|_| token()).collect()).to_vec()
}

#[test]
fn hidden_states_of_an_encoder_agree_with_a_plain_forward_pass() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = tensors("");
    write(dir.path(), &config(), &tensors);
    let texts = texts();
    let plain = Plain::new(&tensors);
    let expected: Vec<f64> = texts.iter().flat_map(|text| plain.hidden(text)).collect();
    for (dtype, limit) in
        [(WeightDtype::F32, 2e-6), (WeightDtype::Bf16, 2e-2), (WeightDtype::Int8, 4e-2)]
    {
        let got = hidden(dir.path(), dtype, &texts);
        assert_eq!(got.len(), expected.len());
        let square = |x: f64| x * x;
        let errors = got.iter().zip(&expected).map(|(&a, b)| square(f64::from(a) - b));
        let error = (errors.sum::<f64>() / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt();
        assert!(error < limit, "{dtype:?}: relative error {error:e}");
        // A text's bits are its own.
        let alone = hidden(dir.path(), dtype, &texts[1..2]);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&alone), bits(&got[HIDDEN..][..33 * HIDDEN]), "{dtype:?}");
    }
}

#[test]
fn an_encoders_names_may_stand_below_bert_and_the_pooler_is_left() {
    let texts = texts();
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &config(), &tensors(""));
    let expected = hidden(dir.path(), WeightDtype::F32, &texts);
    let prefixed = tempfile::tempdir().unwrap();
    let mut tensors = tensors("bert.");
    write(prefixed.path(), &config(), &tensors);
    assert_eq!(hidden(prefixed.path(), WeightDtype::F32, &texts), expected);
    let cpu = Cpu::new(CpuConfig { threads: Some(1), ..CpuConfig::default() });
    let warnings = load(prefixed.path(), &cpu, WeightDtype::F32).unwrap().warnings;
    assert_eq!(warnings, [""; 0]);
    let denied = "bert.encoder.layer.2.output.dense.bias";
    let bias = tensors["bert.encoder.layer.1.output.dense.bias"].clone();
    tensors.insert(denied.to_owned(), bias);
    write(prefixed.path(), &config(), &tensors);
    let error = load(prefixed.path(), &cpu, WeightDtype::F32).err().unwrap().to_string();
    assert!(error.contains(&format!("{denied} has no place in the model")), "{error}");
}

#[test]
fn an_encoder_is_told_from_other_models() {
    let dir = tempfile::tempdir().unwrap();
    let open = |change: &Value| {
        let mut config = config();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        write_json(dir.path(), "config.json", &config);
        EncoderCheckpoint::open(dir.path())
    };
    for encoder in [json!({}), json!({ "architectures": null }), json!({ "model_type": null })] {
        assert!(open(&encoder).unwrap().is_some(), "{encoder}");
    }
    let other = json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"] });
    assert!(open(&other).unwrap().is_none());
    for (change, field) in [
        (json!({ "architectures": ["BertForSequenceClassification"] }), "architectures"),
        (json!({ "hidden_act": "relu" }), "hidden_act"),
        (json!({ "position_embedding_type": "relative_key" }), "position_embedding_type"),
        (json!({ "is_decoder": true }), "is_decoder"),
        (json!({ "num_attention_heads": 5 }), "num_attention_heads"),
        (json!({ "layer_norm_eps": 0 }), "layer_norm_eps"),
    ] {
        let error = open(&change).err().expect("it cannot be served").to_string();
        assert!(error.starts_with(&format!("config.json: {field} is ")), "{error}");
    }
}

#[test]
fn what_becomes_of_hidden_states_is_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_json(dir, "config.json", &config());
    let plain = open(dir).sentence().clone();
    assert_eq!((plain.pooling, plain.normalize, plain.matryoshka), (Pooling::Mean, false, None));
    assert_eq!(open(dir).max_tokens(), POSITIONS);

    let module = |name: &str, path: &str| json!({ "type": format!("sentence_transformers.models.{name}"), "path": path });
    let modules =
        json!([module("Transformer", ""), module("Pooling", "1_P"), module("Normalize", "")]);
    write_json(dir, "modules.json", &modules);
    let pooling = |mode: &str| json!({ "word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": false, mode: true });
    write_json(dir, "1_P/config.json", &pooling("pooling_mode_cls_token"));
    write_json(dir, "sentence_bert_config.json", &json!({ "max_seq_length": 17 }));
    let mut own = config();
    own["matryoshka_dimensions"] = json!([12, 24]);
    write_json(dir, "config.json", &own);
    let read = open(dir);
    let sentence = read.sentence();
    assert_eq!((sentence.pooling, sentence.normalize), (Pooling::Cls, true));
    assert_eq!((read.max_tokens(), &sentence.matryoshka), (17, &Some(vec![12, 24])));

    let refused = || EncoderCheckpoint::open(dir).err().expect("it cannot be served").to_string();
    write_json(dir, "1_P/config.json", &pooling("pooling_mode_max_tokens"));
    assert!(refused().contains("the pooling is pooling_mode_max_tokens"), "{}", refused());
    write_json(dir, "1_P/config.json", &pooling("pooling_mode_mean_tokens"));
    write_json(
        dir,
        "modules.json",
        &json!([module("Transformer", ""), module("Dense", "2_Dense")]),
    );
    assert!(refused().contains("Dense\" is not computed here"), "{}", refused());
    write_json(dir, "modules.json", &modules);
    write_json(dir, "sentence_bert_config.json", &json!({ "do_lower_case": true }));
    assert!(refused().contains("do_lower_case is true"), "{}", refused());
}
