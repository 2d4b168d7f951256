//! Gemma 3, text: norms around both blocks, and layers that see a window between such as see
//! all of the context, each kind with its own rotary embeddings.

use sconce_kernels::{Backend, KernelError};

use crate::{
    Buf, Model, ModelError, Pass, RopeParams,
    config::{
        Decoder, Defaults, Fields, KvHeads, alternating_windows, of_global_layers, of_local_layers,
        positive, refuse,
    },
    layers::{Activation, Attention, AttentionConfig, Embedding, GatedMlp, LmHead, Norm, RmsNorm},
    registry::Family,
    source::{Scope, Source, Weights},
};

/// `Gemma3TextConfig`'s fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The sizes, and the rotary embeddings of layers that see all of the context.
    pub base: Decoder,
    /// The rotary embeddings of layers that see a window.
    pub local_rope: RopeParams,
    /// For each layer the positions that a query sees, if not all.
    pub windows: Vec<Option<usize>>,
    /// Scores are divided by its root.
    pub query_pre_attn_scalar: f64,
    /// Whether Q, K, V and the output projection have biases.
    pub attention_bias: bool,
    /// The cap of logits, if any.
    pub final_logit_softcapping: Option<f32>,
}

impl Config {
    fn norm(&self) -> Norm {
        Norm::PlusOne(self.base.rms_norm_eps)
    }

    fn attention(&self, index: usize) -> AttentionConfig {
        let sliding_window = self.windows[index];
        AttentionConfig {
            qkv_bias: self.attention_bias,
            o_bias: self.attention_bias,
            qk_norm: Some(self.norm()),
            scale: self.query_pre_attn_scalar.powf(-0.5) as f32,
            sliding_window,
            rope: if sliding_window.is_some() { self.local_rope } else { self.base.rope },
            ..AttentionConfig::of(&self.base)
        }
    }
}

/// Its fields follow the forward pass, with the checkpoint's names.
pub(crate) struct Gemma3<W: Weights> {
    embed_tokens: Embedding<W>,
    layers: Vec<Layer<W>>,
    norm: RmsNorm<W>,
    lm_head: LmHead<W>,
}

struct Layer<W: Weights> {
    input_layernorm: RmsNorm<W>,
    self_attn: Attention<W>,
    post_attention_layernorm: RmsNorm<W>,
    pre_feedforward_layernorm: RmsNorm<W>,
    mlp: GatedMlp<W>,
    post_feedforward_layernorm: RmsNorm<W>,
}

impl<B: Backend> Model<B> for Gemma3<B> {
    fn forward(&self, p: &mut Pass<'_, B>) -> Result<Buf, KernelError> {
        let mut h = self.embed_tokens.forward(p)?;
        for layer in &self.layers {
            let x = layer.input_layernorm.forward(p, &h)?;
            let x = layer.self_attn.forward(p, x)?;
            layer.post_attention_layernorm.add_to(p, x, &mut h)?;
            let x = layer.pre_feedforward_layernorm.forward(p, &h)?;
            let x = layer.mlp.forward(p, x)?;
            layer.post_feedforward_layernorm.add_to(p, x, &mut h)?;
        }
        Ok(h)
    }

    fn head(&self, p: &mut Pass<'_, B>, hidden: Buf) -> Result<Buf, KernelError> {
        let x = self.norm.forward(p, &hidden)?;
        p.ws.free(hidden);
        self.lm_head.forward(p, x, &self.embed_tokens)
    }
}

pub(crate) struct Gemma3ForCausalLM;

impl Family for Gemma3ForCausalLM {
    const ARCHITECTURE: &'static str = "Gemma3ForCausalLM";
    const MODEL_TYPE: &'static str = "gemma3_text";
    const MODELS: &'static str = "Gemma 3, text: 270M, 1B";
    type Config = Config;
    type Model<W: Weights> = Gemma3<W>;

    fn read(config: &Fields<'_>) -> Result<Config, ModelError> {
        let defaults = Defaults {
            vocab_size: 262_208,
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: KvHeads::Absent(4),
            head_dim: Some(256),
            max_position_embeddings: 131_072,
            tie_word_embeddings: true,
            activation: ("hidden_activation", &["gelu_pytorch_tanh"]),
            rope: of_global_layers,
        };
        let base = Decoder::read(config, &defaults)?;
        // Models over embeddings; no text comes of them.
        let bidirectional = "use_bidirectional_attention";
        if config.given(bidirectional).is_some() && config.flag(bidirectional, false)? {
            return Err(refuse(bidirectional, &true, "false: text is generated".to_owned()));
        }
        // transformers and others read it and leave it out of their scores.
        if let Some(cap) = config.given("attn_logit_softcapping") {
            let accepted = "null: scores of Gemma 3 are not capped".to_owned();
            return Err(refuse("attn_logit_softcapping", cap, accepted));
        }
        let scalar = "query_pre_attn_scalar";
        let cap = "final_logit_softcapping";
        Ok(Config {
            local_rope: of_local_layers(config, base.rope.head_dim, base.max_position_embeddings)?,
            windows: alternating_windows(config, base.num_hidden_layers)?,
            query_pre_attn_scalar: positive(scalar, config.number(scalar, 256.0)?)?,
            attention_bias: config.flag("attention_bias", false)?,
            final_logit_softcapping: match config.nullable_number(cap)? {
                Some(number) => Some(positive(cap, number)? as f32),
                None => None,
            },
            base,
        })
    }

    fn max_positions(config: &Config) -> usize {
        config.base.max_position_embeddings
    }

    fn build<S: Source>(c: &Config, s: &mut Scope<'_, S>) -> Result<Gemma3<S::W>, ModelError> {
        let &Decoder { vocab_size, hidden_size, intermediate_size, .. } = &c.base;
        let norm = |s: &mut Scope<'_, S>, name| RmsNorm::load(s, name, hidden_size, c.norm());
        let sizes = (hidden_size, intermediate_size);
        let tied = c.base.tie_word_embeddings;
        let (embed_tokens, lm_head) = s.vocabulary(tied, "model.embed_tokens", "lm_head");
        Ok(Gemma3 {
            embed_tokens: Embedding::load(s, embed_tokens, vocab_size, hidden_size)?
                .scaled((hidden_size as f32).sqrt()),
            layers: s.at("model").layers(c.base.num_hidden_layers, |s, index| {
                Ok(Layer {
                    input_layernorm: norm(s, "input_layernorm")?,
                    self_attn: Attention::load(&mut s.at("self_attn"), &c.attention(index))?,
                    post_attention_layernorm: norm(s, "post_attention_layernorm")?,
                    pre_feedforward_layernorm: norm(s, "pre_feedforward_layernorm")?,
                    mlp: GatedMlp::load(&mut s.at("mlp"), sizes, Activation::GeluTanh, false)?,
                    post_feedforward_layernorm: norm(s, "post_feedforward_layernorm")?,
                })
            })?,
            norm: norm(s, "model.norm")?,
            lm_head: LmHead::load(s, lm_head, vocab_size, hidden_size)?
                .capped(c.final_logit_softcapping),
        })
    }
}
