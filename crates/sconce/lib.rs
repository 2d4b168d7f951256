//! Sconce as a library: an LLM inference engine in your own program. [`Sconce::builder`] loads
//! a model and starts the engine; what it generates comes as [streams](futures::Stream), each
//! with a blocking form. Requests that run
//! at once share steps, and prompts that begin alike share what is computed of them.
//!
//! # An answer
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
//! The model is a known name, an id of the Hugging Face hub, a directory or a GGUF file; it is
//! fetched if need be. A [`Completion`] is a `futures::Stream` as well, and dropping it cancels
//! its request. [`Sconce::complete`] goes on from a text instead of a conversation.
//! [`Builder::start_with_callback`] tells how far a start has come.
//!
//! # Async
//!
//! Whatever waits has two forms: `next` and `blocking_next`, `whole` and `blocking_whole`,
//! `embed` and `blocking_embed`. The async ones need no particular runtime; the blocking ones are
//! for threads outside of any.
//!
//! ```no_run
//! use futures::StreamExt;
//!
//! # async fn of(sconce: sconce::Sconce) -> Result<(), sconce::Error> {
//! let mut answer = sconce.complete("Once upon a time", Default::default())?;
//! while let Some(text) = StreamExt::next(&mut answer).await {
//!     print!("{}", text?);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Many prompts
//!
//! [`Sconce::generate`] completes any number of prompts, as many at once as the engine runs;
//! [`Sconce::generate_stream`] gives them as they finish.
//!
//! ```no_run
//! # fn main() -> Result<(), sconce::Error> {
//! # let sconce = sconce::Sconce::builder("smollm2-135m-instruct").start()?;
//! let prompts = ["France", "Italy", "Spain"].map(|country| format!("The capital of {country} is"));
//! for completion in sconce.generate(&prompts, Default::default()) {
//!     let completion = completion?;
//!     println!("{}{}", prompts[completion.index], completion.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Tools
//!
//! A [`ChatRequest`] has messages of all roles and [`Tool`]s; [`Sconce::answer`] gives the
//! answer's [parts](AnswerPart): text, thoughts, calls. The program does what is called and
//! sends the result back:
//!
//! ```no_run
//! use sconce::{ChatRequest, Message, SamplingParams, Tool, schema_of};
//!
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! struct Place {
//!     city: String,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let sconce = sconce::Sconce::builder("smollm2-135m-instruct").start()?;
//! let weather = Tool::new("weather", "The weather in a city now", schema_of::<Place>());
//! let params = SamplingParams { max_tokens: 256, ..Default::default() };
//! let question = Message::user("Do I need an umbrella in Rome?");
//! let mut request = ChatRequest::new([question], params).tools([weather]);
//! loop {
//!     let answered = sconce.answer(&request)?.blocking_whole()?;
//!     request.messages.push(answered.to_message());
//!     if answered.calls.is_empty() {
//!         println!("{}", answered.text);
//!         break;
//!     }
//!     for call in &answered.calls {
//!         let place: Place = call.parse()?;
//!         let result = format!("It rains in {}.", place.city);
//!         request.messages.push(Message::tool(&call.id, result));
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`ToolChoice`] asks for a call, or for none. A call that must be made, and any call of a
//! [strict](Tool::strict) tool, is bounded by a grammar: its arguments are of the tool's type.
//!
//! # A value of a type
//!
//! [`Sconce::chat_as`] answers with a type. A grammar of its schema leaves the model no other
//! JSON, so what comes back needs no checks; what does not come back is a [`ChatAsError`], which
//! has the text so far where `max_tokens` cut it.
//!
//! ```no_run
//! use sconce::{ChatRequest, Message, SamplingParams};
//!
//! #[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
//! struct City {
//!     name: String,
//!     population: u32,
//!     river: Option<String>,
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let sconce = sconce::Sconce::builder("smollm2-135m-instruct").start()?;
//! let question = Message::user("Describe Rome as JSON: name, population, river.");
//! let params = SamplingParams { max_tokens: 200, ..Default::default() };
//! let city: City = sconce.blocking_chat_as(&ChatRequest::new([question], params))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Embeddings
//!
//! ```no_run
//! use sconce::{EmbeddingOptions, Sconce};
//!
//! # fn main() -> Result<(), sconce::Error> {
//! let sconce = Sconce::builder("sentence-transformers/all-MiniLM-L6-v2").start()?;
//! let texts = ["A cat sleeps.", "The kitten naps."];
//! let embeddings = sconce.blocking_embed(&texts, EmbeddingOptions::default())?;
//! # Ok(())
//! # }
//! ```
//!
//! # A server
//!
//! [`router`] is the whole HTTP API as an `axum::Router`, to be nested in a server of one's own;
//! [`serve`] serves it.
//!
//! ```no_run
//! use sconce::{Sconce, ServerConfig};
//!
//! # fn of(sconce: Sconce) -> axum::Router {
//! let name = sconce.summary().model_name.clone();
//! let config = ServerConfig { served_model_names: vec![name], ..ServerConfig::default() };
//! let api = sconce::router(sconce.engine().clone(), sconce.text().clone(), config);
//! axum::Router::new().nest("/llm", api)
//! # }
//! ```
//!
//! Below all this is the [`EngineHandle`] of [`Sconce::engine`], which takes token ids,
//! constraints on them and tenants. Programs of each kind are in the repository's `examples/`.
//!
//! This crate is the only place where the serving half (engine, text, server)
//! and the computing half (runner, models, kernels) meet.

mod builder;
mod chat;
mod completion;
mod embed;
mod generate;
pub mod hub;
mod null;
mod recording;
mod replay;
mod schema;
mod start;

pub use builder::{Builder, Stage};
pub use chat::ChatAsError;
pub use completion::Completion;
pub use generate::{Generate, Generated};
pub use recording::{Recorded, RecordingError, RecordingHead, read as read_recording};
pub use replay::{Difference, Replay, ReplayError, replay};
pub use schema::schema_of;
/// What derives the schemas of types, in the version that [`schema_of`] takes.
pub use schemars;
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
pub use sconce_server::{
    Answer, AnswerPart, Answered, ChatRequest, EmbeddingOptions, Finish, GrammarError,
    InvalidArguments, Message, Tool, ToolCall, ToolChoice,
};
pub use sconce_simulator as simulator;
pub use sconce_tenants as tenants;
pub use sconce_text::{ReasoningFormat, TextConfig, TextError, TextModel, ToolFormat};
pub use sconce_types::{
    EmbeddingInfo, Metering, SamplingParams, Tenant, TenantId, TokenId, TokenLogprobs,
};
pub use start::{Error, Options, Progress, Sconce, Summary};
