//! Model directories that the tests write themselves: read, refused, computed.
#![expect(clippy::unwrap_used, reason = "a test whose files cannot be written has failed")]

mod checkpoint;
mod config;
mod encoder;
mod forward;
mod fp8;
mod gemma;
mod gguf;
mod qwen;
mod readme;
mod rope;
mod tiny;
