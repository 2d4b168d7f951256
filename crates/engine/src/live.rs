//! What the engine keeps of a request beside its scheduler state.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sconce_scheduler::{CheckedRequest, RequestMeter};
use sconce_types::{
    End, MeterEntry, MeterLabel, Metering, NotReady, Prices, RequestId, SamplingParams,
    ScheduledSequence, TenantId, TokenId,
};
use tokio::sync::mpsc;

use crate::{
    Metrics, RecordedRequest, RequestClock, RequestError, RequestEvent, StopCheck, TokenConstraint,
    shared::{Permit, Submission},
    tenants::KnownTenant,
};

/// An unfinished request.
pub(crate) struct LiveRequest {
    pub(crate) events: mpsc::Sender<RequestEvent>,
    pub(crate) tenant: TenantId,
    pub(crate) arrived: Instant,
    pub(crate) first_token: Option<Instant>,
    pub(crate) timeout: Option<Duration>,
    first_scheduled: Option<Instant>,
    num_preemptions: u32,
    last_token: Instant,
    meter: RequestMeter,
    /// The part of its usage that its tenant's sums contain.
    settled: Metering,
    stop: Option<Box<dyn StopCheck>>,
    pub(crate) constraint: Option<Box<dyn TokenConstraint>>,
    pub(crate) has_lost_constraint: bool,
    /// What it waits for, and how long it may; `None` once it is ready.
    pub(crate) not_ready: Option<(NotReady, Duration)>,
    scores_prompt: bool,
    /// Where its times are wanted.
    clock: Option<RequestClock>,
    prompt_len: usize,
    max_tokens: u32,
    request_id: Arc<str>,
    arrived_unix_ms: u64,
    prices: Option<Prices>,
    is_labelled: bool,
    recording: Option<Box<Recording>>,
    permit: Permit,
}

/// What is kept of a request that is recorded.
struct Recording {
    prompt: Vec<TokenId>,
    params: SamplingParams,
    tokens: Vec<TokenId>,
}

impl LiveRequest {
    /// What the engine keeps of a submission, and what its scheduler gets.
    pub(crate) fn new(
        submission: Submission,
        prices: Option<Prices>,
        is_recorded: bool,
    ) -> (Self, CheckedRequest) {
        let Submission { request: checked, arrived, .. } = submission;
        let since_arrival = SystemTime::now() - arrived.elapsed();
        let unix = since_arrival.duration_since(UNIX_EPOCH).unwrap_or_default();
        let request = checked.get();
        let recording = || Recording {
            prompt: request.prompt.clone(),
            params: SamplingParams::clone(&request.params),
            tokens: Vec::new(),
        };
        let live = Self {
            events: submission.events,
            tenant: request.tenant,
            arrived,
            first_token: None,
            timeout: submission.timeout,
            first_scheduled: None,
            num_preemptions: 0,
            last_token: arrived,
            meter: RequestMeter::new(request.prompt.len()),
            settled: Metering::default(),
            stop: submission.stop,
            constraint: submission.constraint,
            has_lost_constraint: false,
            not_ready: submission.not_ready,
            scores_prompt: submission.scores_prompt,
            clock: submission.clock,
            prompt_len: request.prompt.len(),
            max_tokens: request.params.max_tokens,
            request_id: submission.request_id,
            arrived_unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
            prices,
            is_labelled: false,
            recording: is_recorded.then(recording).map(Box::new),
            permit: submission.permit,
        };
        (live, checked)
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> &Metering {
        self.meter.usage()
    }

    /// It takes a slot, for the first time or again.
    pub(crate) fn note_admission(&mut self, metrics: &Metrics, now: Instant) {
        if self.first_scheduled.is_none() {
            self.first_scheduled = Some(now);
            self.meter.note_queued(self.age_ns(now));
            metrics.queue_time.observe((now - self.arrived).as_secs_f64());
        }
        if let Some(clock) = &self.clock {
            clock.note_scheduled(now);
        }
    }

    /// It holds so many blocks from now on.
    pub(crate) fn note_blocks(&mut self, num_blocks: usize, now: Instant) {
        self.meter.note_blocks(num_blocks, self.age_ns(now));
    }

    /// Its part of a step that ended then, and whether the step succeeded.
    pub(crate) fn note_step(
        &mut self,
        part: &ScheduledSequence,
        device_ns: u64,
        ended: Instant,
        is_computed: bool,
    ) {
        self.meter.note_step(part, device_ns, self.age_ns(ended));
        if is_computed {
            self.meter.note_computed(part);
        }
    }

    /// It was preempted.
    pub(crate) fn note_preemption(&mut self, now: Instant) {
        self.num_preemptions += 1;
        if let Some(clock) = &self.clock {
            clock.note_preemption(now);
        }
        self.note_release(now);
    }

    /// It was preempted, or has ended between two steps.
    pub(crate) fn note_release(&mut self, now: Instant) {
        self.meter.note_release(self.age_ns(now));
    }

    pub(crate) fn note_energy(&mut self, uj: u64) {
        self.meter.note_energy(uj);
    }

    fn age_ns(&self, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.arrived);
        u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
    }

