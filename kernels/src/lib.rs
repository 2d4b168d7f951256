//! The operations of a forward step.
//!
//! [`Backend`] is the written contract of every operation: shapes, dtypes and
//! what it computes. [`cpu::Cpu`] is its form for processors; the CUDA form
//! launches `kernels/cuda/<op>.cu`. [`mod@reference`] holds the same operations in
//! f64, written to be read, which tests hold every form against.
//!
//! `unsafe` code lives in this crate and nowhere else in the workspace.

pub mod backend;
pub mod batch;
pub mod cpu;
pub mod cuda;
pub mod error;
pub mod mapped;
pub mod ops;
pub mod reference;

pub use backend::{AttentionParams, Backend, CacheDtype, Dtype, KvLayout, WeightDtype};
pub use batch::ForwardBatch;
pub use error::KernelError;
