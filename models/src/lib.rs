//! Model families and their checkpoints.
//!
//! A model is written down once, in the order of its forward pass and with the
//! checkpoint's names (`llama.rs`), over any [`sconce_kernels::Backend`]. Models
//! take `&self`; the KV cache, the batch and the workspace are passed in.

mod causal_lm;
mod config;
mod error;
pub mod gguf;
mod json;
mod llama;
mod read_ahead;
mod rope;
mod shards;
mod weights;

pub use causal_lm::{CausalLm, Loaded, ModelShape, Workspace, load};
pub use config::{ModelConfig, RopeScaling};
pub use error::ModelError;
pub use rope::rope_table;
pub use sconce_kernels::mapped::{LFS_POINTER, lfs_advice};
