//! Sconce as a library: start an engine in your own program and stream from it.
//!
//! ```no_run
//! use sconce::{SamplingParams, Sconce};
//!
//! # fn main() -> Result<(), sconce::Error> {
//! let sconce = Sconce::builder("smollm2-135m-instruct").max_model_len(4096).start()?;
//! let params = SamplingParams { max_tokens: 64, temperature: 0.0, ..Default::default() };
//! let mut answer = sconce.chat(&[("user", "What is the capital of France?")], params)?;
//! while let Some(text) = answer.blocking_next() {
//!     print!("{}", text?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A [`Completion`] is a `futures::Stream` as well. [`Sconce::generate`] completes many
//! prompts at once. [`router`] is the HTTP API as an axum router, to be nested in a server of
//! one's own: see `examples/`.
//!
//! This crate is the only place where the serving half (engine, text, server)
//! and the computing half (runner, models, kernels) meet.

mod builder;
mod completion;
mod generate;
pub mod hub;
mod null;
mod recording;
mod replay;
mod start;

pub use builder::Builder;
pub use completion::Completion;
pub use generate::{Generate, Generated};
pub use recording::{Recorded, RecordingError, RecordingHead, read as read_recording};
pub use replay::{Difference, Replay, ReplayError, replay};
pub use sconce_batches::Limits as BatchLimits;
pub use sconce_engine::{
    Capacity, End, EngineHandle, EngineLimits, EngineRequest, Health, Metrics, Overload,
    RequestError, RequestEvent, RequestStream, SchedulerConfig, SchedulingPolicy, SubmitError,
    TokenEvent,
};
pub use sconce_ledger as ledger;
pub use sconce_runner::{
    CacheDtype, DeviceChoice, Dtype, Examined, Findings, Isa, LoadError, LoadTimes, Quantization,
    Trial, Verdict, examine, gguf,
};
#[cfg(unix)]
pub use sconce_server::listen_on_path;
pub use sconce_server::{
    AllowedOrigins, Batches, BodyConfig, ConnectionConfig, InvalidOrigin, InvalidTracesEndpoint,
    InvalidTracesHeader, Listener, ReloadError, ServeError, ServerConfig, TenantDirectory, Traces,
    TracesConfig, TracesEndpoint, listen, router, serve,
};
pub use sconce_simulator as simulator;
pub use sconce_tenants as tenants;
pub use sconce_text::{ReasoningFormat, TextConfig, TextError, TextModel, ToolFormat};
pub use sconce_types::{
    EmbeddingInfo, Metering, SamplingParams, Tenant, TenantId, TokenId, TokenLogprobs,
};
pub use start::{Error, Options, Progress, Sconce, Summary};
