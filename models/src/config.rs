//! config.json, read and checked.

use std::path::Path;

use serde::Deserialize;

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

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<usize>,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The older spelling; some files hold both.
    #[serde(rename = "type")]
    older_type: Option<String>,
    partial_rotary_factor: Option<f64>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
}

impl ModelConfig {
    /// Reads and checks a directory's config.json.
    ///
    /// # Errors
    /// An unreadable file, or a field that cannot be served, by name.
    pub fn read(dir: &Path) -> Result<Self, ModelError> {
        Self::check(json::read(&dir.join("config.json"))?)
    }

    fn check(raw: RawConfig) -> Result<Self, ModelError> {
        let architecture = raw.architectures.first().cloned().unwrap_or_default();
        if !crate::causal_lm::ARCHITECTURES.contains(&architecture.as_str()) {
            let accepted = format!("one of {}", crate::causal_lm::ARCHITECTURES.join(", "));
            return Err(refuse("architectures", &architecture, accepted));
        }
        let num_heads = raw.num_attention_heads;
        let num_kv_heads = raw.num_key_value_heads.unwrap_or(num_heads);
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / num_heads.max(1));
        for (field, size, limit) in [
            ("vocab_size", raw.vocab_size, MAX_SIZE),
            ("hidden_size", raw.hidden_size, MAX_SIZE),
            ("intermediate_size", raw.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", raw.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", num_heads, MAX_SIZE),
            ("num_key_value_heads", num_kv_heads, MAX_SIZE),
            ("head_dim", head_dim, MAX_SIZE),
            ("max_position_embeddings", raw.max_position_embeddings, MAX_POSITIONS),
            ("sliding_window", raw.sliding_window.unwrap_or(1), MAX_SIZE),
        ] {
            if size == 0 || size > limit {
                return Err(refuse(field, &size, format!("from 1 to {limit}")));
            }
        }
        if raw.head_dim.is_none() && !raw.hidden_size.is_multiple_of(num_heads) {
            let accepted = format!("a divisor of hidden_size, {}", raw.hidden_size);
            return Err(refuse("num_attention_heads", &num_heads, accepted));
        }
        if !num_heads.is_multiple_of(num_kv_heads) {
            let accepted = format!("a divisor of num_attention_heads, {num_heads}");
            return Err(refuse("num_key_value_heads", &num_kv_heads, accepted));
        }
        if !head_dim.is_multiple_of(16) {
            return Err(refuse("head_dim", &head_dim, "a multiple of 16".to_owned()));
        }
        if !raw.intermediate_size.is_multiple_of(16) {
            let accepted = "a multiple of 16".to_owned();
            return Err(refuse("intermediate_size", &raw.intermediate_size, accepted));
        }
        let act = raw.hidden_act.as_deref().unwrap_or("silu");
        if act != "silu" {
            return Err(refuse("hidden_act", &act, "\"silu\"".to_owned()));
        }
        if raw.quantization_config.is_some() {
            let accepted = "absent: only f32, bf16 and f16 weights are read".to_owned();
            return Err(refuse("quantization_config", &"present", accepted));
        }
        let rope = raw.rope_parameters.or(raw.rope_scaling);
        let partial = rope.as_ref().and_then(|rope| rope.partial_rotary_factor);
        let partial = partial.or(raw.partial_rotary_factor).unwrap_or(1.0);
        if partial != 1.0 {
            let accepted = "1: whole heads are rotated".to_owned();
            return Err(refuse("partial_rotary_factor", &partial, accepted));
        }
        positive("rms_norm_eps", f64::from(raw.rms_norm_eps))?;
        let rope_theta = rope.as_ref().and_then(|rope| rope.rope_theta).or(raw.rope_theta);
        let rope_theta = positive("rope_theta", rope_theta.unwrap_or(10_000.0))?;
        let rope_scaling = match rope {
            None => RopeScaling::Default,
            Some(rope) => rope.check(raw.max_position_embeddings)?,
        };
        Ok(Self {
            architecture,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_layers: raw.num_hidden_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            max_position_embeddings: raw.max_position_embeddings,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: raw.tie_word_embeddings,
            attention_bias: raw.attention_bias,
            mlp_bias: raw.mlp_bias,
            sliding_window: raw.sliding_window,
        })
    }
}

impl RawRope {
    fn check(self, max_position_embeddings: usize) -> Result<RopeScaling, ModelError> {
        let kind = self.rope_type.as_deref().or(self.older_type.as_deref());
        let kind = kind.unwrap_or("default");
        let factor = || positive("rope_scaling.factor", self.factor.unwrap_or(0.0));
        let original = self.original_max_position_embeddings.unwrap_or(max_position_embeddings);
        if original == 0 || original > MAX_SIZE {
            let field = "rope_scaling.original_max_position_embeddings";
            return Err(refuse(field, &original, format!("from 1 to {MAX_SIZE}")));
        }
        match kind {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
            "llama3" => {
                let number = |field, value: Option<f64>| positive(field, value.unwrap_or(0.0));
                let low = number("rope_scaling.low_freq_factor", self.low_freq_factor)?;
                let high = number("rope_scaling.high_freq_factor", self.high_freq_factor)?;
                if high <= low {
                    let accepted = format!("above low_freq_factor, {low}");
                    return Err(refuse("rope_scaling.high_freq_factor", &high, accepted));
                }
                Ok(RopeScaling::Llama3 {
                    factor: factor()?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: original,
                })
            }
            "yarn" => {
                let factor = match self.factor {
                    Some(_) => factor()?,
                    None => max_position_embeddings as f64 / original as f64,
                };
                let attention_factor = self.attention_factor.unwrap_or_else(|| {
                    let scale = |mscale: f64| {
                        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
                    };
                    match (self.mscale, self.mscale_all_dim) {
                        (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                            scale(mscale) / scale(all)
                        }
                        _ => scale(1.0),
                    }
                });
                Ok(RopeScaling::Yarn {
                    factor,
                    original_max_position_embeddings: original,
                    beta_fast: positive("rope_scaling.beta_fast", self.beta_fast.unwrap_or(32.0))?,
                    beta_slow: positive("rope_scaling.beta_slow", self.beta_slow.unwrap_or(1.0))?,
                    truncate: self.truncate.unwrap_or(true),
                    attention_factor: positive("rope_scaling.attention_factor", attention_factor)?,
                })
            }
            other => {
                let accepted = "one of default, linear, llama3, yarn".to_owned();
                Err(refuse("rope_scaling.rope_type", &other, accepted))
            }
        }
    }
}

fn positive(field: &'static str, value: f64) -> Result<f64, ModelError> {
    if value > 0.0 && value.is_finite() {
        return Ok(value);
    }
    Err(refuse(field, &value, "a number above 0".to_owned()))
}

fn refuse(field: &'static str, value: &dyn std::fmt::Display, accepted: String) -> ModelError {
    ModelError::Config { field, value: value.to_string(), accepted }
}
