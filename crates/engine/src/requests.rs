//! How requests come into the engine's loop, and how they leave it unfinished.

use std::{sync::Arc, time::Instant};

use sconce_scheduler::{Refusal, Request};
use sconce_types::{EndReason, Executor, RequestId, TenantId};

use crate::{
    Overload, RequestError,
    admission::{self, Deadline},
    engine_loop::EngineLoop,
    handle::Submission,
    live::LiveRequest,
};

impl<E: Executor> EngineLoop<E> {
    pub(crate) fn accept(&mut self, submission: Submission) {
        let Submission { id, request, stop, arrived, events, permit } = submission;
        self.given += 1;
        // Dropped before it got here: its cancellation, read or not, finds no request to end.
        if events.is_closed() {
            self.metrics.request_success.with_label_values(&["abort"]).inc();
            return;
        }
        let now = Instant::now();
        let refused = admission::check(&request, &mut self.tenants, now).err();
        let tenant = request.tenant;
        let tokens = admission::tokens_at_most(&request);
        let known = self.tenants.get(tenant);
        let (prices, target) =
            known.map_or((None, None), |known| (known.tenant.prices, known.tenant.ttft_target));
        let is_recorded = self.recorder.is_some();
        let mut live =
            LiveRequest::new(&request, stop, arrived, events, permit, prices, is_recorded);
        let timeout = request.timeout;
        let outcome = refused.map_or_else(
            || {
                let request = Request {
                    id,
                    prompt: request.prompt,
                    params: Arc::new(request.params),
                    tenant,
                    priority: request.priority,
                    // No tenant finds what another computed, nor learns from its own
                    // times what that was.
                    cache_salt: u64::from(tenant.0),
                };
                let added = self.scheduler.add(request);
                if added.is_ok()
                    && let Some(known) = self.tenants.get_mut(tenant)
                {
                    live.reserve(known.minute.reserve(tokens, now));
                }
                added.map_err(|refusal| self.explain(tenant, &refusal))
            },
            Err,
        );
        match outcome {
            Ok(()) => {
                let at = |time, deadline| Some((arrived.checked_add(time?)?, deadline));
                let deadlines = [at(target, Deadline::FirstToken), at(timeout, Deadline::End)];
                for (at, deadline) in deadlines.into_iter().flatten() {
                    self.deadlines.add(at, id, deadline);
                }
                self.requests.insert(id, live);
            }
            Err(error) => {
                if let Some(known) = self.tenants.get(tenant) {
                    known.metrics.refused.inc();
                }
                live.fail(error);
            }
        }
    }

    /// What the scheduler refuses, in the client's terms.
    fn explain(&self, tenant: TenantId, refusal: &Refusal) -> RequestError {
        match *refusal {
            Refusal::TenantQueueFull { max_queued } | Refusal::QueueFull { max_queued } => {
                let one = self.scheduler.predict(&self.model, tenant, 1).ttft;
                let place = one / (max_queued + 1) as f64;
                let reason = match refusal {
                    Refusal::QueueFull { .. } => Overload::EngineQueueFull,
                    _ => Overload::QueueFull { max_queued },
                };
                admission::overloaded(reason, place)
            }
            ref refusal => RequestError::Refused(refusal.to_string()),
        }
    }

    /// Ends what can no longer matter.
    pub(crate) fn end_overdue(&mut self, now: Instant) {
        while let Some((id, deadline)) = self.deadlines.pop(now) {
            let Some(live) = self.requests.get(&id) else { continue };
            let error = match deadline {
                Deadline::FirstToken if live.first_token.is_some() => continue,
                Deadline::FirstToken => {
                    let known = self.tenants.get(live.tenant);
                    let limit = known.and_then(|known| known.tenant.ttft_target);
                    let limit = limit.unwrap_or(now - live.arrived);
                    let wait = self.scheduler.predict(&self.model, live.tenant, 1).ttft;
                    if let Some(known) = known {
                        known.metrics.refused.inc();
                    }
                    admission::overloaded(Overload::Late { limit }, wait)
                }
                Deadline::End => {
                    RequestError::TimedOut { timeout: live.timeout.unwrap_or_default() }
                }
            };
            self.scheduler.cancel(id);
            self.end(id, EndReason::Deadline, Some(error));
        }
        let requests = &self.requests;
        self.deadlines.tidy(requests.len(), |id| requests.contains_key(&id));
    }

    /// Ends a request that the scheduler has forgotten and that has not finished.
    pub(crate) fn end(&mut self, id: RequestId, reason: EndReason, error: Option<RequestError>) {
        self.share_energy(true);
        let Some(mut live) = self.requests.remove(&id) else { return };
        live.note_release(Instant::now());
        live.settle(&self.metrics, self.tenants.get_mut(live.tenant));
        live.refund(self.tenants.get_mut(live.tenant));
        if self.sink.is_some() {
            let tenant = self.tenants.get(live.tenant);
            self.entries.push(live.labelled_entry(id, tenant, Some(reason)));
        }
        let label = match reason {
            EndReason::Error => "error",
            EndReason::Deadline => "deadline",
            _ => "abort",
        };
        self.metrics.request_success.with_label_values(&[label]).inc();
        if let Some(error) = error {
            live.fail(error);
        }
        self.keep(id, live, reason);
    }

    /// Records a request that has ended, if requests are recorded.
    pub(crate) fn keep(&mut self, id: RequestId, mut live: LiveRequest, end: EndReason) {
        let Some(recorder) = &mut self.recorder else { return };
        if let Some(recorded) = live.recorded(id, end) {
            recorder.record(recorded);
        }
    }
}
