//! Small random models, written as directories.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};
use sconce_kernels::cpu::Cpu;
use sconce_models::{Checkpoint, ModelError, llama};
use serde_json::{Value, json};

/// The sizes of a model small enough to be computed in f64 by a plain loop.
#[derive(Clone, Debug)]
pub(crate) struct Tiny {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) tied: bool,
    pub(crate) biased: bool,
    pub(crate) sliding_window: Option<usize>,
    /// The architecture; `None` is a Llama with biases, a Mistral without.
    pub(crate) class: Option<&'static str>,
    /// Of a Gemma: config.json as it was written before transformers 5.
    pub(crate) older: bool,
}

/// Of a mixture of experts, whose first layer has none.
pub(crate) const EXPERTS: usize = 6;
pub(crate) const EXPERTS_OF_A_TOKEN: usize = 2;
pub(crate) const EXPERT: usize = 32;

pub(crate) const GEMMA: &str = "Gemma3ForCausalLM";
/// What a Gemma has of its own: the cap of logits, the root that divides scores, the base of
/// local layers' frequencies, the factor that divides those of global ones.
pub(crate) const GEMMA_CAP: f64 = 2.0;
pub(crate) const GEMMA_SCALAR: f64 = 24.0;
pub(crate) const GEMMA_LOCAL_THETA: f64 = 300.0;
pub(crate) const GEMMA_FACTOR: f64 = 4.0;

impl Default for Tiny {
    fn default() -> Self {
        Self {
            vocab: 80,
            hidden: 48,
            intermediate: 80,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            tied: true,
            biased: false,
            sliding_window: None,
            class: None,
            older: false,
        }
    }
}

impl Tiny {
    pub(crate) fn is_gemma(&self) -> bool {
        self.class == Some(GEMMA)
    }

