//! Mistral: a Llama without biases whose queries may see a window only.

use super::llama::{Config, Llama};
use crate::{
    ModelError,
    config::{Decoder, Defaults, Fields, KvHeads, MAX_SIZE, refuse},
    registry::Family,
    source::{Scope, Source, Weights},
};

pub(crate) struct MistralForCausalLM;

impl Family for MistralForCausalLM {
    const ARCHITECTURE: &'static str = "MistralForCausalLM";
    const MODEL_TYPE: &'static str = "mistral";
    const MODELS: &'static str = "Mistral 7B";
    type Config = Config;
    type Model<W: Weights> = Llama<W>;

    fn read(config: &Fields<'_>) -> Result<Config, ModelError> {
        // transformers takes such a Mistral for a Ministral, whose layers differ.
        if config.get("layer_types").is_some() {
            let accepted = "absent: all layers have the same attention".to_owned();
            return Err(refuse("layer_types", &"present", accepted));
        }
        let defaults = Defaults {
            intermediate_size: 14_336,
            max_position_embeddings: 131_072,
            num_key_value_heads: KvHeads::Absent(8),
            ..Defaults::LLAMA
        };
        Ok(Config {
            base: Decoder::read(config, &defaults)?,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: match config.get("sliding_window") {
                None => Some(4096),
                Some(_) => config.nullable_size("sliding_window", MAX_SIZE)?,
            },
        })
    }

    fn max_positions(config: &Config) -> usize {
        config.base.max_position_embeddings
    }

    fn build<S: Source>(config: &Config, s: &mut Scope<'_, S>) -> Result<Llama<S::W>, ModelError> {
        config.build(s)
    }
}
