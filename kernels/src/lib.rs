//! The operations of a forward step.
//!
//! [`Device`] holds memory and is given steps, [`Ops`] is the written contract of every
//! operation: shapes, dtypes and what it computes, [`Sampler`] makes tokens of logits; a
//! [`Backend`] is all three. [`cpu::Cpu`] is its form for processors; the CUDA form
//! launches `kernels/cuda/<op>.cu`. [`mod@reference`] holds the same operations in
//! f64, written to be read, which tests hold every form against.
//!
//! `unsafe` code lives in this crate and nowhere else in the workspace.

mod attention;
pub mod cpu;
pub mod cuda;
mod device;
mod dtype;
pub mod error;
mod forms;
pub mod fp8;
mod kv_layout;
pub mod mapped;
pub mod ops;
mod plan;
mod ranges;
pub mod reference;
mod sampler;

pub use attention::{AttentionKind, AttentionParams, Mask};
pub use device::Device;
pub use dtype::{CacheDtype, Dtype, WeightDtype};
pub use error::KernelError;
pub use forms::{Findings, Trial, Verdict};
pub use fp8::Fp8Weight;
pub use kv_layout::{BLOCK_SIZE, KvLayer, KvLayout};
pub use ops::{
    Activation, Ops, Routing,
    encoder::{EncoderBackend, EncoderOps, TableRow},
};
pub use plan::{SharedPrefix, StepLimits, StepPlan, TableEdit};
pub use ranges::{Range, range};
pub use sampler::Sampler;

/// All that a model runs on.
pub trait Backend: Device + Ops + Sampler {}

impl<T: Device + Ops + Sampler> Backend for T {}
