//! The [`Executor`](sconce_types::Executor) for real models.
//!
//! [`ModelRunner`] turns a scheduled batch into a ragged forward pass, samples
//! from its logits, and keeps what a running sequence's sampling needs in its
//! seat. It knows neither scheduling nor HTTP. The engine's thread owns it.

mod energy;
mod load;
mod memory;
mod model_runner;
mod options;
mod out_of_memory;
mod seat;

pub use load::{LoadTimes, LoadedModel, load, load_on, load_on_cpu};
pub use model_runner::ModelRunner;
pub use options::{DeviceChoice, LoadError, LoadOptions, Quantization};
pub use sconce_kernels::{CacheDtype, Dtype, cpu::Isa};
pub use sconce_models::{LFS_POINTER, gguf, lfs_advice};
