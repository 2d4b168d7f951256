//! Qwen3-MoE: a Qwen3 most of whose feed-forward layers are experts.

use sconce_kernels::{Backend, KernelError};

use crate::{
    Buf, Model, ModelError, Pass,
    config::{Decoder, Defaults, Fields, KvHeads, Mixture, optional_window},
    layers::{
        Activation, Attention, AttentionConfig, Embedding, Experts, ExpertsConfig, GatedMlp,
        LmHead, Norm, RmsNorm,
    },
    registry::Family,
    source::{Scope, Source, Weights},
};

/// `Qwen3MoeConfig`'s fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The sizes; `intermediate_size` is that of layers without experts.
    pub base: Decoder,
    /// Whether Q, K, V and the output projection have biases.
    pub attention_bias: bool,
    /// Positions that a query sees, if not all: the same in all layers.
    pub sliding_window: Option<usize>,
    /// The experts, if there are any.
    pub mixture: Option<Mixture>,
}

impl Config {
    fn attention(&self) -> AttentionConfig {
        AttentionConfig {
            qkv_bias: self.attention_bias,
            o_bias: self.attention_bias,
            qk_norm: Some(Norm::Plain(self.base.rms_norm_eps)),
            sliding_window: self.sliding_window,
            ..AttentionConfig::of(&self.base)
        }
    }

    /// A layer's experts, if it has them.
    fn experts(&self, layer: usize) -> Option<ExpertsConfig> {
        let mixture = self.mixture.as_ref().filter(|mixture| mixture.is_sparse(layer))?;
        Some(ExpertsConfig {
            hidden_size: self.base.hidden_size,
            intermediate_size: mixture.moe_intermediate_size,
            routing: mixture.routing,
        })
    }
}

pub(crate) struct Qwen3Moe<W: Weights> {
    embed_tokens: Embedding<W>,
    layers: Vec<Layer<W>>,
    norm: RmsNorm<W>,
    lm_head: LmHead<W>,
}

struct Layer<W: Weights> {
    input_layernorm: RmsNorm<W>,
    self_attn: Attention<W>,
    post_attention_layernorm: RmsNorm<W>,
    mlp: Mlp<W>,
}

enum Mlp<W: Weights> {
    Dense(GatedMlp<W>),
    Sparse(Experts<W>),
}

impl<W: Weights> Mlp<W> {
    fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        config: &Config,
        layer: usize,
    ) -> Result<Self, ModelError> {
        let Decoder { hidden_size, intermediate_size, .. } = config.base;
        Ok(match config.experts(layer) {
            Some(experts) => Self::Sparse(Experts::load(s, experts)?),
            None => Self::Dense(GatedMlp::load(
                s,
                (hidden_size, intermediate_size),
                Activation::Silu,
                false,
            )?),
        })
    }
}

impl<B: Backend> Model<B> for Qwen3Moe<B> {
    fn forward(&self, p: &mut Pass<'_, B>) -> Result<Buf, KernelError> {
        let mut h = self.embed_tokens.forward(p)?;
        for layer in &self.layers {
            layer.self_attn.add_to(p, &layer.input_layernorm, &mut h)?;
            let norm = &layer.post_attention_layernorm;
            match &layer.mlp {
                Mlp::Dense(mlp) => mlp.add_to(p, norm, &mut h)?,
                Mlp::Sparse(experts) => {
                    let x = norm.forward(p, &h)?;
                    experts.add_to(p, x, &mut h)?;
                }
            }
        }
        Ok(h)
    }

    fn head(&self, p: &mut Pass<'_, B>, hidden: Buf) -> Result<Buf, KernelError> {
        let x = self.norm.forward(p, &hidden)?;
        p.ws.free(hidden);
        self.lm_head.forward(p, x, &self.embed_tokens)
    }
}

pub(crate) struct Qwen3MoeForCausalLM;

impl Family for Qwen3MoeForCausalLM {
    const ARCHITECTURE: &'static str = "Qwen3MoeForCausalLM";
    const MODEL_TYPE: &'static str = "qwen3_moe";
    const MODELS: &'static str = "Qwen3-30B-A3B, Qwen3-235B-A22B";
    type Config = Config;
    type Model<W: Weights> = Qwen3Moe<W>;

    fn read(config: &Fields<'_>) -> Result<Config, ModelError> {
        let defaults = Defaults {
            vocab_size: 151_936,
            hidden_size: 2048,
            intermediate_size: 6144,
            num_hidden_layers: 24,
            num_key_value_heads: KvHeads::Absent(4),
            max_position_embeddings: 32_768,
            ..Defaults::LLAMA
        };
        let base = Decoder::read(config, &defaults)?;
        Ok(Config {
            attention_bias: config.flag("attention_bias", false)?,
            sliding_window: optional_window(config)?,
            mixture: Mixture::read(config, &base)?,
            base,
        })
    }

    fn max_positions(config: &Config) -> usize {
        config.base.max_position_embeddings
    }

    fn build<S: Source>(
        config: &Config,
        s: &mut Scope<'_, S>,
    ) -> Result<Qwen3Moe<S::W>, ModelError> {
        let &Decoder { vocab_size, hidden_size, rms_norm_eps, .. } = &config.base;
        let norm = |s: &mut Scope<'_, S>, name| {
            RmsNorm::load(s, name, hidden_size, Norm::Plain(rms_norm_eps))
        };
        let tied = config.base.tie_word_embeddings;
        let (embed_tokens, lm_head) = s.vocabulary(tied, "model.embed_tokens", "lm_head");
        Ok(Qwen3Moe {
            embed_tokens: Embedding::load(s, embed_tokens, vocab_size, hidden_size)?,
            layers: s.at("model").layers(config.base.num_hidden_layers, |s, index| {
                Ok(Layer {
                    input_layernorm: norm(s, "input_layernorm")?,
                    self_attn: Attention::load(&mut s.at("self_attn"), &config.attention())?,
                    post_attention_layernorm: norm(s, "post_attention_layernorm")?,
                    mlp: Mlp::load(&mut s.at("mlp"), config, index)?,
                })
            })?,
            norm: norm(s, "model.norm")?,
            lm_head: LmHead::load(s, lm_head, vocab_size, hidden_size)?,
        })
    }
}
