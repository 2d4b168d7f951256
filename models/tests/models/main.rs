//! Model directories that the tests write themselves: read, refused, computed.

mod checkpoint;
mod config;
mod forward;
mod gguf;
mod rope;
mod tiny;
