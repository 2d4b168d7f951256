//! Where a model's weights come from.
//!
//! A family's constructor names each weight once and takes a [`Source`], below the names
//! that a [`Scope`] adds. It runs first over a [`Checker`], which finds everything that is
//! missing or does not fit without reading a byte of data, then over a [`Packer`].

mod checker;
mod fp8;
mod packer;
mod scope;

use std::sync::Arc;

pub(crate) use checker::{Checked, Checker};
pub(crate) use packer::Packer;
use sconce_kernels::Backend;
pub(crate) use scope::Scope;

use crate::{ModelError, ModelSpec, RopeParams};

/// What weights are once they are loaded.
pub(crate) trait Weights {
    /// A weight `[n, k]`.
    type Matrix: Send + Sync;
    /// A weight `[n]`.
    type Vector: Send + Sync;
}

impl<B: Backend> Weights for B {
    type Matrix = B::Matrix;
    type Vector = B::Vector;
}

/// What gives a model's constructor its weights, and is told of what it builds.
pub(crate) trait Source {
    type W: Weights;

    /// Weights `[n, k]` on top of each other, by name and `n`.
    fn matrix(&mut self, parts: &[(String, usize)], k: usize) -> Result<Matrix<Self>, ModelError>;

    /// The same, of the vocabulary: the embedding and the output.
    fn vocabulary_matrix(
        &mut self,
        parts: &[(String, usize)],
        k: usize,
    ) -> Result<Matrix<Self>, ModelError>;

    /// The same, never quantized: for what decides, and takes little room.
    fn exact_matrix(
        &mut self,
        parts: &[(String, usize)],
        k: usize,
    ) -> Result<Matrix<Self>, ModelError>;

    /// One tensor `[count, n, k]`, as weights on top of each other.
    fn stack(
        &mut self,
        name: &str,
        shape: (usize, usize, usize),
    ) -> Result<Matrix<Self>, ModelError>;

    /// A tensor that the checkpoint may have, and that is not used.
    fn leave(&mut self, name: &str);

    /// Whether the checkpoint has a tensor of that name.
    fn has(&self, name: &str) -> bool;

    /// Vectors `[n]` end to end, by name and `n`; `plus` is added to every number, in f32.
    fn vector(&mut self, parts: &[(String, usize)], plus: f32) -> Result<Vector<Self>, ModelError>;

    /// The rotary table of these parameters; who asks for the same gets the same.
    fn rope(&mut self, rope: &RopeParams) -> Result<Arc<Vector<Self>>, ModelError>;

    /// Which of two matrices the checkpoint has that config.json says are one.
    fn stored(&mut self, first: &str, second: &str) -> Stored;

    /// What the constructor told so far.
    fn spec(&mut self) -> &mut ModelSpec;
}

pub(crate) type Matrix<S> = <<S as Source>::W as Weights>::Matrix;
pub(crate) type Vector<S> = <<S as Source>::W as Weights>::Vector;

/// Which of two matrices a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The first; the second is missing or a copy.
    First,
    /// The second alone.
    Second,
    /// Both, and they differ.
    Both,
}
