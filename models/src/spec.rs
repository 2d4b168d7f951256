//! What a model declares of itself while it is built.

use sconce_kernels::AttentionParams;

/// What the runner sizes its memory by. It is not written by hand: layers declare their
/// part as they ask for their weights, so the two cannot disagree.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelSpec {
    /// The attention of each layer that keeps keys and values; its index is the layer's in
    /// the cache.
    pub cache_layers: Vec<AttentionParams>,
    /// Columns of the hidden states.
    pub hidden_size: usize,
    /// Columns of the widest projection between them, the output over the vocabulary apart.
    pub widest_linear: usize,
    /// Columns of the logits.
    pub vocab_size: usize,
}
