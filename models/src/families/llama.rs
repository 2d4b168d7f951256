//! Llama 2 and 3, SmolLM2, and what else is saved as Llama.

use sconce_kernels::{Backend, KernelError};

use crate::{
    Buf, Model, ModelError, Pass,
    config::{Decoder, Defaults, Fields},
    layers::{Activation, Attention, AttentionConfig, Embedding, GatedMlp, LmHead, Norm, RmsNorm},
    registry::Family,
    source::{Scope, Source, Weights},
};

/// `LlamaConfig`'s fields, and the window that `MistralConfig` has beside them.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The sizes.
    pub base: Decoder,
    /// Whether Q, K, V and the output projection have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Positions that a query sees, if not all.
    pub sliding_window: Option<usize>,
}

impl Config {
    /// What [`Llama::build`] makes of it.
    pub(crate) fn build<S: Source>(&self, s: &mut Scope<'_, S>) -> Result<Llama<S::W>, ModelError> {
        Llama::build(&self.base, |_| self.attention(), self.mlp_bias, s)
    }

    fn attention(&self) -> AttentionConfig {
        AttentionConfig {
            qkv_bias: self.attention_bias,
            o_bias: self.attention_bias,
            sliding_window: self.sliding_window,
            ..AttentionConfig::of(&self.base)
        }
    }
}

/// A Llama, or a family that differs from it in its config.json and in how its layers
/// attend; its fields follow the forward pass, with the checkpoint's names.
pub(crate) struct Llama<W: Weights> {
    embed_tokens: Embedding<W>,
    layers: Vec<Layer<W>>,
    norm: RmsNorm<W>,
    lm_head: LmHead<W>,
}

struct Layer<W: Weights> {
    input_layernorm: RmsNorm<W>,
    self_attn: Attention<W>,
    post_attention_layernorm: RmsNorm<W>,
    mlp: GatedMlp<W>,
}

impl<W: Weights> Llama<W> {
    /// Asks for every weight. `attention` says how a layer attends, by its index.
    pub(crate) fn build<S: Source<W = W>>(
        base: &Decoder,
        attention: impl Fn(usize) -> AttentionConfig,
        mlp_bias: bool,
        s: &mut Scope<'_, S>,
    ) -> Result<Self, ModelError> {
        let &Decoder { vocab_size, hidden_size, intermediate_size, rms_norm_eps, .. } = base;
        let norm = |s: &mut Scope<'_, S>, name| {
            RmsNorm::load(s, name, hidden_size, Norm::Plain(rms_norm_eps))
        };
        let tied = base.tie_word_embeddings;
        let (embed_tokens, lm_head) = s.vocabulary(tied, "model.embed_tokens", "lm_head");
        Ok(Self {
            embed_tokens: Embedding::load(s, embed_tokens, vocab_size, hidden_size)?,
            layers: s.at("model").layers(base.num_hidden_layers, |s, index| {
                Ok(Layer {
                    input_layernorm: norm(s, "input_layernorm")?,
                    self_attn: Attention::load(&mut s.at("self_attn"), &attention(index))?,
                    post_attention_layernorm: norm(s, "post_attention_layernorm")?,
                    mlp: GatedMlp::load(
                        &mut s.at("mlp"),
                        (hidden_size, intermediate_size),
                        Activation::Silu,
                        mlp_bias,
                    )?,
                })
            })?,
            norm: norm(s, "model.norm")?,
            lm_head: LmHead::load(s, lm_head, vocab_size, hidden_size)?,
        })
    }
}

impl<B: Backend> Model<B> for Llama<B> {
    fn forward(&self, p: &mut Pass<'_, B>) -> Result<Buf, KernelError> {
        let mut h = self.embed_tokens.forward(p)?;
        for layer in &self.layers {
            layer.self_attn.add_to(p, &layer.input_layernorm, &mut h)?;
            layer.mlp.add_to(p, &layer.post_attention_layernorm, &mut h)?;
        }
        Ok(h)
    }

    fn head(&self, p: &mut Pass<'_, B>, hidden: Buf) -> Result<Buf, KernelError> {
        let x = self.norm.forward(p, &hidden)?;
        p.ws.free(hidden);
        self.lm_head.forward(p, x, &self.embed_tokens)
    }
}

pub(crate) struct LlamaForCausalLM;

impl Family for LlamaForCausalLM {
    const ARCHITECTURE: &'static str = "LlamaForCausalLM";
    const MODEL_TYPE: &'static str = "llama";
    const MODELS: &'static str =
        "Llama 2 and 3.x, SmolLM2, TinyLlama, Yi; Mistral 7B out of GGUF files";
    type Config = Config;
    type Model<W: Weights> = Llama<W>;

    fn read(config: &Fields<'_>) -> Result<Config, ModelError> {
        Ok(Config {
            base: Decoder::read(config, &Defaults::LLAMA)?,
            attention_bias: config.flag("attention_bias", false)?,
            mlp_bias: config.flag("mlp_bias", false)?,
            sliding_window: None,
        })
    }

    fn max_positions(config: &Config) -> usize {
        config.base.max_position_embeddings
    }

    fn build<S: Source>(config: &Config, s: &mut Scope<'_, S>) -> Result<Llama<S::W>, ModelError> {
        config.build(s)
    }
}
