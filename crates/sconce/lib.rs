//! Sconce as a library: start an engine in your own program and stream from it.
//!
//! ```no_run
//! use sconce::{Options, SamplingParams, Sconce};
//!
//! # fn main() -> Result<(), sconce::Error> {
//! let sconce = Sconce::start(&Options::new("smollm2-135m-instruct"), &())?;
//! let params = SamplingParams { max_tokens: 64, temperature: 0.0, ..Default::default() };
//! let mut answer = sconce.chat(&[("user", "What is the capital of France?")], params)?;
//! while let Some(text) = answer.blocking_next() {
//!     print!("{}", text?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! This crate is the only place where the serving half (engine, text, server)
//! and the computing half (runner, models, kernels) meet.

mod completion;
pub mod hub;
mod null;
mod start;

pub use completion::Completion;
pub use sconce_engine::{
    EngineHandle, EngineLimits, EngineRequest, FinishReason, Health, Metrics, RequestError,
    RequestEvent, RequestStream, SubmitError, TokenEvent,
};
pub use sconce_runner::{
    CacheDtype, DeviceChoice, Dtype, LoadError, LoadTimes, Quantization, gguf,
};
pub use sconce_server::{ServeError, ServerConfig, listen, router, serve};
pub use sconce_text::{TextConfig, TextError, TextModel};
pub use sconce_types::{SamplingParams, TokenId, TokenLogprobs};
pub use start::{Error, Options, Progress, Sconce, Summary};
