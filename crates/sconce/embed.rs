//! Embeddings of texts.

use sconce_server::{EmbeddingOptions, block_on};

use crate::{Error, Sconce};

impl Sconce {
    /// The embeddings of texts, in their order, by a model that makes such. As many are computed
    /// in a step as fit it.
    ///
    /// ```no_run
    /// # async fn of() -> Result<(), sconce::Error> {
    /// use sconce::{EmbeddingOptions, Sconce};
    ///
    /// let sconce = Sconce::builder("sentence-transformers/all-MiniLM-L6-v2").start()?;
    /// let texts = ["Paris is in France.", "Bern is in Switzerland."];
    /// let embeddings = sconce.embed(&texts, EmbeddingOptions::default()).await?;
    /// assert_eq!(embeddings[0].len(), 384);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A model that generates text, a text that is too long, dimensions that the model does
    /// not have, or a request that failed.
    pub async fn embed<I>(
        &self,
        texts: I,
        options: EmbeddingOptions,
    ) -> Result<Vec<Vec<f32>>, Error>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        let info = self.summary().embedding.as_ref();
        let info =
            info.ok_or_else(|| Error::MakesNoEmbeddings(self.summary().model_name.clone()))?;
        let texts = texts.into_iter().map(|text| text.as_ref().to_owned()).collect();
        Ok(self.generator().embed(info, texts, options).await?)
    }

    /// [`Sconce::embed`] on a thread outside any async runtime.
    ///
    /// # Errors
    /// As [`Sconce::embed`].
    pub fn blocking_embed<I>(
        &self,
        texts: I,
        options: EmbeddingOptions,
    ) -> Result<Vec<Vec<f32>>, Error>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        block_on(self.embed(texts, options))
    }
}
