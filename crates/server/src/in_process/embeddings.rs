//! Embeddings of the program's texts.

use sconce_types::{EmbeddingInfo, TenantId};

use super::Refusal;
use crate::{
    caller::TenantAuth,
    generation::{
        encoder::{self, Cut, MAX_INPUTS},
        generator::Generator,
        inputs::Inputs,
    },
};

/// How embeddings are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbeddingOptions {
    /// Numbers of an embedding: fewer than the model's only where its embeddings can be cut,
    /// which are then scaled to length 1 again.
    pub dimensions: Option<usize>,
    /// Whether a text that is too long is cut at its end; it is refused if not.
    pub truncate: bool,
}

impl Generator {
    /// The embeddings of texts, in their order, of a model that makes such.
    ///
    /// # Errors
    /// A text that is too long, dimensions that the model does not have, or a request that
    /// failed.
    pub async fn embed(
        &self,
        info: &EmbeddingInfo,
        texts: Vec<String>,
        options: EmbeddingOptions,
    ) -> Result<Vec<Vec<f32>>, Refusal> {
        let EmbeddingOptions { dimensions, truncate } = options;
        let dimensions = dimensions.map(|asked| encoder::check_dimensions(info, asked));
        let dimensions = dimensions.transpose()?.filter(|&asked| asked < info.dimensions);
        let cut = Cut::new(info, truncate.then_some(-1), None)?;
        let caller = TenantAuth::in_process(TenantId(0), self.sole.clone());
        let mut embeddings = Vec::with_capacity(texts.len());
        for texts in texts.chunks(MAX_INPUTS) {
            let inputs = encoder::encode(self, Inputs::Texts(texts.to_vec()), cut, "texts")?;
            for embedding in encoder::embed(self, &caller, inputs, "texts").await? {
                embeddings.push(match dimensions {
                    Some(dimensions) => encoder::shortened(&embedding, dimensions),
                    None => embedding.to_vec(),
                });
            }
        }
        Ok(embeddings)
    }
}
