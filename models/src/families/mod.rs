//! The model families: each file is a config.json's fields, the weights in the order of the
//! forward pass with the checkpoint's names, and the forward pass.

pub mod bert;
pub mod gemma3;
pub mod llama;
pub(crate) mod mistral;
pub mod qwen2;
pub mod qwen3;
pub mod qwen3_moe;
