//! A place among a checkpoint's names.

use std::sync::Arc;

use sconce_kernels::AttentionParams;

use super::{Matrix, Source, Stored, Vector};
use crate::{ModelError, RopeParams};

/// A [`Source`] below a prefix of names.
pub(crate) struct Scope<'a, S> {
    source: &'a mut S,
    prefix: String,
}

impl<'a, S: Source> Scope<'a, S> {
    /// All of a checkpoint.
    pub(crate) fn root(source: &'a mut S) -> Self {
        Self { source, prefix: String::new() }
    }

    /// What stands below `name`.
    pub(crate) fn at(&mut self, name: &str) -> Scope<'_, S> {
        let prefix = self.name(name);
        Scope { source: self.source, prefix }
    }

    /// Layers `layers.0` to `layers.{count - 1}`, each built below its own name.
    pub(crate) fn layers<T>(
        &mut self,
        count: usize,
        mut build: impl FnMut(&mut Scope<'_, S>, usize) -> Result<T, ModelError>,
    ) -> Result<Vec<T>, ModelError> {
        (0..count).map(|index| build(&mut self.at(&format!("layers.{index}")), index)).collect()
    }

    /// `{name}.weight` of each part, `[n, k]`, on top of each other.
    pub(crate) fn matrix(
        &mut self,
        parts: &[(&str, usize)],
        k: usize,
    ) -> Result<Matrix<S>, ModelError> {
        let parts = self.names(parts, "weight");
        self.source.matrix(&parts, k)
    }

    /// The same, of the embedding or the output over the vocabulary.
    pub(crate) fn vocabulary_matrix(
        &mut self,
        parts: &[(&str, usize)],
        k: usize,
    ) -> Result<Matrix<S>, ModelError> {
        let parts = self.names(parts, "weight");
        self.source.vocabulary_matrix(&parts, k)
    }

    /// The same, never quantized.
    pub(crate) fn exact_matrix(
        &mut self,
        parts: &[(&str, usize)],
        k: usize,
    ) -> Result<Matrix<S>, ModelError> {
        let parts = self.names(parts, "weight");
        self.source.exact_matrix(&parts, k)
    }

    /// `{name}`, one tensor `[count, n, k]`, as weights on top of each other.
    pub(crate) fn stack(
        &mut self,
        name: &str,
        shape: (usize, usize, usize),
    ) -> Result<Matrix<S>, ModelError> {
        let name = self.name(name);
        self.source.stack(&name, shape)
    }

    /// Tensors that the checkpoint may have, and that are not used.
    pub(crate) fn leave(&mut self, names: &[&str]) {
        for name in names {
            let name = self.name(name);
            self.source.leave(&name);
        }
    }

    /// Whether the checkpoint has a tensor `{name}`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.has(&self.name(name))
    }

    /// `{name}.{kind}` of each part, `[n]`, end to end.
    pub(crate) fn vector(
        &mut self,
        parts: &[(&str, usize)],
        kind: &str,
    ) -> Result<Vector<S>, ModelError> {
        self.vector_plus(parts, kind, 0.0)
    }

    /// The same, with a number added to all of theirs.
    pub(crate) fn vector_plus(
        &mut self,
        parts: &[(&str, usize)],
        kind: &str,
        plus: f32,
    ) -> Result<Vector<S>, ModelError> {
        let parts = self.names(parts, kind);
        self.source.vector(&parts, plus)
    }

    /// The rotary table of these parameters.
    pub(crate) fn rope(&mut self, rope: &RopeParams) -> Result<Arc<Vector<S>>, ModelError> {
        self.source.rope(rope)
    }

    /// The names of the embedding and of the output over the vocabulary; no second one
    /// where the first matrix serves as both. As transformers: where config.json ties the
    /// two and the checkpoint has both, they stay apart unless they are equal; where it has
    /// one, that one is both.
    pub(crate) fn vocabulary<'n>(
        &mut self,
        is_tied: bool,
        embed_tokens: &'n str,
        lm_head: &'n str,
    ) -> (&'n str, Option<&'n str>) {
        let name = |name| format!("{}.weight", self.name(name));
        let (first, second) = (name(embed_tokens), name(lm_head));
        match is_tied.then(|| self.source.stored(&first, &second)) {
            None | Some(Stored::Both) => (embed_tokens, Some(lm_head)),
            Some(Stored::First) => (embed_tokens, None),
            Some(Stored::Second) => (lm_head, None),
        }
    }

    /// A layer of the cache, for this attention: its index.
    pub(crate) fn cache_layer(&mut self, attention: AttentionParams) -> usize {
        let layers = &mut self.source.spec().cache_layers;
        layers.push(attention);
        layers.len() - 1
    }

    /// Tells the columns of the hidden states.
    pub(crate) fn hidden(&mut self, hidden_size: usize) {
        self.source.spec().hidden_size = hidden_size;
    }

    /// Tells of a projection of so many outputs.
    pub(crate) fn projection(&mut self, n: usize) {
        let widest = &mut self.source.spec().widest_linear;
        *widest = n.max(*widest);
    }

    /// Tells that the model ends in logits over so many tokens.
    pub(crate) fn logits(&mut self, vocab_size: usize) {
        self.source.spec().vocab_size = vocab_size;
    }

    fn name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    fn names(&self, parts: &[(&str, usize)], kind: &str) -> Vec<(String, usize)> {
        parts.iter().map(|(name, n)| (format!("{}.{kind}", self.name(name)), *n)).collect()
    }
}
