//! How requests come into the engine's loop, and how they leave it unfinished.

use std::time::Instant;

use sconce_scheduler::Refusal;
use sconce_types::{End, Executor, RequestId, TenantId};

use crate::{
    Overload, RequestError, TokenConstraint,
    admission::{self, Deadline},
    engine_loop::EngineLoop,
    live::LiveRequest,
    shared::Submission,
};

impl<E: Executor> EngineLoop<E> {
    pub(crate) fn accept(&mut self, submission: Submission) {
        self.given += 1;
        // Dropped before it was read. Its cancellation finds no request, which is harmless.
        if submission.events.is_closed() {
            self.metrics.request_success.with_label_values(&["abort"]).inc();
            return;
        }
        let (id, tenant) = (submission.request.get().id, submission.request.get().tenant);
        let known = self.tenants.get(tenant);
        let (prices, target) =
            known.map_or((None, None), |known| (known.tenant.prices, known.tenant.ttft_target));
        let (mut live, request) = LiveRequest::new(submission, prices, self.recorder.is_some());
        match self.scheduler.add_checked(request) {
            Ok(()) => {
                let arrived = self.shared.seconds(live.arrived);
                let deadlines = [
                    (live.not_ready.map(|(_, timeout)| timeout), Deadline::Ready),
                    (target, Deadline::FirstToken),
                    (live.timeout, Deadline::End),
                ];
                for (time, deadline) in deadlines {
                    let time = time.map_or(f64::INFINITY, |time| time.as_secs_f64());
                    self.deadlines.add(arrived + time, (id, deadline));
                }
                self.requests.insert(id, live);
            }
            Err(refusal) => {
                if let Some(known) = self.tenants.get(tenant) {
                    known.metrics.refused.inc();
                }
                let error = self.explain(tenant, &refusal);
                // Before the event is sent: its client may ask again at once.
                live.refund();
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

    /// A request that was not ready is, or never will be.
    pub(crate) fn make_ready(
        &mut self,
        id: RequestId,
        outcome: Result<Option<Box<dyn TokenConstraint>>, String>,
    ) {
        // It may have ended meanwhile.
        let Some(live) = self.requests.get_mut(&id) else { return };
        let Some((reason, _)) = live.not_ready.take() else { return };
        let waited = live.arrived.elapsed().as_secs_f64();
        self.metrics.not_ready_time.with_label_values(&[reason.name()]).observe(waited);
        match outcome {
            Ok(constraint) => {
                self.scheduler.unblock(id, constraint.is_some());
                live.constraint = constraint;
            }
            Err(reason) => {
                self.scheduler.cancel(id);
                self.end(id, End::Error, Some(RequestError::CannotRun { reason }));
            }
        }
    }

    /// Ends requests whose deadlines have passed.
    pub(crate) fn end_overdue(&mut self, now: Instant) {
        while let Some((id, deadline)) = self.deadlines.pop(self.shared.seconds(now)) {
            let Some(live) = self.requests.get(&id) else { continue };
            let error = match deadline {
                Deadline::Ready => match live.not_ready {
                    Some((reason, timeout)) => {
                        self.metrics.not_ready_expired.with_label_values(&[reason.name()]).inc();
                        RequestError::NotReady { reason, timeout }
                    }
                    None => continue,
                },
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
            self.end(id, End::Deadline, Some(error));
        }
        let requests = &self.requests;
        self.deadlines.tidy(requests.len(), |(id, _)| requests.contains_key(id));
    }

    /// Ends a request that the scheduler has forgotten and that has not finished.
    pub(crate) fn end(&mut self, id: RequestId, reason: End, error: Option<RequestError>) {
        self.share_energy(true);
        let Some(mut live) = self.requests.remove(&id) else { return };
        let now = Instant::now();
        live.note_release(now);
        live.note_end(reason, now);
        live.settle(&self.metrics, self.tenants.get_mut(live.tenant));
        live.refund();
        if self.sink.is_some() {
            let tenant = self.tenants.get(live.tenant);
            self.entries.push(live.labelled_entry(id, tenant, Some(reason)));
        }
        self.metrics.request_success.with_label_values(&[reason.name()]).inc();
        live.release();
        if let Some(error) = error {
            live.fail(error);
        }
        self.keep(id, live, reason);
    }

    /// Records a request that has ended, if requests are recorded.
    pub(crate) fn keep(&mut self, id: RequestId, mut live: LiveRequest, end: End) {
        let Some(recorder) = &mut self.recorder else { return };
        if let Some(recorded) = live.recorded(id, end) {
            recorder.record(recorded);
        }
    }
}
