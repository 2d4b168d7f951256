//! How an engine is started.

use std::sync::Arc;

use sconce_types::{EndReason, MeterSink, RequestId, SamplingParams, Tenant, TokenId};

/// What an engine is started with beside its executor.
pub struct EngineOptions {
    pub(crate) model_name: String,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) sink: Option<Box<dyn MeterSink>>,
    pub(crate) recorder: Option<Box<dyn RecordSink>>,
}

impl EngineOptions {
    /// An engine of one tenant that keeps no ledger.
    #[must_use]
    pub fn new(model_name: impl Into<String>) -> Self {
        Self {
            model_name: model_name.into(),
            tenants: vec![Tenant::sole()],
            sink: None,
            recorder: None,
        }
    }

    /// Shares it between tenants.
    #[must_use]
    pub fn tenants(self, tenants: Vec<Tenant>) -> Self {
        Self { tenants, ..self }
    }

    /// Keeps what every request used.
    #[must_use]
    pub fn sink(self, sink: Option<Box<dyn MeterSink>>) -> Self {
        Self { sink, ..self }
    }

    /// Keeps every request that generates something, so that it can be run again.
    #[must_use]
    pub fn recorder(self, recorder: Option<Box<dyn RecordSink>>) -> Self {
        Self { recorder, ..self }
    }
}

impl From<&str> for EngineOptions {
    fn from(model_name: &str) -> Self {
        Self::new(model_name)
    }
}

/// A request that ended, with all that its tokens followed from.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedRequest {
    /// Its number in this engine.
    pub id: RequestId,
    /// Its id as its client knows it.
    pub request_id: Arc<str>,
    /// Its prompt.
    pub prompt: Vec<TokenId>,
    /// How it went on from it, the seed included.
    pub params: SamplingParams,
    /// What was generated.
    pub tokens: Vec<TokenId>,
    /// Why it ended.
    pub end: EndReason,
}

/// Keeps requests that ended. Called on the engine's thread: it must not wait.
pub trait RecordSink: Send {
    /// Takes one.
    fn record(&mut self, request: RecordedRequest);

    /// Waits until what was taken is kept; called when a server ends.
    fn settle(&mut self);
}
