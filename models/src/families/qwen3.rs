//! Qwen3, dense: a Llama that norms each head of Q and K, and whose later layers may see a
//! window only.

use super::llama::Llama;
use crate::{
    ModelError,
    config::{Decoder, Defaults, Fields, KvHeads, windows},
    layers::{AttentionConfig, Norm},
    registry::Family,
    source::{Scope, Source, Weights},
};

/// `Qwen3Config`'s fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The sizes.
    pub base: Decoder,
    /// Whether Q, K, V and the output projection have biases.
    pub attention_bias: bool,
    /// For each layer the positions that a query sees, if not all.
    pub windows: Vec<Option<usize>>,
}

impl Config {
    fn attention(&self, index: usize) -> AttentionConfig {
        AttentionConfig {
            qkv_bias: self.attention_bias,
            o_bias: self.attention_bias,
            qk_norm: Some(Norm::Plain(self.base.rms_norm_eps)),
            sliding_window: self.windows[index],
            ..AttentionConfig::of(&self.base)
        }
    }
}

pub(crate) struct Qwen3ForCausalLM;

impl Family for Qwen3ForCausalLM {
    const ARCHITECTURE: &'static str = "Qwen3ForCausalLM";
    const MODEL_TYPE: &'static str = "qwen3";
    const MODELS: &'static str = "Qwen3, dense";
    type Config = Config;
    type Model<W: Weights> = Llama<W>;

    fn read(config: &Fields<'_>) -> Result<Config, ModelError> {
        let defaults = Defaults {
            vocab_size: 151_936,
            intermediate_size: 22_016,
            max_position_embeddings: 32_768,
            num_key_value_heads: KvHeads::AbsentNullAsQ(32),
            head_dim: Some(128),
            ..Defaults::LLAMA
        };
        let base = Decoder::read(config, &defaults)?;
        Ok(Config {
            attention_bias: config.flag("attention_bias", false)?,
            windows: windows(config, base.num_hidden_layers)?,
            base,
        })
    }

    fn max_positions(config: &Config) -> usize {
        config.base.max_position_embeddings
    }

    fn build<S: Source>(config: &Config, s: &mut Scope<'_, S>) -> Result<Llama<S::W>, ModelError> {
        Llama::build(&config.base, |index| config.attention(index), false, s)
    }
}
