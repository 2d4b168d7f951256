//! What models are made of, and the one place that calls the backend's operations.
//!
//! A layer owns its weights and biases, the order in which they are packed, and the choice
//! of fused operations, which is made when it is loaded: a step never changes it, since a
//! row's bits would depend on its neighbours. A layer consumes the buffer that it is the
//! last to read.

mod attention;
mod embedding;
mod encoder;
mod experts;
mod gather;
mod linear;
mod lm_head;
mod mlp;
mod norm;

pub(crate) use attention::{Attention, AttentionConfig};
pub(crate) use embedding::Embedding;
pub(crate) use encoder::{AddedTable, FullAttention, GeluMlp, LayerNorm};
pub(crate) use experts::{Experts, ExpertsConfig};
pub(crate) use linear::Linear;
pub(crate) use lm_head::LmHead;
pub(crate) use mlp::GatedMlp;
pub(crate) use norm::{Norm, RmsNorm};
pub(crate) use sconce_kernels::Activation;
