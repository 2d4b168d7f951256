//! From hidden states to logits.

use sconce_kernels::{Backend, KernelError};

use super::Embedding;
use crate::{
    Buf, ModelError, Pass,
    source::{Scope, Source, Weights},
};

/// A logit for each token of the vocabulary.
pub(crate) struct LmHead<W: Weights> {
    /// `None`: the embedding's transpose.
    weight: Option<W::Matrix>,
    vocab_size: usize,
    /// Logits become `cap * tanh(logit / cap)`.
    soft_cap: Option<f32>,
}

impl<W: Weights> LmHead<W> {
    /// Without a name it is the embedding's transpose.
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        name: Option<&str>,
        vocab_size: usize,
        hidden_size: usize,
    ) -> Result<Self, ModelError> {
        s.logits(vocab_size);
        let load = |name| s.vocabulary_matrix(&[(name, vocab_size)], hidden_size);
        let weight = name.map(load).transpose()?;
        Ok(Self { weight, vocab_size, soft_cap: None })
    }

    /// With a cap of the logits, if any.
    pub(crate) fn capped(self, soft_cap: Option<f32>) -> Self {
        Self { soft_cap, ..self }
    }
}

impl<B: Backend> LmHead<B> {
    /// `x [rows, hidden_size]` to logits `[rows, vocab_size]`, f32.
    pub(crate) fn forward(
        &self,
        p: &mut Pass<'_, B>,
        x: Buf,
        embed_tokens: &Embedding<B>,
    ) -> Result<Buf, KernelError> {
        let mut logits = p.ws.take_logits(p.ops, self.vocab_size)?;
        let weight = self.weight.as_ref().unwrap_or(&embed_tokens.weight);
        let (from, to) = p.ws.pair(&x, &mut logits);
        p.ops.linear(p.rows, from, weight, None, to)?;
        p.ws.free(x);
        if let Some(cap) = self.soft_cap {
            p.ops.soft_cap(p.rows, cap, p.ws.get_mut(&mut logits))?;
        }
        Ok(logits)
    }
}
