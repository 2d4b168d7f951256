//! From tokens to hidden states.

use sconce_kernels::{Backend, KernelError};

use crate::{
    Buf, ModelError, Pass,
    source::{Scope, Source, Weights},
};

/// A row of `hidden_size` for each token of the vocabulary.
pub(crate) struct Embedding<W: Weights> {
    pub(super) weight: W::Matrix,
    hidden_size: usize,
    /// On every element.
    scale: f32,
}

impl<W: Weights> Embedding<W> {
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        name: &str,
        vocab_size: usize,
        hidden_size: usize,
    ) -> Result<Self, ModelError> {
        s.hidden(hidden_size);
        let weight = s.vocabulary_matrix(&[(name, vocab_size)], hidden_size)?;
        Ok(Self { weight, hidden_size, scale: 1.0 })
    }

    /// With a factor on the hidden states, which does not reach logits of the same matrix.
    pub(crate) fn scaled(self, scale: f32) -> Self {
        Self { scale, ..self }
    }
}

impl<B: Backend> Embedding<B> {
    /// The step's tokens, `[rows, hidden_size]`.
    pub(crate) fn forward(&self, p: &mut Pass<'_, B>) -> Result<Buf, KernelError> {
        let mut out = p.take(self.hidden_size)?;
        p.ops.embedding_gather(p.step, &self.weight, self.scale, p.ws.get_mut(&mut out))?;
        Ok(out)
    }
}
