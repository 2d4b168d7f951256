//! BERT (Devlin et al., 2019) as an encoder of texts: MiniLM, BGE, E5, GTE and their like.

use sconce_kernels::KernelError;

use crate::{
    Buf, Encoder, EncoderBackend, ModelError, Pass,
    config::{Fields, MAX_LAYERS, MAX_POSITIONS, MAX_SIZE, positive, refuse},
    layers::{AddedTable, Embedding, FullAttention, GeluMlp, LayerNorm},
    source::{Scope, Source, Weights},
};

/// The class in config.json's `architectures`.
pub(crate) const ARCHITECTURE: &str = "BertModel";
/// config.json's `model_type`.
pub(crate) const MODEL_TYPE: &str = "bert";

/// `BertConfig`'s fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Elements between the feed-forward layer's projections.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Tokens of a text.
    pub max_position_embeddings: usize,
    /// Types of tokens.
    pub type_vocab_size: usize,
    /// LayerNorm's epsilon.
    pub layer_norm_eps: f32,
}

impl Config {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// A field that cannot be served, by name.
    pub(crate) fn read(config: &Fields<'_>) -> Result<Self, ModelError> {
        let size = |field, default, limit| config.size(field, default, limit);
        let hidden_size = size("hidden_size", 768, MAX_SIZE)?;
        let num_attention_heads = size("num_attention_heads", 12, MAX_SIZE)?;
        if !hidden_size.is_multiple_of(num_attention_heads) {
            let accepted = format!("a divisor of hidden_size, {hidden_size}");
            return Err(refuse("num_attention_heads", &num_attention_heads, accepted));
        }
        for (field, served) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
            let given = config.string(field, served)?;
            if given != served {
                return Err(refuse(field, &given, format!("{served:?}")));
            }
        }
        if config.flag("is_decoder", false)? {
            return Err(refuse("is_decoder", &true, "false: it encodes texts".to_owned()));
        }
        let eps = positive("layer_norm_eps", config.number("layer_norm_eps", 1e-12)?)?;
        Ok(Self {
            vocab_size: size("vocab_size", 30_522, MAX_SIZE)?,
            hidden_size,
            intermediate_size: size("intermediate_size", 3072, MAX_SIZE)?,
            num_hidden_layers: size("num_hidden_layers", 12, MAX_LAYERS)?,
            num_attention_heads,
            max_position_embeddings: size("max_position_embeddings", 512, MAX_POSITIONS)?,
            type_vocab_size: size("type_vocab_size", 2, MAX_SIZE)?,
            layer_norm_eps: eps as f32,
        })
    }
}

/// The encoder; its fields follow the forward pass, with the checkpoint's names.
pub(crate) struct Bert<W: Weights> {
    word_embeddings: Embedding<W>,
    token_type_embeddings: AddedTable<W>,
    position_embeddings: AddedTable<W>,
    layer_norm: LayerNorm<W>,
    layers: Vec<Layer<W>>,
}

struct Layer<W: Weights> {
    attention: FullAttention<W>,
    attention_norm: LayerNorm<W>,
    mlp: GeluMlp<W>,
    output_norm: LayerNorm<W>,
}

impl<W: Weights> Bert<W> {
    /// Asks for every weight, which stand below `bert` in checkpoints of its other classes.
    /// The pooler is left: it was trained for what follows it there.
    pub(crate) fn build<S: Source<W = W>>(
        config: &Config,
        s: &mut Scope<'_, S>,
    ) -> Result<Self, ModelError> {
        if s.has("bert.embeddings.word_embeddings.weight") {
            return Self::below(config, &mut s.at("bert"));
        }
        Self::below(config, s)
    }

    fn below<S: Source<W = W>>(config: &Config, s: &mut Scope<'_, S>) -> Result<Self, ModelError> {
        let Config { hidden_size, intermediate_size, layer_norm_eps: eps, .. } = *config;
        s.leave(&["pooler.dense.weight", "pooler.dense.bias"]);
        let e = &mut s.at("embeddings");
        Ok(Self {
            word_embeddings: Embedding::load(e, "word_embeddings", config.vocab_size, hidden_size)?,
            token_type_embeddings: AddedTable::of_types(
                e,
                "token_type_embeddings",
                (config.type_vocab_size, hidden_size),
            )?,
            position_embeddings: AddedTable::of_positions(
                e,
                "position_embeddings",
                (config.max_position_embeddings, hidden_size),
            )?,
            layer_norm: LayerNorm::load(e, "LayerNorm", hidden_size, eps)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| {
                    let s = &mut s.at(&format!("encoder.layer.{index}"));
                    let heads = config.num_attention_heads;
                    Ok(Layer {
                        attention: FullAttention::load(&mut s.at("attention"), heads, hidden_size)?,
                        attention_norm: LayerNorm::load(
                            s,
                            "attention.output.LayerNorm",
                            hidden_size,
                            eps,
                        )?,
                        mlp: GeluMlp::load(s, (hidden_size, intermediate_size))?,
                        output_norm: LayerNorm::load(s, "output.LayerNorm", hidden_size, eps)?,
                    })
                })
                .collect::<Result<_, ModelError>>()?,
        })
    }
}

impl<B: EncoderBackend> Encoder<B> for Bert<B> {
    fn forward(&self, p: &mut Pass<'_, B>) -> Result<Buf, KernelError> {
        let mut h = self.word_embeddings.forward(p)?;
        self.token_type_embeddings.add_to(p, &mut h)?;
        self.position_embeddings.add_to(p, &mut h)?;
        h = self.layer_norm.forward(p, h)?;
        for layer in &self.layers {
            layer.attention.add_to(p, &mut h)?;
            h = layer.attention_norm.forward(p, h)?;
            layer.mlp.add_to(p, &mut h)?;
            h = layer.output_norm.forward(p, h)?;
        }
        Ok(h)
    }
}