    /// A token was generated; says whether it completes a stop string.
    pub(crate) fn note_token(&mut self, token: TokenId) -> bool {
        if self.scores_prompt {
            return false;
        }
        self.meter.note_token();
        if let Some(recording) = &mut self.recording {
            recording.tokens.push(token);
        }
        self.accept(token);
        let Some(stop) = &mut self.stop else { return false };
        // A panic in one request's check must not end the engine; the reader searches too.
        let ends = catch_unwind(AssertUnwindSafe(|| stop.ends_with(token)));
        ends.unwrap_or_else(|_| {
            tracing::error!("the check of a request's stop strings panicked");
            self.stop = None;
            false
        })
    }

    fn accept(&mut self, token: TokenId) {
        let Some(constraint) = &mut self.constraint else { return };
        let accepted = catch_unwind(AssertUnwindSafe(|| constraint.accept(token)));
        if accepted.is_err() {
            self.lose_constraint();
        }
    }

    /// Without its constraint a request must not go on; the engine ends it.
    fn lose_constraint(&mut self) {
        tracing::error!("a request's constraint panicked");
        self.constraint = None;
        self.has_lost_constraint = true;
    }

    /// Writes what it may generate next over `words`; says whether that is known yet.
    pub(crate) fn fill_mask(&mut self, words: &mut [u32]) -> bool {
        if let Some(constraint) = &mut self.constraint {
            match catch_unwind(AssertUnwindSafe(|| constraint.fill_mask(words))) {
                Ok(is_ready) => return is_ready,
                Err(_) => self.lose_constraint(),
            }
        }
        words.fill(u32::MAX);
        true
    }

    /// Why nothing is left that it may generate.
    pub(crate) fn why_nothing_is_allowed(&self) -> RequestError {
        let failure = || {
            let constraint = self.constraint.as_ref()?;
            catch_unwind(AssertUnwindSafe(|| constraint.failure())).ok().flatten()
        };
        failure().map_or(RequestError::NothingAllowed, |reason| RequestError::CannotRun { reason })
    }

    /// Adds what it used since the last call to its tenant's sums and to the metrics.
    pub(crate) fn settle(&mut self, metrics: &Metrics, tenant: Option<&mut KnownTenant>) {
        let fresh = self.meter.usage().since(&self.settled);
        self.settled = *self.meter.usage();
        if fresh.prompt_tokens > 0 {
            metrics.prompt_tokens.inc_by(u64::from(fresh.prompt_tokens));
        }
        metrics.generation_tokens.inc_by(u64::from(fresh.generated_tokens));
        if let Some(tenant) = tenant {
            tenant.note(&fresh);
        }
    }

