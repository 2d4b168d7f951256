//! What encoders are made of beside what decoders are: learned rows, LayerNorm, attention in
//! both directions, and a feed-forward layer without gates.

use sconce_kernels::{EncoderBackend, KernelError, TableRow};

use super::Linear;
use crate::{
    Buf, ModelError, Pass,
    source::{Scope, Source, Weights},
};

/// A table of learned rows, which are added to hidden states.
pub(crate) struct AddedTable<W: Weights> {
    weight: W::Matrix,
    row: TableRow,
}

impl<W: Weights> AddedTable<W> {
    /// A row for each of `n` positions.
    pub(crate) fn of_positions<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        name: &str,
        (n, hidden_size): (usize, usize),
    ) -> Result<Self, ModelError> {
        let weight = s.exact_matrix(&[(name, n)], hidden_size)?;
        Ok(Self { weight, row: TableRow::Position })
    }

    /// A row for each of `n` types of token, of which texts that stand alone have the first.
    pub(crate) fn of_types<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        name: &str,
        (n, hidden_size): (usize, usize),
    ) -> Result<Self, ModelError> {
        let weight = s.exact_matrix(&[(name, n)], hidden_size)?;
        Ok(Self { weight, row: TableRow::Same(0) })
    }
}

impl<B: EncoderBackend> AddedTable<B> {
    /// On top of `h [rows, hidden_size]`.
    pub(crate) fn add_to(&self, p: &mut Pass<'_, B>, h: &mut Buf) -> Result<(), KernelError> {
        p.ops.table_add(p.step, self.row, &self.weight, p.ws.get_mut(h))
    }
}

/// LayerNorm of hidden states.
pub(crate) struct LayerNorm<W: Weights> {
    weight: W::Vector,
    bias: W::Vector,
    eps: f32,
    n: usize,
}

impl<W: Weights> LayerNorm<W> {
    /// Over `n` elements.
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        name: &str,
        n: usize,
        eps: f32,
    ) -> Result<Self, ModelError> {
        let parts = [(name, n)];
        Ok(Self { weight: s.vector(&parts, "weight")?, bias: s.vector(&parts, "bias")?, eps, n })
    }
}

impl<B: EncoderBackend> LayerNorm<B> {
    /// `[rows, n]` in place of `x`.
    pub(crate) fn forward(&self, p: &mut Pass<'_, B>, x: Buf) -> Result<Buf, KernelError> {
        let mut out = p.take(self.n)?;
        let (from, to) = p.ws.pair(&x, &mut out);
        p.ops.layer_norm(p.rows, from, (&self.weight, &self.bias, self.eps), to)?;
        p.ws.free(x);
        Ok(out)
    }
}

/// Attention in both directions, without a cache.
pub(crate) struct FullAttention<W: Weights> {
    /// query, key and value on top of each other.
    qkv: Linear<W>,
    dense: Linear<W>,
    num_heads: usize,
    hidden_size: usize,
}

impl<W: Weights> FullAttention<W> {
    /// By BERT's names: `self.query`, `self.key`, `self.value` and `output.dense`, all with
    /// biases.
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        num_heads: usize,
        hidden_size: usize,
    ) -> Result<Self, ModelError> {
        let qkv = ["self.query", "self.key", "self.value"].map(|name| (name, hidden_size));
        Ok(Self {
            qkv: Linear::load(s, &qkv, hidden_size, true)?,
            dense: Linear::load(s, &[("output.dense", hidden_size)], hidden_size, true)?,
            num_heads,
            hidden_size,
        })
    }
}

impl<B: EncoderBackend> FullAttention<B> {
    /// Of `h [rows, hidden_size]`, added to it.
    pub(crate) fn add_to(&self, p: &mut Pass<'_, B>, h: &mut Buf) -> Result<(), KernelError> {
        let qkv = self.qkv.of(p, h)?;
        let mut out = p.take(self.hidden_size)?;
        let (from, to) = p.ws.pair(&qkv, &mut out);
        p.ops.full_attention(p.step, self.num_heads, from, to)?;
        p.ws.free(qkv);
        self.dense.add_to(p, out, h)
    }
}

/// A projection, GELU in its exact form, and a projection back.
pub(crate) struct GeluMlp<W: Weights> {
    up: Linear<W>,
    down: Linear<W>,
}

impl<W: Weights> GeluMlp<W> {
    /// By BERT's names: `intermediate.dense` and `output.dense`, with biases.
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        (hidden_size, intermediate_size): (usize, usize),
    ) -> Result<Self, ModelError> {
        let up = [("intermediate.dense", intermediate_size)];
        Ok(Self {
            up: Linear::load(s, &up, hidden_size, true)?,
            down: Linear::load(s, &[("output.dense", hidden_size)], intermediate_size, true)?,
        })
    }
}

impl<B: EncoderBackend> GeluMlp<B> {
    /// Of `h [rows, hidden_size]`, added to it.
    pub(crate) fn add_to(&self, p: &mut Pass<'_, B>, h: &mut Buf) -> Result<(), KernelError> {
        let mut x = self.up.of(p, h)?;
        p.ops.gelu(p.rows, p.ws.get_mut(&mut x))?;
        self.down.add_to(p, x, h)
    }
}
