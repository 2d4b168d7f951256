//! Projections.

use sconce_kernels::{Activation, Backend, KernelError};

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
        let n = parts.iter().map(|(_, n)| n).sum();
        s.projection(n);
        Ok(Self {
            weight: s.matrix(parts, k)?,
            bias: if has_bias { Some(s.vector(parts, "bias")?) } else { None },
            n,
        })
    }
}

impl<B: Backend> Linear<B> {
    /// Weight and bias.
    pub(super) fn operands(&self) -> (&B::Matrix, Option<&B::Vector>) {
        (&self.weight, self.bias.as_ref())
    }

    /// `n`.
    pub(super) fn outputs(&self) -> usize {
        self.n
    }

    /// `[rows, k]` to `[rows, n]`.
    pub(crate) fn forward(&self, p: &mut Pass<'_, B>, x: Buf) -> Result<Buf, KernelError> {
        let out = self.of(p, &x)?;
        p.ws.free(x);
        Ok(out)
    }

    /// The same of what is read again.
    pub(crate) fn of(&self, p: &mut Pass<'_, B>, x: &Buf) -> Result<Buf, KernelError> {
        let mut out = p.take(self.n)?;
        let (from, to) = p.ws.pair(x, &mut out);
        p.ops.linear(p.rows, from, &self.weight, self.bias.as_ref(), to)?;
        Ok(out)
    }

    /// Of rows that are normed first, with an activation as [`Self::gated`]; `None` where the
    /// device takes two operations for it.
    pub(crate) fn of_normed(
        &self,
        p: &mut Pass<'_, B>,
        x: &Buf,
        norm: (&B::Vector, f32),
        activation: Option<Activation>,
    ) -> Result<Option<Buf>, KernelError> {
        let Self { weight, bias, n } = self;
        let mut out = p.take(if activation.is_some() { n / 2 } else { *n })?;
        let (from, to) = p.ws.pair(x, &mut out);
        let bias = bias.as_ref();
        if p.ops.linear_of_normed(p.rows, from, norm, weight, bias, activation, to)? {
            return Ok(Some(out));
        }
        p.ws.free(out);
        Ok(None)
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

    /// `[rows, k]` to `[rows, n / 2]`: the first half of the outputs, through `activation`,
    /// gates the second.
    pub(crate) fn gated(
        &self,
        p: &mut Pass<'_, B>,
        x: Buf,
        activation: Activation,
    ) -> Result<Buf, KernelError> {
        let Self { weight, bias, n } = self;
        let bias = bias.as_ref();
        let mut out = p.take(n / 2)?;
        // The same for every step: it depends on the device and the weight alone.
        let scratch_cols = p.ops.gated_scratch_cols(*n);
        if scratch_cols == 0 {
            let (from, to) = p.ws.pair(&x, &mut out);
            p.ops.linear_gated(p.rows, from, weight, bias, activation, None, to)?;
        } else {
            let mut scratch = p.take(scratch_cols)?;
            let (from, scratch_buffer, to) = p.ws.triple(&x, &mut scratch, &mut out);
            let scratch_buffer = Some(scratch_buffer);
            p.ops.linear_gated(p.rows, from, weight, bias, activation, scratch_buffer, to)?;
            p.ws.free(scratch);
        }
        p.ws.free(x);
        Ok(out)
    }
}
