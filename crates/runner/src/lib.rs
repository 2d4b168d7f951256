//! The [`Executor`](sconce_types::Executor) for real models.
//!
//! [`ModelRunner`] turns a scheduled batch into a ragged forward pass, samples
//! from its logits, and keeps what a running sequence's sampling needs in its
//! slot. It knows neither scheduling nor HTTP. The engine's thread owns it.

mod encoder;
mod energy;
mod forms;
mod forward;
mod graphs;
mod kv_plan;
mod load;
mod memory;
mod model_runner;
mod options;
mod out_of_memory;
mod prefixes;
mod slot;

pub use encoder::EncoderRunner;
pub use forms::{Examined, FormFault};
pub use load::{LoadPhase, LoadTimes, LoadedModel, ModelInfo, examine, load, load_on, load_on_cpu};
pub use model_runner::ModelRunner;
pub use options::{DeviceChoice, LoadError, LoadOptions, Quantization};
pub use sconce_kernels::{CacheDtype, Dtype, Findings, Trial, Verdict, cpu::Isa};
pub use sconce_models::{LFS_POINTER, gguf, lfs_advice};
