//! config.json, read and checked.

mod fields;
mod rope;

use std::path::Path;

use fields::{Fields, positive, refuse};
use serde_json::{Map, Value};

use crate::{ModelError, json};

/// No size in a config.json may be larger; real ones are far below.
const MAX_SIZE: usize = 1 << 24;
/// The table of rotary embeddings grows with the context, and no tensor of the
/// checkpoint tells whether the figure is true.
const MAX_POSITIONS: usize = 1 << 22;
/// Every layer's names are written down before the checkpoint is looked at.
const MAX_LAYERS: usize = 1 << 10;

/// What a model of the Llama family is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture's name.
    pub architecture: String,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Elements between the feed-forward layer's projections.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Heads of Q.
    pub num_heads: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Tokens of context.
    pub max_position_embeddings: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f32,
    /// The base of RoPE's frequencies.
    pub rope_theta: f64,
    /// How the frequencies are scaled for long contexts.
    pub rope_scaling: RopeScaling,
    /// Whether lm_head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether Q, K, V and the output projection have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Positions that a query sees, if not all.
    pub sliding_window: Option<usize>,
}

/// Scalings of RoPE's frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided by the factor (position interpolation, Chen et al., 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// The factor for low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high ones.
        high_freq_factor: f64,
        /// The context the model was first trained with.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., 2023).
    Yarn {
        /// The factor.
        factor: f64,
        /// The context the model was first trained with.
        original_max_position_embeddings: usize,
        /// Rotations over the context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// Whether the borders of the ramp are rounded to whole dimensions.
        truncate: bool,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
}

/// What a config.json is read as. Each family has the fields and defaults of its config
/// class in transformers; what the class does not have is not read, whatever it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// `LlamaConfig`
    Llama,
    /// `MistralConfig`
    Mistral,
}

impl Family {
    const ALL: [Self; 2] = [Self::Llama, Self::Mistral];

    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
        }
    }

    fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
        }
    }

    /// The family that `model_type` and `architectures` agree on. transformers goes by the
    /// one, other engines by the other, so a contradiction is refused.
    fn of(config: &Fields<'_>) -> Result<Self, ModelError> {
        let named = config.strings("architectures")?;
        let model_type = config.nullable_string("model_type")?;
        let known = |family: &Self| named.contains(&family.architecture());
        let architectures = || format!("one of {}", list(Self::architecture));
        let shown = || if named.is_empty() { "absent".to_owned() } else { named.join(", ") };
        if !named.is_empty() && !Self::ALL.iter().any(known) {
            return Err(refuse("architectures", &shown(), architectures()));
        }
        let Some(model_type) = model_type else {
            let mut candidates = Self::ALL.into_iter().filter(known);
            return match (candidates.next(), candidates.next()) {
                (Some(family), None) => Ok(family),
                _ => Err(refuse("architectures", &shown(), architectures())),
            };
        };
        let family = Self::ALL.into_iter().find(|family| family.model_type() == model_type);
        let family = family.ok_or_else(|| {
            let accepted = format!("one of {}", list(Self::model_type));
            refuse("model_type", &model_type, accepted)
        })?;
        if !named.is_empty() && !known(&family) {
            let accepted = format!("{}, as model_type is {model_type}", family.architecture());
            return Err(refuse("architectures", &shown(), accepted));
        }
        Ok(family)
    }
}

fn list(name: impl Fn(Family) -> &'static str) -> String {
    Family::ALL.map(name).join(", ")
}

