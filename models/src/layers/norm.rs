//! Norms.

use sconce_kernels::{Backend, KernelError};

use crate::{
    Buf, ModelError, Pass,
    source::{Scope, Source, Weights},
};

/// RMSNorm of a hidden state.
pub(crate) struct RmsNorm<W: Weights> {
    weight: W::Vector,
    eps: f32,
    n: usize,
}

impl<W: Weights> RmsNorm<W> {
    /// Over `n` elements.
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        name: &str,
        n: usize,
        eps: f32,
    ) -> Result<Self, ModelError> {
        Ok(Self { weight: s.vector(&[(name, n)], "weight")?, eps, n })
    }
}

impl<B: Backend> RmsNorm<B> {
    /// `[rows, n]`, beside `x`, which stays as the residual.
    pub(crate) fn forward(&self, p: &mut Pass<'_, B>, x: &Buf) -> Result<Buf, KernelError> {
        let mut out = p.take(self.n)?;
        let (from, to) = p.ws.pair(x, &mut out);
        p.ops.rms_norm(p.rows, from, &self.weight, self.eps, to)?;
        Ok(out)
    }
}
