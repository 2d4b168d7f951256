//! Norms.

use sconce_kernels::{Activation, Backend, KernelError};

use super::Linear;
use crate::{
    Buf, ModelError, Pass,
    source::{Scope, Source, Vector, Weights},
};

/// A norm's epsilon, and what its stored weight says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Norm {
    /// The factor of each element.
    Plain(f32),
    /// What the factor of each element is above 1.
    PlusOne(f32),
}

impl Norm {
    pub(super) fn eps(self) -> f32 {
        match self {
            Self::Plain(eps) | Self::PlusOne(eps) => eps,
        }
    }

    /// The factors `[n]`.
    pub(super) fn load<S: Source>(
        self,
        s: &mut Scope<'_, S>,
        name: &str,
        n: usize,
    ) -> Result<Vector<S>, ModelError> {
        match self {
            Self::Plain(_) => s.vector(&[(name, n)], "weight"),
            Self::PlusOne(_) => s.vector_plus(&[(name, n)], "weight", 1.0),
        }
    }
}

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
        norm: Norm,
    ) -> Result<Self, ModelError> {
        Ok(Self { weight: norm.load(s, name, n)?, eps: norm.eps(), n })
    }
}

impl<B: Backend> RmsNorm<B> {
    /// Weight and epsilon.
    pub(super) fn operands(&self) -> (&B::Vector, f32) {
        (&self.weight, self.eps)
    }

    /// `[rows, n]`, beside `x`, which stays as the residual.
    pub(crate) fn forward(&self, p: &mut Pass<'_, B>, x: &Buf) -> Result<Buf, KernelError> {
        let mut out = p.take(self.n)?;
        let (from, to) = p.ws.pair(x, &mut out);
        p.ops.rms_norm(p.rows, from, &self.weight, self.eps, to)?;
        Ok(out)
    }

    /// A projection of `x [rows, n]`, normed, with an activation as [`Linear::gated`].
    pub(crate) fn project(
        &self,
        p: &mut Pass<'_, B>,
        x: &Buf,
        linear: &Linear<B>,
        activation: Option<Activation>,
    ) -> Result<Buf, KernelError> {
        if let Some(out) = linear.of_normed(p, x, self.operands(), activation)? {
            return Ok(out);
        }
        let normed = self.forward(p, x)?;
        match activation {
            None => linear.forward(p, normed),
            Some(activation) => linear.gated(p, normed, activation),
        }
    }

    /// Of `x [rows, n]`, added to the residual `h`, of the same shape, in one operation.
    pub(crate) fn add_to(
        &self,
        p: &mut Pass<'_, B>,
        x: Buf,
        h: &mut Buf,
    ) -> Result<(), KernelError> {
        let (from, to) = p.ws.pair(&x, h);
        p.ops.rms_norm_add(p.rows, from, &self.weight, self.eps, to)?;
        p.ws.free(x);
        Ok(())
    }
}
