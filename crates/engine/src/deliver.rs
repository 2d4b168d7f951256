//! What becomes of a committed step's tokens: usage, ledger, metrics, events.

use std::time::Instant;

use sconce_types::{End, Executor, ScheduledBatch};

use crate::{
    RequestError, RequestEvent, TokenEvent, engine_loop::EngineLoop, publish::PUBLISHED_AT_ONCE,
};

impl<E: Executor> EngineLoop<E> {
    /// Remembers requests that must not go on, as what bounds them panicked.
    fn note_lost_constraints(&mut self) {
        let unfinished = self.outputs.iter().filter(|output| output.finish.is_none());
        let lost = unfinished
            .map(|output| output.request)
            .filter(|id| self.requests.get(id).is_some_and(|live| live.has_lost_constraint));
        self.failed.extend(lost);
    }

    /// Ends them.
    fn end_lost_constraints(&mut self) {
        let mut failed = std::mem::take(&mut self.failed);
        for id in failed.drain(..) {
            self.scheduler.cancel(id);
            let reason = "what bounds the request's tokens has failed".to_owned();
            self.end(id, End::Error, Some(RequestError::CannotRun { reason }));
        }
        self.failed = failed;
    }

    /// Tells ledger, metrics and readers what a committed step brought.
    pub(crate) fn deliver_step(&mut self, batch: &ScheduledBatch, step_ended: Instant) {
        self.tell_ledger(batch);
        // Before events are sent: a client that has its last token finds it in the metrics.
        self.publish_gauges();
        self.publish_tenants(step_ended);
        if self.ends_any() {
            let now = self.tenants.len() <= PUBLISHED_AT_ONCE;
            self.publish_load(0.0, now);
        }
        self.deliver(step_ended);
        self.end_lost_constraints();
    }

    /// Updates usage, metrics and minutes with a step's tokens, before any event is sent, and
    /// finishes the requests whose stop check matched.
    pub(crate) fn note_tokens(&mut self, batch: &ScheduledBatch) {
        for output in &mut self.outputs {
            let live = self.requests.get_mut(&output.request);
            if let (Some(live), Some(token)) = (live, output.token)
                && live.note_token(token)
                && output.finish.is_none()
            {
                self.scheduler.stop(output.request);
                output.finish = Some(End::StopCheck);
            }
        }
        self.note_lost_constraints();
        self.share_energy(self.ends_any());
        for sequence in &batch.sequences {
            if let Some(live) = self.requests.get_mut(&sequence.request) {
                live.settle(&self.metrics, self.tenants.get_mut(live.tenant));
            }
        }
        for output in self.outputs.iter().filter(|output| output.finish.is_some()) {
            if let Some(live) = self.requests.get_mut(&output.request) {
                live.refund();
            }
        }
    }

    /// Hands this step's entries to the ledger, which first waits until it has kept those of
    /// the step before: so at most one step's tokens can be lost with the process.
    pub(crate) fn tell_ledger(&mut self, batch: &ScheduledBatch) {
        let Self { sink, entries, requests, tenants, outputs, .. } = self;
        let Some(sink) = sink else { return };
        let mut outputs = outputs.iter().peekable();
        for sequence in &batch.sequences {
            let id = sequence.request;
            // Outputs come in the batch's order.
            let output = outputs.next_if(|output| output.request == id);
            let end = output.and_then(|output| output.finish);
            if let Some(live) = requests.get_mut(&id) {
                entries.push(live.labelled_entry(id, tenants.get(live.tenant), end));
            }
        }
        if !entries.is_empty() {
            sink.record(entries);
        }
    }

    fn deliver(&mut self, now: Instant) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            let Some(live) = self.requests.get_mut(&output.request) else { continue };
            if output.token.is_some() {
                live.observe_token(&self.metrics, self.tenants.get_mut(live.tenant), now);
            }
            let failed = match output.finish {
                Some(End::NonFiniteLogits) => {
                    self.metrics.corrupted_requests.inc();
                    Some(RequestError::NonFiniteLogits)
                }
                Some(End::NothingAllowed) => Some(live.why_nothing_is_allowed()),
                _ => None,
            };
            // Before the last event: a client that has it finds its request in the metrics,
            // and its place free.
            if let Some(finish) = output.finish {
                live.note_end(finish, now);
                if failed.is_some() {
                    self.metrics.request_success.with_label_values(&[finish.name()]).inc();
                } else {
                    live.observe_finish(&self.metrics, finish, now);
                }
                live.release();
            }
            // The channel has room for every event, so a failed send is a
            // reader that went away; its cancellation is on the way.
            if !output.prompt_logprobs.is_empty() {
                let _ = live.events.try_send(RequestEvent::PromptLogprobs {
                    start: output.prompt_logprobs_start,
                    logprobs: output.prompt_logprobs,
                });
            }
            if let Some(token) = output.token {
                let of_request = self.result.embeddings.iter().position(|e| e.0 == output.request);
                if let Some(at) = of_request {
                    let (_, embedding) = self.result.embeddings.swap_remove(at);
                    let _ = live.events.try_send(RequestEvent::Embedding(embedding));
                }
                let event = TokenEvent {
                    token,
                    logprobs: output.logprobs,
                    usage: *live.usage(),
                    price_nano: live.price_nano(),
                    finish: output.finish,
                };
                let _ = live.events.try_send(RequestEvent::Token(event));
            }
            if let Some(error) = failed {
                live.fail(error);
            }
            let Some(finish) = output.finish else { continue };
            if let Some(live) = self.requests.remove(&output.request) {
                self.keep(output.request, live, finish);
            }
        }
        self.outputs = outputs;
    }

    /// Whether the step that was just computed ends a request.
    pub(crate) fn ends_any(&self) -> bool {
        self.outputs.iter().any(|output| output.finish.is_some())
    }
}