    /// It uses no more tokens: what it had reserved beyond those is its tenant's again.
    pub(crate) fn refund(&mut self) {
        let Metering { prompt_tokens, generated_tokens, .. } = *self.meter.usage();
        self.permit.refund(u64::from(prompt_tokens) + u64::from(generated_tokens));
    }

    /// Its place is another request's from now on.
    pub(crate) fn release(&mut self) {
        self.permit.release();
    }

    /// The times of a token, once it is known to have been generated.
    pub(crate) fn observe_token(
        &mut self,
        metrics: &Metrics,
        tenant: Option<&mut KnownTenant>,
        now: Instant,
    ) {
        if self.first_token.is_none() {
            self.first_token = Some(now);
            if let Some(clock) = &self.clock {
                clock.note_first_token(now);
            }
            let ttft = (now - self.arrived).as_secs_f64();
            metrics.time_to_first_token.observe(ttft);
            if let Some(tenant) = tenant {
                tenant.metrics.time_to_first_token.observe(ttft);
            }
            if let Some(scheduled) = self.first_scheduled {
                metrics.prefill_time.observe((now - scheduled).as_secs_f64());
            }
        } else {
            metrics.inter_token_latency.observe((now - self.last_token).as_secs_f64());
        }
        self.last_token = now;
    }

    /// It has ended, however.
    pub(crate) fn note_end(&self, end: End, now: Instant) {
        if let Some(clock) = &self.clock {
            clock.note_end(now, end);
        }
    }

    pub(crate) fn observe_finish(&self, metrics: &Metrics, end: End, now: Instant) {
        let generated = self.usage().generated_tokens;
        metrics.request_success.with_label_values(&[end.name()]).inc();
        metrics.e2e_latency.observe((now - self.arrived).as_secs_f64());
        metrics.request_prompt_tokens.observe(self.prompt_len as f64);
        metrics.request_generation_tokens.observe(f64::from(generated));
        metrics.request_max_tokens.observe(f64::from(self.max_tokens));
        metrics.request_num_preemptions.observe(f64::from(self.num_preemptions));
        if let Some(scheduled) = self.first_scheduled {
            metrics.inference_time.observe((now - scheduled).as_secs_f64());
        }
        if let Some(first) = self.first_token {
            let decode = (now - first).as_secs_f64();
            metrics.decode_time.observe(decode);
            if generated > 1 {
                metrics.time_per_output_token.observe(decode / f64::from(generated - 1));
            }
        }
    }

    /// What its usage costs.
    pub(crate) fn price_nano(&self) -> Option<u64> {
        self.prices.map(|prices| prices.of(self.meter.usage()))
    }

    /// Its entry in the ledger as things are, with its label if it is the first.
    pub(crate) fn labelled_entry(
        &mut self,
        request: RequestId,
        tenant: Option<&KnownTenant>,
        end: Option<End>,
    ) -> MeterEntry {
        let (usage, price_nano) = (*self.usage(), self.price_nano());
        let mut entry = MeterEntry { request, label: None, usage, price_nano, end };
        if !std::mem::replace(&mut self.is_labelled, true) {
            entry.label = Some(MeterLabel {
                tenant: tenant.map_or_else(|| Arc::from(""), |t| Arc::clone(&t.tenant.name)),
                request_id: Arc::clone(&self.request_id),
                arrived_unix_ms: self.arrived_unix_ms,
            });
        }
        entry
    }

    /// What is kept of it, if it is recorded and generated anything.
    pub(crate) fn recorded(&mut self, id: RequestId, end: End) -> Option<RecordedRequest> {
        let Recording { prompt, params, tokens } = *self.recording.take()?;
        let request_id = Arc::clone(&self.request_id);
        let recorded = RecordedRequest { id, request_id, prompt, params, tokens, end };
        (!recorded.tokens.is_empty()).then_some(recorded)
    }

    /// Tells its reader that it ends without finishing.
    pub(crate) fn fail(&self, error: RequestError) {
        let _ = self.events.try_send(RequestEvent::Failed(error));
    }
}
