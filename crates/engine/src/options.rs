//! How an engine is started.

use std::{sync::Arc, time::Duration};

use sconce_types::{End, MeterSink, RequestId, SamplingParams, Tenant, TokenId};

/// What an engine is started with beside its executor.
pub struct EngineOptions {
    pub(crate) model_name: String,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) sink: Option<Box<dyn MeterSink>>,
    pub(crate) recorder: Option<Box<dyn RecordSink>>,
    pub(crate) target_itl: Option<Duration>,
    pub(crate) max_queue_wait: Option<Duration>,
    pub(crate) warm_up: bool,
}

impl EngineOptions {
    /// The time between tokens that prefill leaves to decodes, unless said otherwise: a
    /// whole prefill chunk of a small model on two cores fits.
    pub const TARGET_ITL: Duration = Duration::from_millis(250);
    /// The longest that a request may wait for its prefill, unless said otherwise: half of
    /// what proxies in front of servers commonly wait for an answer's first byte.
    pub const MAX_QUEUE_WAIT: Duration = Duration::from_secs(30);

    /// An engine of one tenant that keeps no ledger.
    #[must_use]
    pub fn new(model_name: impl Into<String>) -> Self {
        Self {
            model_name: model_name.into(),
            tenants: vec![Tenant::sole()],
            sink: None,
            recorder: None,
            target_itl: Some(Self::TARGET_ITL),
            max_queue_wait: Some(Self::MAX_QUEUE_WAIT),
            warm_up: false,
        }
    }

    /// Bounds the prefill in steps that decode too, so that tokens follow each other within
    /// this time; `None` leaves it to `max_num_batched_tokens`.
    #[must_use]
    pub fn target_itl(self, target_itl: Option<Duration>) -> Self {
        Self { target_itl, ..self }
    }

    /// Refuses requests that would wait longer for their prefill; `None` lets them wait.
    #[must_use]
    pub fn max_queue_wait(self, max_queue_wait: Option<Duration>) -> Self {
        Self { max_queue_wait, ..self }
    }

    /// Measures a few steps before the first request is taken, so that it can be predicted.
    #[must_use]
    pub fn warm_up(self, warm_up: bool) -> Self {
        Self { warm_up, ..self }
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
    pub end: End,
}

/// Keeps requests that ended. Called on the engine's thread: it must not wait.
pub trait RecordSink: Send {
    /// Takes one.
    fn record(&mut self, request: RecordedRequest);

    /// Waits until what was taken is kept; called when a server ends.
    fn settle(&mut self);
}
