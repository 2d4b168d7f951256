//! What llama.cpp's files of a family say otherwise than those of another.

use candle_core::quantized::gguf_file::Content;
use serde_json::{Map, Value, json};

use super::{
    GgufError,
    metadata::{Metadata, refuse},
};

/// A family of GGUF files: `general.architecture`, which is the prefix of its keys, and what
/// becomes of it.
#[derive(Debug)]
pub(super) struct Architecture {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// config.json's `architectures`.
    class: &'static str,
    /// config.json's `model_type`.
    pub(super) model_type: &'static str,
    /// config.json's field and value of the gate's activation.
    activation: (&'static str, &'static str),
    /// RoPE's base where the file has none.
    rope_theta: f64,
    /// The rows of Q and K are in the order that llama.cpp gives to Llama's.
    pub(super) has_reordered_heads: bool,
    /// Q, K and V have biases.
    pub(super) has_qkv_bias: bool,
    /// Each head of Q and K is normed.
    pub(super) has_qk_norm: bool,
    /// There are norms after both blocks too, and a norm multiplies by its weight plus 1,
    /// which llama.cpp has added already.
    pub(super) is_gemma: bool,
    /// Layers are experts.
    has_experts: bool,
    /// config.json's fields beside those that all have.
    fields: OwnFields,
}

/// Adds fields to config.json.
type OwnFields = fn(&Metadata<'_>, &Sizes, &mut Map<String, Value>) -> Result<(), GgufError>;

/// The families, a name each.
pub(super) const ARCHITECTURES: [Architecture; 5] = [
    Architecture {
        name: "llama",
        class: "LlamaForCausalLM",
        model_type: "llama",
        has_reordered_heads: true,
        fields: |_, _, config| {
            config.insert("attention_bias".into(), json!(false));
            config.insert("mlp_bias".into(), json!(false));
            Ok(())
        },
        ..PLAIN
    },
    Architecture {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        model_type: "qwen2",
        has_qkv_bias: true,
        ..PLAIN
    },
    Architecture {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        model_type: "qwen3",
        has_qk_norm: true,
        ..PLAIN
    },
    Architecture {
        name: "qwen3moe",
        class: "Qwen3MoeForCausalLM",
        model_type: "qwen3_moe",
        has_qk_norm: true,
        has_experts: true,
        fields: mixture,
        ..PLAIN
    },
    Architecture {
        name: "gemma3",
        class: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        rope_theta: 1_000_000.0,
        has_qk_norm: true,
        is_gemma: true,
        fields: gemma,
        ..PLAIN
    },
];

const PLAIN: Architecture = Architecture {
    name: "",
    class: "",
    model_type: "",
    activation: ("hidden_act", "silu"),
    rope_theta: 10_000.0,
    has_reordered_heads: false,
    has_qkv_bias: false,
    has_qk_norm: false,
    is_gemma: false,
    has_experts: false,
    fields: |_, _, _| Ok(()),
};

/// The family of a name.
pub(super) fn find(name: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|architecture| architecture.name == name)
}

/// A model's sizes.
#[derive(Debug)]
pub(super) struct Sizes {
    pub(super) num_layers: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab_size: usize,
    /// Routed experts and the size of each; of a dense model none.
    pub(super) experts: Option<(usize, usize)>,
    /// The output's matrix is the embedding's.
    pub(super) is_tied: bool,
}

/// Every layer's tensors are written down before they are looked for.
const MAX_LAYERS: usize = 1 << 10;
/// As the layers, and in each of them.
const MAX_EXPERTS: usize = 1 << 10;

