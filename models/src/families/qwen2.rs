//! Qwen2 and Qwen2.5: a Llama whose projections to Q, K and V alone have biases, and whose
//! later layers may see a window only.

use super::llama::Llama;
use crate::{
    ModelError,
    config::{Decoder, Defaults, Fields, KvHeads, windows},
    layers::AttentionConfig,
    registry::Family,
    source::{Scope, Source, Weights},
};

/// `Qwen2Config`'s fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The sizes.
    pub base: Decoder,
    /// For each layer the positions that a query sees, if not all.
    pub windows: Vec<Option<usize>>,
}

impl Config {
    fn attention(&self, index: usize) -> AttentionConfig {
        AttentionConfig {
            qkv_bias: true,
            sliding_window: self.windows[index],
            ..AttentionConfig::of(&self.base)
        }
    }
}

pub(crate) struct Qwen2ForCausalLM;

impl Family for Qwen2ForCausalLM {
    const ARCHITECTURE: &'static str = "Qwen2ForCausalLM";
    const MODEL_TYPE: &'static str = "qwen2";
    const MODELS: &'static str = "Qwen2, Qwen2.5";
    type Config = Config;
    type Model<W: Weights> = Llama<W>;

    fn read(config: &Fields<'_>) -> Result<Config, ModelError> {
        let defaults = Defaults {
            vocab_size: 151_936,
            intermediate_size: 22_016,
            max_position_embeddings: 32_768,
            num_key_value_heads: KvHeads::AbsentNullAsQ(32),
            ..Defaults::LLAMA
        };
        let base = Decoder::read(config, &defaults)?;
        Ok(Config { windows: windows(config, base.num_hidden_layers)?, base })
    }

    fn max_positions(config: &Config) -> usize {
        config.base.max_position_embeddings
    }

    fn build<S: Source>(config: &Config, s: &mut Scope<'_, S>) -> Result<Llama<S::W>, ModelError> {
        Llama::build(&config.base, |index| config.attention(index), false, s)
    }
}
