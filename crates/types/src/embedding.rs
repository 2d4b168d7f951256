//! What a model that makes embeddings tells of them.

/// The embeddings that a model makes of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingInfo {
    /// Numbers of an embedding.
    pub dimensions: usize,
    /// Whether its first numbers are an embedding too, and how many of them: any if the list
    /// is empty.
    pub matryoshka: Option<Vec<usize>>,
    /// Whether embeddings have length 1.
    pub is_normalized: bool,
    /// Tokens of a text, those that the tokenizer adds included.
    pub max_tokens: usize,
}
