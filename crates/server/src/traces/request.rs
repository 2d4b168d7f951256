//! What is noted of a request while it is served, for its spans.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use opentelemetry_sdk::trace::Span;
use sconce_engine::{RequestClock, RequestError};
use sconce_types::Metering;

use super::{
    Traces,
    spans::{self, Origin},
};
use crate::{
    caller::ClientRequestId,
    error::ApiError,
    state::AppState,
    watched_body::{BodyWatcher, watched},
};

/// Routes whose requests go to the engine.
const TRACED: [&str; 10] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/score",
    "/score",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
];

/// A sampled request, which its handlers tell what they find out.
#[derive(Debug, Default)]
pub(crate) struct RequestTrace(Mutex<Facts>);

/// What is known of a request. None of it is text of a prompt or an answer.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) tenant: Option<Arc<str>>,
    pub(super) sampling: Option<Sampling>,
    pub(super) max_tokens: Option<u32>,
    pub(super) prompt_tokens: usize,
    pub(super) sequences: Vec<Sequence>,
    /// What an answer that failed on its way ended with.
    pub(super) error: Option<ErrorNames>,
}

/// How a request's choices are sampled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    pub(super) n: usize,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
}

/// An error's type and code; its message may quote the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorNames {
    pub(super) kind: &'static str,
    pub(super) code: Option<&'static str>,
}

impl ErrorNames {
    fn of(error: &ApiError) -> Self {
        let (kind, code) = error.names();
        Self { kind, code }
    }
}

/// One of the engine's requests that a request is made of.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) clock: RequestClock,
    pub(super) usage: Metering,
    /// Its owner was through with it.
    pub(super) left: Option<Instant>,
}

impl RequestTrace {
    fn with<T>(&self, f: impl FnOnce(&mut Facts) -> T) -> T {
        // Notes are independent of each other.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whom the request's key speaks for.
    pub(crate) fn note_tenant(&self, name: &Arc<str>) {
        self.with(|facts| facts.tenant = Some(Arc::clone(name)));
    }

    /// What the request asks of sampling, defaults included.
    pub(crate) fn note_sampling(&self, n: usize, temperature: f32, top_p: f32) {
        self.with(|facts| facts.sampling = Some(Sampling { n, temperature, top_p }));
    }

    /// A prompt that is submitted, once for all its choices.
    pub(crate) fn note_prompt(&self, tokens: usize) {
        self.with(|facts| facts.prompt_tokens += tokens);
    }

    /// Another request of the engine's, of so many tokens at most.
    pub(crate) fn sequence(self: &Arc<Self>, max_tokens: Option<u32>) -> Box<SequenceTrace> {
        let clock = RequestClock::default();
        let index = self.with(|facts| {
            facts.max_tokens = facts.max_tokens.max(max_tokens);
            let (clock, usage) = (clock.clone(), Metering::default());
            facts.sequences.push(Sequence { clock, usage, left: None });
            facts.sequences.len() - 1
        });
        Box::new(SequenceTrace {
            usage: Metering::default(),
            request: Arc::clone(self),
            clock,
            index,
        })
    }
}

/// What the owner of one of the engine's requests has of its trace. Dropped with it.
#[derive(Debug)]
pub(crate) struct SequenceTrace {
    /// What it has used so far.
    pub(crate) usage: Metering,
    /// Where the engine writes its times.
    pub(crate) clock: RequestClock,
    request: Arc<RequestTrace>,
    index: usize,
}

impl SequenceTrace {
    /// It failed.
    pub(crate) fn note_error(&self, error: &RequestError) {
        let names = ErrorNames::of(&error.clone().into());
        self.request.with(|facts| facts.error = Some(names));
    }
}

impl Drop for SequenceTrace {
    fn drop(&mut self) {
        let Self { usage, index, request, .. } = self;
        request.with(|facts| {
            let sequence = &mut facts.sequences[*index];
            (sequence.usage, sequence.left) = (*usage, Some(Instant::now()));
        });
    }
}

/// Makes the request's spans when this is dropped: once its response was sent whole, or its
/// client has gone.
struct Finish {
    traces: Arc<Traces>,
    span: Box<Span>,
    request: Arc<RequestTrace>,
    origin: Origin,
    outcome: Outcome,
}

/// What the client got.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// `None` before there was an answer.
    pub(super) status: Option<u16>,
    pub(super) error: Option<ErrorNames>,
    pub(super) is_whole: bool,
}

impl Finish {
    /// Begins the span of a request that the engine is to serve, if it is sampled.
    fn begin(state: &AppState, request: &Request) -> Option<Self> {
        let traces = state.config.traces.as_ref()?;
        let route = request.extensions().get::<MatchedPath>()?.as_str().trim_end_matches('/');
        let route = TRACED.into_iter().find(|traced| *traced == route)?;
        if request.method() != Method::POST {
            return None;
        }
        let started = spans::Start::now();
        let span = spans::begin(&traces.tracer, request.headers(), started)?;
        let request_id = request.extensions().get::<ClientRequestId>();
        let origin = Origin {
            started,
            route,
            request_id: request_id.map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0)),
            model: state.model_name().to_owned(),
        };
        let (traces, request) = (Arc::clone(traces), Arc::default());
        Some(Self { traces, span: Box::new(span), request, origin, outcome: Outcome::default() })
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let Self { traces, span, request, origin, outcome } = self;
        request.with(|facts| {
            spans::finish(&traces.tracer, span, origin, facts, outcome, Instant::now());
        });
    }
}

/// Traces a request that the engine is to serve; its id must be known already.
pub(crate) async fn trace(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(mut finish) = Finish::begin(&state, &request) else { return next.run(request).await };
    request.extensions_mut().insert(Arc::clone(&finish.request));
    let response = next.run(request).await;
    finish.outcome.status = Some(response.status().as_u16());
    finish.outcome.error = response.extensions().get::<ApiError>().map(ErrorNames::of);
    response.map(|body| watched(body, finish))
}

impl BodyWatcher for Finish {
    fn note_whole(&mut self) {
        self.outcome.is_whole = true;
    }
}
