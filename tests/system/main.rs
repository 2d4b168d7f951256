//! Whole-system tests on a real model: what it computes is held against
//! transformers, what it serves against the real clients.

mod banner;
mod batching;
#[cfg(unix)]
mod book;
mod clients;
mod cuda;
mod embeddings;
mod examples;
#[cfg(feature = "cuda")]
mod fake_gpu;
mod families;
mod gemma3;
mod gemma_weights;
mod golden;
mod kept_bits;
mod ledger;
mod library;
mod masks;
mod model;
mod openai;
mod openapi;
mod operating;
mod overload;
mod process;
mod python;
mod replay;
mod server;
mod structured;
mod tenants;
mod tiny;
mod typed;
