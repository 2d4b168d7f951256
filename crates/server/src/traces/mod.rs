//! Traces over OTLP: a span for each request, and one for each of its phases in the engine.
//!
//! The engine knows nothing of spans. It writes when a request's phases began and ended into
//! the [`RequestClock`](sconce_engine::RequestClock) that came with it; spans are made of that
//! once the response is sent, put into a bounded queue, and sent from a task of their own.
//! Requests that are not sampled, and servers without a collector, make none of it.
//!
//! OpenTelemetry's own exporter is not used: it hides why a collector did not take spans, and
//! does not count those that are lost.

mod client;
mod context;
mod endpoint;
mod export;
mod request;
mod spans;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{Key, KeyValue, trace::TracerProvider as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use sconce_engine::Metrics;
use tokio::{sync::oneshot, task::JoinHandle};

pub use self::endpoint::{InvalidTracesEndpoint, TracesEndpoint};
pub(crate) use self::request::{RequestTrace, SequenceTrace, trace};
use self::{
    client::Collector,
    export::{Export, SpanQueue},
};

/// What spans say that they are of, unless the environment says something else.
const SERVICE: &str = "sconce";

/// How spans are sent.
#[derive(Clone, Debug)]
pub struct TracesConfig {
    /// Where to.
    pub endpoint: TracesEndpoint,
    headers: HeaderMap,
    /// How long the collector may take for a batch, all attempts together.
    pub timeout: Duration,
    /// How long a span waits for others at most.
    pub delay: Duration,
    /// Spans that may wait; what comes beyond is dropped, and counted.
    pub max_queued: usize,
}

/// A header that cannot be sent to the collector. Its value may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header {name:?} is none: its name or its value has characters that none may have")]
pub struct InvalidTracesHeader {
    name: String,
}

impl TracesConfig {
    /// OpenTelemetry's defaults.
    #[must_use]
    pub fn new(endpoint: TracesEndpoint) -> Self {
        Self {
            endpoint,
            headers: HeaderMap::new(),
            timeout: Duration::from_secs(10),
            delay: Duration::from_secs(5),
            max_queued: 2048,
        }
    }

    /// Adds a header that the collector asks for, such as a key.
    ///
    /// # Errors
    /// It cannot be sent.
    pub fn add_header(&mut self, name: &str, value: &str) -> Result<(), InvalidTracesHeader> {
        let invalid = || InvalidTracesHeader { name: name.to_owned() };
        let name: HeaderName = name.parse().map_err(|_| invalid())?;
        let mut value: HeaderValue = value.parse().map_err(|_| invalid())?;
        value.set_sensitive(true);
        self.headers.append(name, value);
        Ok(())
    }
}

/// The way of spans to a collector.
#[derive(Debug)]
pub struct Traces {
    tracer: SdkTracer,
    running: Mutex<Option<Running>>,
}

/// The task that sends.
#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Traces {
    /// Starts the task that sends spans, in the runtime that this is called in. Which traces are
    /// sampled, and what the service is called, is OpenTelemetry's environment's to say.
    #[must_use]
    pub fn start(config: &TracesConfig, metrics: &Arc<Metrics>) -> Self {
        let resource = resource();
        let (queue, queued) = SpanQueue::new(config.max_queued, metrics);
        let export = Export::new(Collector::new(config), &resource, queued, config.delay);
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(export.run(stopped));
        let running = Mutex::new(Some(Running { stop, task }));
        Self { tracer: provider.tracer(SERVICE), running }
    }

    /// Sends the spans that wait, for so long at most; then none are sent any more.
    pub async fn shutdown(&self, within: Duration) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { stop, mut task }) = running else { return };
        // A task that has ended has sent them.
        let _ = stop.send(());
        if tokio::time::timeout(within, &mut task).await.is_err() {
            task.abort();
            // From then on what comes is known to be lost.
            let _ = task.await;
            tracing::warn!(
                "the collector of traces did not take the last spans within {} s: they are lost",
                within.as_secs_f64()
            );
        }
    }
}

/// Whom spans are of: the environment's `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`,
/// else the server's own name.
fn resource() -> Resource {
    let name = Key::from_static_str("service.name");
    let found = Resource::builder().build().get(&name);
    let is_named = found.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder();
    let builder = if is_named { builder } else { builder.with_service_name(SERVICE) };
    builder.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build()
}
