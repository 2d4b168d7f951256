//! From a span's end to the collector: a bounded queue, and the task that empties it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_proto::{
    tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};
use prost::Message as _;
use sconce_engine::{Metrics, TraceLoss};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::{Instant, sleep_until},
};

use super::client::Collector;

/// Spans of one request to the collector at most.
const MAX_BATCH: usize = 512;
/// Characters of a collector's own words that the log shows.
const MAX_SHOWN: usize = 200;
/// Least time between two lines in the log of spans that were lost.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Spans that were lost.
#[derive(Debug)]
struct Losses {
    metrics: Arc<Metrics>,
    /// Those that the log does not tell of yet.
    untold: AtomicU64,
}

impl Losses {
    fn note(&self, loss: TraceLoss, spans: u64) {
        self.metrics.trace_spans_dropped.with_label_values(&[loss.name()]).inc_by(spans);
        self.untold.fetch_add(spans, Ordering::Relaxed);
    }
}

/// The end of the queue that spans are put into. It never waits: what finds no room is lost.
#[derive(Debug)]
pub(super) struct SpanQueue {
    spans: mpsc::Sender<SpanData>,
    losses: Arc<Losses>,
}

/// The other end.
pub(super) struct Queued {
    spans: mpsc::Receiver<SpanData>,
    losses: Arc<Losses>,
}

impl SpanQueue {
    pub(super) fn new(max_queued: usize, metrics: &Arc<Metrics>) -> (Self, Queued) {
        let (sender, spans) = mpsc::channel(max_queued.max(1));
        let losses =
            Arc::new(Losses { metrics: Arc::clone(metrics), untold: AtomicU64::default() });
        (Self { spans: sender, losses: Arc::clone(&losses) }, Queued { spans, losses })
    }
}

impl SpanProcessor for SpanQueue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        match self.spans.try_send(span) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.losses.note(TraceLoss::QueueFull, 1),
            Err(TrySendError::Closed(_)) => self.losses.note(TraceLoss::Shutdown, 1),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends spans.
pub(super) struct Export {
    collector: Collector,
    /// Whom they are of.
    resource: ResourceAttributesWithSchema,
    spans: mpsc::Receiver<SpanData>,
    losses: Arc<Losses>,
    delay: Duration,
    /// Why the latest batch was not taken whole, if it was not.
    failure: Option<String>,
    reported: Option<Instant>,
}

impl Export {
    pub(super) fn new(
        collector: Collector,
        resource: &Resource,
        queued: Queued,
        delay: Duration,
    ) -> Self {
        let (Queued { spans, losses }, resource) = (queued, resource.into());
        Self { collector, resource, spans, losses, delay, failure: None, reported: None }
    }

    /// Sends batches until `stop`, or its other half's end, and then what is left.
    pub(super) async fn run(mut self, stop: oneshot::Receiver<()>) {
        let mut stop = Some(stop);
        loop {
            let batch = self.next_batch(&mut stop).await;
            if batch.is_empty() {
                return;
            }
            self.send(batch).await;
            self.report();
        }
    }

    /// Waits for spans: a whole batch of them, or what came in a while; none once the queue has
    /// been closed and is empty.
    async fn next_batch(&mut self, stop: &mut Option<oneshot::Receiver<()>>) -> Vec<SpanData> {
        let mut batch = Vec::new();
        let mut deadline = None;
        while batch.len() < MAX_BATCH {
            let room = MAX_BATCH - batch.len();
            tokio::select! {
                () = stopped(stop) => {
                    *stop = None;
                    self.spans.close();
                }
                received = self.spans.recv_many(&mut batch, room) => {
                    if received == 0 {
                        break;
                    }
                    deadline.get_or_insert_with(|| Instant::now() + self.delay);
                }
                // What is left at the end waits for nothing.
                () = passed(deadline), if stop.is_some() => break,
            }
        }
        batch
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        let rejected = match self.collector.post(request.encode_to_vec()).await {
            Ok(answer) => self.rejected(&answer).min(spans),
            Err(failure) => {
                self.losses.note(TraceLoss::ExportFailed, spans);
                self.failure = Some(failure.to_string());
                return;
            }
        };
        if rejected > 0 {
            self.losses.note(TraceLoss::Rejected, rejected);
        }
        self.losses.metrics.trace_spans_exported.inc_by(spans - rejected);
    }

    /// Spans that the collector took the others without.
    fn rejected(&mut self, answer: &[u8]) -> u64 {
        self.failure = None;
        // A collector that answers 200 has taken them, whatever else it says.
        let answer = ExportTraceServiceResponse::decode(answer).ok();
        let Some(part) = answer.and_then(|answer| answer.partial_success) else { return 0 };
        let rejected = u64::try_from(part.rejected_spans).unwrap_or(0);
        if rejected > 0 {
            let reason: String = part.error_message.chars().take(MAX_SHOWN).collect();
            self.failure = Some(format!("it rejected {rejected}: {reason:?}"));
        }
        rejected
    }

    /// Tells the log of lost spans, once in a while.
    fn report(&mut self) {
        let is_due = self.reported.is_none_or(|last| last.elapsed() >= REPORT_EVERY);
        if !is_due || self.losses.untold.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.reported = Some(Instant::now());
        let spans = self.losses.untold.swap(0, Ordering::Relaxed);
        let endpoint = self.collector.endpoint();
        match &self.failure {
            Some(failure) => tracing::warn!(
                "{spans} spans of traces are lost: {endpoint} did not take the latest: {failure}"
            ),
            None => tracing::warn!(
                "{spans} spans of traces are lost: {endpoint} takes them more slowly than they come"
            ),
        }
    }
}

/// Waits for the end, if it has yet to come.
async fn stopped(stop: &mut Option<oneshot::Receiver<()>>) {
    match stop {
        // Without a sender nobody will ask for more.
        Some(stop) => drop(stop.await),
        None => std::future::pending().await,
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
