//! The HTTP endpoint.
//!
//! Handlers are thin: extract, convert, submit, stream or collect. Requests are
//! validated once, in `generation::settings` and by the engine; `error` is the one
//! place that knows HTTP status codes. A client that goes away drops its
//! response, which drops its request.
//!
//! A program that embeds the engine asks a [`Generator`] for the same answers without HTTP.

mod access_log;
mod admin;
mod anthropic;
mod batches;
mod caller;
mod capacity;
mod connection;
mod directory;
mod error;
mod generation;
mod in_process;
mod intake;
mod json;
mod listener;
mod live;
mod middleware;
mod openai;
mod openapi;
mod origins;
mod page;
mod serve;
mod state;
mod text_or_list;
mod tokenize;
mod traces;
mod watched_body;
mod word;

pub use batches::Batches;
pub use connection::{ConnectionConfig, ServeError, serve};
pub use directory::{ReloadError, TenantDirectory};
pub use generation::{
    generator::Generator,
    tools::{Tool, ToolChoice},
};
pub use in_process::{
    Answer, AnswerPart, Answered, ChatRequest, EmbeddingOptions, Finish, InvalidArguments, Message,
    Refusal, ToolCall, block_on,
};
pub use intake::BodyConfig;
#[cfg(unix)]
pub use listener::listen_on_path;
pub use listener::{Listener, listen};
pub use origins::{AllowedOrigins, InvalidOrigin};
pub use sconce_grammar::GrammarError;
pub use serve::router;
pub use state::ServerConfig;
pub use traces::{
    InvalidTracesEndpoint, InvalidTracesHeader, Traces, TracesConfig, TracesEndpoint,
};
