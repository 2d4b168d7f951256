//! Model families and their checkpoints.
//!
//! A model is written down once, in the order of its forward pass and with the
//! checkpoint's names (`families/`), out of `layers/`, over any
//! [`sconce_kernels::Backend`]. Its constructor asks a `source` for weights and so declares
//! what the model needs. Models take `&self`; what changes is passed in with the [`Pass`].

mod checkpoint;
mod config;
mod encoder;
mod error;
mod families;
pub mod gguf;
mod json;
mod layers;
mod pass;
mod read_ahead;
mod registry;
mod rope;
mod sentence;
mod shards;
mod source;
mod spec;
mod workspace;

pub use checkpoint::{Checkpoint, Loaded, WeightDtypes};
pub use config::{Decoder, Mixture};
pub use encoder::{Encoder, EncoderBackend, EncoderCheckpoint, LoadedEncoder};
pub use error::ModelError;
pub use families::{bert, gemma3, llama, qwen2, qwen3, qwen3_moe};
pub use pass::{Model, Pass};
pub use registry::{FamilyInfo, families};
pub use rope::{RopeParams, RopeScaling};
pub use sconce_kernels::mapped::{LFS_POINTER, lfs_advice};
pub use sentence::{Pooling, SentenceConfig};
pub use spec::ModelSpec;
pub use workspace::{Buf, BufPlace, Workspace};
