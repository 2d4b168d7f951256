//! The fields that decoders have in common.

use super::{
    Fields, MAX_LAYERS, MAX_POSITIONS, MAX_SIZE, ReadRope,
    fields::{positive, refuse},
    rope,
};
use crate::{ModelError, RopeParams};

/// The sizes of a decoder with gated feed-forward layers, by config.json's names.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Elements of a hidden state.
    pub hidden_size: usize,
    /// Elements between the feed-forward layer's projections.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Heads of Q.
    pub num_attention_heads: usize,
    /// Heads of K and V.
    pub num_key_value_heads: usize,
    /// Tokens of context.
    pub max_position_embeddings: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f32,
    /// Rotary embeddings, and with them the elements of a head; of a family with several,
    /// those of the layers that see all of the context.
    pub rope: RopeParams,
    /// Whether lm_head is the embedding.
    pub tie_word_embeddings: bool,
}

/// What a config class takes for fields that are absent, and where it has some of them.
pub(crate) struct Defaults {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: KvHeads,
    /// `None`: hidden_size over the heads, where the field is null too.
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: usize,
    pub(crate) tie_word_embeddings: bool,
    /// The field of the gates' activation, and the names that are one and the same; the
    /// first is the default.
    pub(crate) activation: (&'static str, &'static [&'static str]),
    pub(crate) rope: ReadRope,
}

impl Defaults {
    /// `LlamaConfig`'s, which others begin with.
    pub(crate) const LLAMA: Self = Self {
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: KvHeads::AsQ,
        head_dim: None,
        max_position_embeddings: 2048,
        tie_word_embeddings: false,
        activation: ("hidden_act", &["silu", "swish"]),
        rope: rope::read,
    };
}

/// `num_key_value_heads` where it is absent or null.
pub(crate) enum KvHeads {
    /// As many as heads of Q.
    AsQ,
    /// So many where it is absent; null is refused.
    Absent(usize),
    /// So many where it is absent, as many as heads of Q where it is null.
    AbsentNullAsQ(usize),
}

impl Decoder {
    /// Reads and checks the fields.
    ///
    /// # Errors
    /// A field that cannot be served, by name.
    pub(crate) fn read(config: &Fields<'_>, defaults: &Defaults) -> Result<Self, ModelError> {
        let vocab_size = config.size("vocab_size", defaults.vocab_size, MAX_SIZE)?;
        let hidden_size = config.size("hidden_size", defaults.hidden_size, MAX_SIZE)?;
        let intermediate_size =
            config.size("intermediate_size", defaults.intermediate_size, MAX_SIZE)?;
        let num_hidden_layers =
            config.size("num_hidden_layers", defaults.num_hidden_layers, MAX_LAYERS)?;
        let num_attention_heads =
            config.size("num_attention_heads", defaults.num_attention_heads, MAX_SIZE)?;
        let max_position_embeddings = config.size(
            "max_position_embeddings",
            defaults.max_position_embeddings,
            MAX_POSITIONS,
        )?;
        let kv_heads = "num_key_value_heads";
        let num_key_value_heads = match defaults.num_key_value_heads {
            KvHeads::AbsentNullAsQ(default) if config.get(kv_heads).is_none() => default,
            KvHeads::Absent(default) => config.size(kv_heads, default, MAX_SIZE)?,
            KvHeads::AsQ | KvHeads::AbsentNullAsQ(_) => {
                config.nullable_size(kv_heads, MAX_SIZE)?.unwrap_or(num_attention_heads)
            }
        };
        let own_head_dim = match defaults.head_dim {
            Some(default) => Some(config.size("head_dim", default, MAX_SIZE)?),
            None => config.nullable_size("head_dim", MAX_SIZE)?,
        };
        if own_head_dim.is_none() && !hidden_size.is_multiple_of(num_attention_heads) {
            let accepted = format!("a divisor of hidden_size, {hidden_size}");
            return Err(refuse("num_attention_heads", &num_attention_heads, accepted));
        }
        let head_dim = own_head_dim.unwrap_or(hidden_size / num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            let accepted = format!("a divisor of num_attention_heads, {num_attention_heads}");
            return Err(refuse("num_key_value_heads", &num_key_value_heads, accepted));
        }
        if head_dim == 0 || !head_dim.is_multiple_of(16) {
            return Err(refuse("head_dim", &head_dim, "a multiple of 16".to_owned()));
        }
        if !intermediate_size.is_multiple_of(16) {
            let accepted = "a multiple of 16".to_owned();
            return Err(refuse("intermediate_size", &intermediate_size, accepted));
        }
        let (field, known) = defaults.activation;
        let act = config.string(field, known[0])?;
        if !known.contains(&act) {
            return Err(refuse(field, &act, format!("{:?}", known[0])));
        }
        let rms_norm_eps = positive("rms_norm_eps", config.number("rms_norm_eps", 1e-6)?)? as f32;
        positive("rms_norm_eps", f64::from(rms_norm_eps))?;
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            max_position_embeddings,
            rms_norm_eps,
            rope: (defaults.rope)(config, head_dim, max_position_embeddings)?,
            tie_word_embeddings: config
                .flag("tie_word_embeddings", defaults.tie_word_embeddings)?,
        })
    }
}
