//! Feed-forward layers.

use sconce_kernels::{Activation, Backend, KernelError};

use super::{Linear, RmsNorm};
use crate::{
    Buf, ModelError, Pass,
    source::{Scope, Source, Weights},
};

/// A gated unit (Shazeer, 2020): a projection gated by the activation of another, then one
/// back.
pub(crate) struct GatedMlp<W: Weights> {
    /// gate_proj and up_proj on top of each other.
    gate_up_proj: Linear<W>,
    down_proj: Linear<W>,
    activation: Activation,
}

impl<W: Weights> GatedMlp<W> {
    pub(crate) fn load<S: Source<W = W>>(
        s: &mut Scope<'_, S>,
        (hidden_size, intermediate_size): (usize, usize),
        activation: Activation,
        has_bias: bool,
    ) -> Result<Self, ModelError> {
        let gate_up = [("gate_proj", intermediate_size), ("up_proj", intermediate_size)];
        let down = [("down_proj", hidden_size)];
        Ok(Self {
            gate_up_proj: Linear::load(s, &gate_up, hidden_size, has_bias)?,
            down_proj: Linear::load(s, &down, intermediate_size, has_bias)?,
            activation,
        })
    }
}

impl<B: Backend> GatedMlp<B> {
    /// Of `h [rows, hidden_size]`, normed, added to it.
    pub(crate) fn add_to(
        &self,
        p: &mut Pass<'_, B>,
        norm: &RmsNorm<B>,
        h: &mut Buf,
    ) -> Result<(), KernelError> {
        let activated = norm.project(p, h, &self.gate_up_proj, Some(self.activation))?;
        self.down_proj.add_to(p, activated, h)
    }

    /// Of `x [rows, hidden_size]`, in its shape.
    pub(crate) fn forward(&self, p: &mut Pass<'_, B>, x: Buf) -> Result<Buf, KernelError> {
        let activated = self.gate_up_proj.gated(p, x, self.activation)?;
        self.down_proj.forward(p, activated)
    }
}
