//! The [`Executor`](sconce_types::Executor) for real models.
//!
//! [`ModelRunner`] turns a scheduled batch into a ragged forward pass, samples
//! from its logits, and keeps what a running sequence's sampling needs in its
//! seat. It knows neither scheduling nor HTTP. The engine's thread owns it.

mod load;
mod memory;
mod model_runner;
mod seat;

pub use load::{LoadError, LoadOptions, LoadedModel, Quantization, load};
pub use model_runner::ModelRunner;
pub use sconce_kernels::Dtype;
pub use sconce_models::gguf;