impl ModelConfig {
    /// Reads and checks a directory's config.json: its fields as transformers' config class
    /// of the family reads them, with that class's defaults.
    ///
    /// # Errors
    /// An unreadable file, or a field that cannot be served, by name.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        let config: Map<String, Value> = json::read(&dir.join("config.json"))?;
        Self::check(&Fields::new("", &config))
    }

    fn check(config: &Fields<'_>) -> Result<Self, ModelError> {
        let family = Family::of(config)?;
        refuse_other_kinds(config, family)?;
        // The same in both, in this order: Llama's default, Mistral's.
        let size = |field, llama, mistral, limit| {
            let default = if family == Family::Llama { llama } else { mistral };
            config.size(field, default, limit)
        };
        let vocab_size = size("vocab_size", 32_000, 32_000, MAX_SIZE)?;
        let hidden_size = size("hidden_size", 4096, 4096, MAX_SIZE)?;
        let intermediate_size = size("intermediate_size", 11_008, 14_336, MAX_SIZE)?;
        let num_layers = size("num_hidden_layers", 32, 32, MAX_LAYERS)?;
        let num_heads = size("num_attention_heads", 32, 32, MAX_SIZE)?;
        let max_position_embeddings =
            size("max_position_embeddings", 2048, 131_072, MAX_POSITIONS)?;
        let num_kv_heads = match family {
            Family::Llama => {
                config.nullable_size("num_key_value_heads", MAX_SIZE)?.unwrap_or(num_heads)
            }
            Family::Mistral => config.size("num_key_value_heads", 8, MAX_SIZE)?,
        };
        let own_head_dim = config.nullable_size("head_dim", MAX_SIZE)?;
        if own_head_dim.is_none() && !hidden_size.is_multiple_of(num_heads) {
            let accepted = format!("a divisor of hidden_size, {hidden_size}");
            return Err(refuse("num_attention_heads", &num_heads, accepted));
        }
        let head_dim = own_head_dim.unwrap_or(hidden_size / num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            let accepted = format!("a divisor of num_attention_heads, {num_heads}");
            return Err(refuse("num_key_value_heads", &num_kv_heads, accepted));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(16) {
            return Err(refuse("head_dim", &head_dim, "a multiple of 16".to_owned()));
        }
        if !intermediate_size.is_multiple_of(16) {
            let accepted = "a multiple of 16".to_owned();
            return Err(refuse("intermediate_size", &intermediate_size, accepted));
        }
        let act = config.string("hidden_act", "silu")?;
        if !matches!(act, "silu" | "swish") {
            return Err(refuse("hidden_act", &act, "\"silu\"".to_owned()));
        }
        let rms_norm_eps = positive("rms_norm_eps", config.number("rms_norm_eps", 1e-6)?)? as f32;
        positive("rms_norm_eps", f64::from(rms_norm_eps))?;
        let (rope_theta, rope_scaling) = rope::read(config, max_position_embeddings)?;
        let (attention_bias, mlp_bias, sliding_window) = match family {
            Family::Llama => {
                (config.flag("attention_bias", false)?, config.flag("mlp_bias", false)?, None)
            }
            Family::Mistral => {
                let window = match config.get("sliding_window") {
                    None => Some(4096),
                    Some(_) => config.nullable_size("sliding_window", MAX_SIZE)?,
                };
                (false, false, window)
            }
        };
        Ok(Self {
            architecture: family.architecture().to_owned(),
            vocab_size,
            hidden_size,
            intermediate_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: config.flag("tie_word_embeddings", false)?,
            attention_bias,
            mlp_bias,
            sliding_window,
        })
    }
}

/// Fields whose mere presence makes another kind of model of it.
fn refuse_other_kinds(config: &Fields<'_>, family: Family) -> Result<(), ModelError> {
    for field in ["quantization_config", "compression_config"] {
        if let Some(quantization) = config.given(field) {
            let method = quantization["quant_method"].as_str().unwrap_or("present");
            let accepted = "absent: quantized checkpoints are not read, only f32, bf16 and f16 \
                            weights (--quantization int8 quantizes those while loading)";
            return Err(refuse(field, &fields::clip(method), accepted.to_owned()));
        }
    }
    let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    if config.given("per_layer_config").is_some_and(|value| !empty(value)) {
        let accepted = "absent: all layers have the same sizes".to_owned();
        return Err(refuse("per_layer_config", &"present", accepted));
    }
    // transformers takes such a Mistral for a Ministral, whose layers differ.
    if family == Family::Mistral && config.get("layer_types").is_some() {
        let accepted = "absent: all layers have the same attention".to_owned();
        return Err(refuse("layer_types", &"present", accepted));
    }
    Ok(())
}