impl Sizes {
    pub(super) fn read(metadata: &Metadata<'_>, content: &Content) -> Result<Self, GgufError> {
        let key = |name| metadata.key(name);
        let experts = metadata.optional_size(&key("expert_count"))?.filter(|count| *count > 0);
        let is_mixture = metadata.architecture.has_experts;
        let experts = match experts {
            Some(_) if is_mixture => {
                let count = metadata.size(&key("expert_count"))?;
                if count > MAX_EXPERTS {
                    let accepted = format!("at most {MAX_EXPERTS}");
                    return Err(refuse(&key("expert_count"), &count, accepted));
                }
                Some((count, metadata.size(&key("expert_feed_forward_length"))?))
            }
            None if is_mixture => {
                return Err(GgufError::MissingKey { key: key("expert_count") });
            }
            Some(count) => {
                let accepted = "0: of mixtures of experts only qwen3moe is converted";
                return Err(refuse(&key("expert_count"), &count, accepted));
            }
            None => None,
        };
        let hidden_size = metadata.size(&key("embedding_length"))?;
        let num_heads = metadata.size(&key("attention.head_count"))?;
        let num_kv_heads = metadata.size_or(&key("attention.head_count_kv"), num_heads)?;
        let head_dim = metadata.size_or(&key("attention.key_length"), hidden_size / num_heads)?;
        let rope_dim = metadata.size_or(&key("rope.dimension_count"), head_dim)?;
        if rope_dim != head_dim || head_dim < 2 || !head_dim.is_multiple_of(2) {
            let accepted = format!("the head's size, {head_dim}, and even");
            return Err(refuse(&key("rope.dimension_count"), &rope_dim, accepted));
        }
        let value_dim = metadata.size_or(&key("attention.value_length"), head_dim)?;
        if value_dim != head_dim {
            let accepted = format!("the size of a head of K, {head_dim}");
            return Err(refuse(&key("attention.value_length"), &value_dim, accepted));
        }
        if !num_heads.is_multiple_of(num_kv_heads) {
            let accepted = format!("a divisor of the {num_heads} heads");
            return Err(refuse(&key("attention.head_count_kv"), &num_kv_heads, accepted));
        }
        let num_layers = metadata.size(&key("block_count"))?;
        if num_layers > MAX_LAYERS {
            let accepted = format!("at most {MAX_LAYERS}");
            return Err(refuse(&key("block_count"), &num_layers, accepted));
        }
        Ok(Self {
            num_layers,
            hidden_size,
            intermediate_size: metadata.size(&key("feed_forward_length"))?,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size: metadata.strings("tokenizer.ggml.tokens")?.len(),
            experts,
            is_tied: !content.tensor_infos.contains_key("output.weight"),
        })
    }

    /// config.json.
    pub(super) fn config(
        &self,
        metadata: &Metadata<'_>,
        rope_scaling: &Value,
    ) -> Result<Value, GgufError> {
        let architecture = metadata.architecture;
        let float = |name, otherwise| metadata.float_or(&metadata.key(name), otherwise);
        let (activation, kind) = architecture.activation;
        let config = json!({
            "architectures": [architecture.class],
            "model_type": architecture.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            activation: kind,
            "max_position_embeddings": metadata.size(&metadata.key("context_length"))?,
            "rms_norm_eps": metadata.float(&metadata.key("attention.layer_norm_rms_epsilon"))?,
            "rope_theta": float("rope.freq_base", architecture.rope_theta)?,
            "rope_scaling": rope_scaling,
            "tie_word_embeddings": self.is_tied,
            "torch_dtype": "bfloat16",
            "bos_token_id": metadata.optional_size("tokenizer.ggml.bos_token_id")?,
            "eos_token_id": metadata.optional_size("tokenizer.ggml.eos_token_id")?,
        });
        let Value::Object(mut config) = config else { unreachable!("it is written as an object") };
        (architecture.fields)(metadata, self, &mut config)?;
        Ok(Value::Object(config))
    }
}

fn mixture(
    metadata: &Metadata<'_>,
    sizes: &Sizes,
    config: &mut Map<String, Value>,
) -> Result<(), GgufError> {
    let (count, size) = sizes.experts.expect("read for this family");
    let used = metadata.size(&metadata.key("expert_used_count"))?;
    config.insert("num_experts".into(), json!(count));
    config.insert("num_experts_per_tok".into(), json!(used));
    config.insert("moe_intermediate_size".into(), json!(size));
    // As llama.cpp, which knows no other models of this family.
    config.insert("norm_topk_prob".into(), json!(true));
    Ok(())
}

fn gemma(
    metadata: &Metadata<'_>,
    sizes: &Sizes,
    config: &mut Map<String, Value>,
) -> Result<(), GgufError> {
    // Files say neither which layers have the window nor, most of them, the base of these:
    // all models of the family have the same.
    let base = metadata.float_or(&metadata.key("rope.freq_base_swa"), 10_000.0)?;
    let kind = |index: usize| if index % 6 == 5 { "full_attention" } else { "sliding_attention" };
    let kinds: Vec<_> = (0..sizes.num_layers).map(kind).collect();
    // The largest, of 62 layers, alone divides by another size than the head's.
    let scalar = match sizes.num_layers {
        62 => sizes.hidden_size / sizes.num_heads,
        _ => sizes.head_dim,
    };
    config.insert("rope_local_base_freq".into(), json!(base));
    config.insert("layer_types".into(), json!(kinds));
    let window = metadata.size(&metadata.key("attention.sliding_window"))?;
    config.insert("sliding_window".into(), json!(window));
    config.insert("query_pre_attn_scalar".into(), json!(scalar));
    config.insert("attention_bias".into(), json!(false));
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        let cap = metadata.float_or(&metadata.key(field), 0.0)?;
        config.insert(field.into(), if cap == 0.0 { Value::Null } else { json!(cap) });
    }
    Ok(())
}
