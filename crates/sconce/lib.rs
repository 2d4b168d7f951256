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
mod recording;
mod replay;
mod start;

pub use completion::Completion;
pub use recording::{Recorded, RecordingError, RecordingHead, read as read_recording};
pub use replay::{Difference, Replay, ReplayError, replay};
pub use sconce_engine::{
    Capacity, End, EngineHandle, EngineLimits, EngineRequest, Health, Metrics, Overload,
    RequestError, RequestEvent, RequestStream, SchedulerConfig, SchedulingPolicy, SubmitError,
    TokenEvent,
};
pub use sconce_ledger as ledger;
pub use sconce_runner::{
    CacheDtype, DeviceChoice, Dtype, Isa, LoadError, LoadTimes, Quantization, gguf,
};
pub use sconce_server::{
    AllowedOrigins, BodyConfig, ConnectionConfig, InvalidOrigin, ReloadError, ServeError,
    ServerConfig, TenantDirectory, listen, router, serve,
};
pub use sconce_simulator as simulator;
pub use sconce_tenants as tenants;
pub use sconce_text::{ReasoningFormat, TextConfig, TextError, TextModel, ToolFormat};
pub use sconce_types::{
    EmbeddingInfo, Metering, SamplingParams, Tenant, TenantId, TokenId, TokenLogprobs,
};
pub use start::{Error, Options, Progress, Sconce, Summary};
