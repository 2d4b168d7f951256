//! Projections.

use sconce_kernels::{Backend, KernelError};

use crate::{
    Buf, ModelError, Pass,
    source::{Scope, Source, Weights},
};

/// `w · x + bias`: one projection, or several of the same input on top of each other.
pub(crate) struct Linear<W: Weights> {
    weight: W::Matrix,
    bias: Option<W::Vector>,
    /// Rows of the weight.
    n: usize,
}

impl<W: Weights> Linear<W> {
    /// `parts` are the names and outputs of projections of `k` inputs.
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        parts: &[(&str, usize)],
        k: usize,
        has_bias: bool,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            weight: s.matrix(parts, k)?,
            bias: if has_bias { Some(s.vector(parts, "bias")?) } else { None },
            n: parts.iter().map(|(_, n)| n).sum(),
        })
    }
}

impl<B: Backend> Linear<B> {
    /// `[rows, k]` to `[rows, n]`.
    pub(crate) fn forward(&self, p: &mut Pass<'_, B>, x: Buf) -> Result<Buf, KernelError> {
        let mut out = p.take(self.n)?;
        let (from, to) = p.ws.pair(&x, &mut out);
        p.ops.linear(p.rows, from, &self.weight, self.bias.as_ref(), to)?;
        p.ws.free(x);
        Ok(out)
    }

    /// Adds to the residual `h [rows, n]`, in one operation.
    pub(crate) fn add_to(
        &self,
        p: &mut Pass<'_, B>,
        x: Buf,
        h: &mut Buf,
    ) -> Result<(), KernelError> {
        let (from, to) = p.ws.pair(&x, h);
        p.ops.linear_add(p.rows, from, &self.weight, self.bias.as_ref(), to)?;
        p.ws.free(x);
        Ok(())
    }

    /// `[rows, k]` to `[rows, n / 2]`: the first half of the outputs gates the second.
    pub(crate) fn silu_mul(&self, p: &mut Pass<'_, B>, x: Buf) -> Result<Buf, KernelError> {
        let mut out = p.take(self.n / 2)?;
        let (from, to) = p.ws.pair(&x, &mut out);
        p.ops.linear_silu_mul(p.rows, from, &self.weight, self.bias.as_ref(), to)?;
        p.ws.free(x);
        Ok(out)
    }
}
