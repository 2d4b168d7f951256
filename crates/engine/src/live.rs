//! What the engine keeps of a request beside its scheduler state.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sconce_types::{
    EndReason, MeterEntry, MeterLabel, Metering, Prices, RequestId, SamplingParams, TenantId,
    TokenId,
};
use tokio::sync::mpsc;

use crate::{
    EngineRequest, Metrics, RecordedRequest, RequestError, RequestEvent, handle::Permit,
    tenants::KnownTenant,
};

/// An unfinished request.
pub(crate) struct LiveRequest {
    pub(crate) events: mpsc::Sender<RequestEvent>,
    pub(crate) tenant: TenantId,
    pub(crate) arrived: Instant,
    pub(crate) first_token: Option<Instant>,
    pub(crate) usage: Metering,
    pub(crate) timeout: Option<Duration>,
    first_scheduled: Option<Instant>,
    last_token: Instant,
    /// Since when the blocks that it holds are not counted.
    held_since: Instant,
    prompt_len: usize,
    max_tokens: u32,
    request_id: Arc<str>,
    arrived_unix_ms: u64,
    prices: Option<Prices>,
    /// What of its usage its tenant's sums do not have yet.
    unnoted: Metering,
    is_labelled: bool,
    recording: Option<Box<Recording>>,
    _permit: Permit,
}

/// What is kept of a request that is recorded.
struct Recording {
    prompt: Vec<TokenId>,
    params: SamplingParams,
    tokens: Vec<TokenId>,
}

impl LiveRequest {
    pub(crate) fn new(
        request: &EngineRequest,
        arrived: Instant,
        events: mpsc::Sender<RequestEvent>,
        permit: Permit,
        prices: Option<Prices>,
        is_recorded: bool,
    ) -> Self {
        let since_arrival = SystemTime::now() - arrived.elapsed();
        let unix = since_arrival.duration_since(UNIX_EPOCH).unwrap_or_default();
        let recording = || Recording {
            prompt: request.prompt.clone(),
            params: request.params.clone(),
            tokens: Vec::new(),
        };
        Self {
            events,
            tenant: request.tenant,
            arrived,
            first_token: None,
            usage: Metering::default(),
            timeout: request.timeout,
            first_scheduled: None,
            last_token: arrived,
            held_since: arrived,
            prompt_len: request.prompt.len(),
            max_tokens: request.params.max_tokens,
            request_id: Arc::clone(&request.request_id),
            arrived_unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
            prices,
            unnoted: Metering::default(),
            is_labelled: false,
            recording: is_recorded.then(recording).map(Box::new),
            _permit: permit,
        }
    }

    /// It takes a seat, for the first time or again.
    pub(crate) fn note_admission(&mut self, metrics: &Metrics, now: Instant) {
        self.held_since = now;
        if self.first_scheduled.is_none() {
            self.first_scheduled = Some(now);
            let queued = now - self.arrived;
            self.usage.queue_ns = u64::try_from(queued.as_nanos()).unwrap_or(u64::MAX);
            metrics.queue_time.observe(queued.as_secs_f64());
        }
    }

    /// Its part of a step, and the blocks that it held until the step's end.
    pub(crate) fn note_step(&mut self, device_ns: u64, blocks: usize, ended: Instant) {
        let held = ended.saturating_duration_since(self.held_since).as_nanos();
        self.held_since = ended;
        let block_ns = u64::try_from(held * blocks as u128).unwrap_or(u64::MAX);
        for usage in [&mut self.usage, &mut self.unnoted] {
            usage.device_ns += device_ns;
            usage.block_ns += block_ns;
        }
    }

    pub(crate) fn note_energy(&mut self, uj: u64) {
        for usage in [&mut self.usage, &mut self.unnoted] {
            crate::metering::add_energy(usage, uj);
        }
    }

    /// A token was generated.
    pub(crate) fn note_token(&mut self, token: TokenId, num_cached_tokens: usize) {
        if self.usage.generated_tokens == 0 {
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            for usage in [&mut self.usage, &mut self.unnoted] {
                usage.prompt_tokens = count(self.prompt_len);
                usage.cached_tokens = count(num_cached_tokens);
            }
        }
        self.usage.generated_tokens += 1;
        self.unnoted.generated_tokens += 1;
        if let Some(recording) = &mut self.recording {
            recording.tokens.push(token);
        }
    }

    /// Brings its tenant's sums up to date.
    pub(crate) fn settle(&mut self, tenant: Option<&mut KnownTenant>) {
        let unnoted = std::mem::take(&mut self.unnoted);
        if let Some(tenant) = tenant {
            tenant.spend(u64::from(unnoted.generated_tokens));
            tenant.note(&unnoted);
        }
    }

    /// The times of a token, once it is known to have been generated.
    pub(crate) fn observe_token(
        &mut self,
        metrics: &Metrics,
        tenant: Option<&mut KnownTenant>,
        now: Instant,
    ) {
        metrics.generation_tokens.inc();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            metrics.prompt_tokens.inc_by(self.prompt_len as u64);
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

    pub(crate) fn observe_finish(&self, metrics: &Metrics, reason: &str, now: Instant) {
        let generated = self.usage.generated_tokens;
        metrics.request_success.with_label_values(&[reason]).inc();
        metrics.e2e_latency.observe((now - self.arrived).as_secs_f64());
        metrics.request_prompt_tokens.observe(self.prompt_len as f64);
        metrics.request_generation_tokens.observe(f64::from(generated));
        metrics.request_max_tokens.observe(f64::from(self.max_tokens));
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
        self.prices.map(|prices| prices.of(&self.usage))
    }

    /// Its entry in the ledger as things are, with its label if it is the first.
    pub(crate) fn labelled_entry(
        &mut self,
        request: RequestId,
        tenant: Option<&KnownTenant>,
        end: Option<EndReason>,
    ) -> MeterEntry {
        let (usage, price_nano) = (self.usage, self.price_nano());
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
    pub(crate) fn recorded(&mut self, id: RequestId, end: EndReason) -> Option<RecordedRequest> {
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