    /// Its config.json.
    pub(crate) fn config(&self) -> Value {
        let mut config = self.llama_config();
        if !self.is_gemma() {
            return config;
        }
        let kinds = |layer| match self.window(layer) {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        let scaling = json!({ "rope_type": "linear", "factor": GEMMA_FACTOR });
        let own = if self.older {
            json!({
                "sliding_window_pattern": 2, "rope_theta": 1000.0, "rope_scaling": scaling,
                "rope_local_base_freq": GEMMA_LOCAL_THETA,
            })
        } else {
            let (mut global, mut local) = (scaling, json!({ "rope_type": "default" }));
            global["rope_theta"] = json!(1000.0);
            local["rope_theta"] = json!(GEMMA_LOCAL_THETA);
            json!({
                "layer_types": (0..self.layers).map(kinds).collect::<Vec<_>>(),
                "rope_parameters": { "full_attention": global, "sliding_attention": local },
            })
        };
        let fields = config.as_object_mut().unwrap();
        for field in ["hidden_act", "rope_theta", "mlp_bias"] {
            fields.remove(field);
        }
        fields.insert("hidden_activation".into(), json!("gelu_pytorch_tanh"));
        fields.insert("query_pre_attn_scalar".into(), json!(GEMMA_SCALAR));
        fields.insert("final_logit_softcapping".into(), json!(GEMMA_CAP));
        fields.extend(own.as_object().unwrap().clone());
        config
    }

    fn llama_config(&self) -> Value {
        json!({
            // The one has biases, the other a window.
            "architectures": [self.class.unwrap_or(
                if self.biased { "LlamaForCausalLM" } else { "MistralForCausalLM" }
            )],
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000.0,
            "tie_word_embeddings": self.tied,
            "attention_bias": self.biased,
            "mlp_bias": self.biased,
            "sliding_window": self.sliding_window,
            "use_sliding_window": self.sliding_window.is_some(),
            "max_window_layers": 1,
            "hidden_act": "silu",
            "num_experts": EXPERTS,
            "num_experts_per_tok": EXPERTS_OF_A_TOKEN,
            "norm_topk_prob": true,
            "moe_intermediate_size": EXPERT,
            "mlp_only_layers": [0],
        })
    }

    /// Positions that a layer's queries see, if not all: Qwen's first layer sees them, and
    /// every other one of a Gemma.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| match self.class {
            None => true,
            Some(GEMMA) => layer.is_multiple_of(2),
            Some(_) => layer >= 1,
        })
    }

    /// Whether it is a Qwen3 with experts.
    pub(crate) fn is_mixture(&self) -> bool {
        self.class == Some("Qwen3MoeForCausalLM")
    }

    /// Whether it norms each head of Q and of K.
    pub(crate) fn has_head_norms(&self) -> bool {
        self.class == Some("Qwen3ForCausalLM") || self.is_mixture() || self.is_gemma()
    }

    /// The name and shape of every tensor.
    pub(crate) fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (hidden, intermediate) = (self.hidden, self.intermediate);
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.tied {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocab, hidden]));
        }
        for layer in 0..self.layers {
            let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
            let mut norms = vec!["input_layernorm", "post_attention_layernorm"];
            if self.is_gemma() {
                norms.extend(["pre_feedforward_layernorm", "post_feedforward_layernorm"]);
            }
            for norm in norms {
                shapes.push((name(&format!("{norm}.weight")), vec![hidden]));
            }
            if self.has_head_norms() {
                for norm in ["self_attn.q_norm", "self_attn.k_norm"] {
                    shapes.push((name(&format!("{norm}.weight")), vec![self.head_dim]));
                }
            }
            for (linear, n, k) in [
                ("self_attn.q_proj", q, hidden),
                ("self_attn.k_proj", kv, hidden),
                ("self_attn.v_proj", kv, hidden),
                ("self_attn.o_proj", hidden, q),
            ] {
                shapes.push((name(&format!("{linear}.weight")), vec![n, k]));
                let of_qwen2 =
                    ["q_proj", "k_proj", "v_proj"].iter().any(|end| linear.ends_with(end));
                if self.biased || (of_qwen2 && self.class == Some("Qwen2ForCausalLM")) {
                    shapes.push((name(&format!("{linear}.bias")), vec![n]));
                }
            }
            let mut gated = |below: &str, intermediate| {
                for (linear, n, k) in [
                    ("gate_proj", intermediate, hidden),
                    ("up_proj", intermediate, hidden),
                    ("down_proj", hidden, intermediate),
                ] {
                    shapes.push((name(&format!("{below}.{linear}.weight")), vec![n, k]));
                    if self.biased && !self.is_gemma() {
                        shapes.push((name(&format!("{below}.{linear}.bias")), vec![n]));
                    }
                }
            };
            if self.is_mixture() && layer > 0 {
                (0..EXPERTS).for_each(|expert| gated(&format!("mlp.experts.{expert}"), EXPERT));
                shapes.push((name("mlp.gate.weight"), vec![EXPERTS, hidden]));
            } else {
                gated("mlp", intermediate);
            }
        }
        shapes
    }

    /// Random weights: bf16 numbers, so that either dtype holds them exactly.
    pub(crate) fn tensors(&self) -> HashMap<String, Tensor> {
        let mut random = Random(7);
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let norm = name.contains("norm");
            let scale = if norm { 0.2 } else { 1.5 / (shape[shape.len() - 1] as f32).sqrt() };
            // A Gemma adds the 1 itself.
            let plus = f32::from(u8::from(norm && !self.is_gemma()));
            let numbers: Vec<f32> =
                (0..shape.iter().product()).map(|_| random.next() * scale + plus).collect();
            let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu)
                .and_then(|tensor| tensor.to_dtype(DType::BF16))
                .unwrap();
            (name, tensor)
        };
        self.shapes().into_iter().map(tensor).collect()
    }

    /// Writes a model directory.
    pub(crate) fn write(&self, dir: &Path) -> HashMap<String, Tensor> {
        let tensors = self.tensors();
        write_config(dir, &self.config());
        candle_core::safetensors::save(&tensors, dir.join("model.safetensors")).unwrap();
        tensors
    }
}

pub(crate) fn write_config(dir: &Path, config: &Value) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

/// A directory that holds a Llama or a Mistral.
pub(crate) fn config_of(dir: &Path) -> Result<llama::Config, ModelError> {
    let checkpoint = Checkpoint::<Cpu>::open(dir)?;
    Ok(checkpoint.config::<llama::Config>().expect("a Llama or a Mistral").clone())
}

/// Reads a config.json of the given contents: its architecture and fields.
pub(crate) fn read_config(config: &Value) -> Result<(&'static str, llama::Config), ModelError> {
    let dir = tempfile::tempdir().unwrap();
    write_config(dir.path(), config);
    Ok((Checkpoint::<Cpu>::open(dir.path())?.architecture(), config_of(dir.path())?))
}

/// SplitMix64 (Steele et al., 2014): the same numbers everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// From -1 to 1.
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
