//! From what was noted of a request to its spans.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::http::HeaderMap;
use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value,
    trace::{Event, Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use sconce_engine::{End, RequestTimes};
use sconce_types::Metering;

use super::{
    context,
    request::{ErrorNames, Facts, Outcome, Sequence},
};

/// A request's span, as vLLM calls it.
const REQUEST: &str = "llm_request";
/// Sequences of a request whose phases are shown: one may have hundreds.
const MAX_SHOWN: usize = 16;

/// A moment by both clocks: spans are dated by the second, what is between by the first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    instant: Instant,
    system: SystemTime,
}

impl Start {
    pub(super) fn now() -> Self {
        Self { instant: Instant::now(), system: SystemTime::now() }
    }

    fn date(&self, at: Instant) -> SystemTime {
        self.system + at.saturating_duration_since(self.instant)
    }
}

/// What is known of a request when it comes.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) started: Start,
    pub(super) route: &'static str,
    pub(super) request_id: Arc<str>,
    pub(super) model: String,
}

/// Begins a request's span in the trace that its headers name; `None` if it is not sampled.
pub(super) fn begin(tracer: &SdkTracer, headers: &HeaderMap, start: Start) -> Option<Span> {
    let builder =
        tracer.span_builder(REQUEST).with_kind(SpanKind::Server).with_start_time(start.system);
    let span = tracer.build_with_context(builder, &context::of_request(headers));
    span.is_recording().then_some(span)
}

/// Ends a request's span, and makes those of its phases.
pub(super) fn finish(
    tracer: &SdkTracer,
    span: &mut Span,
    origin: &Origin,
    facts: &Facts,
    outcome: &Outcome,
    now: Instant,
) {
    // One that the engine never got has no times.
    let sequences: Vec<_> =
        facts.sequences.iter().filter_map(|sequence| Phases::of(sequence, now)).collect();
    describe(span, origin, facts, outcome);
    measure(span, facts, &sequences);
    span.end_with_timestamp(origin.started.date(now));
    let parent = Context::new().with_remote_span_context(span.span_context().clone());
    let is_one = sequences.len() == 1;
    for (index, sequence) in (0_i64..).zip(sequences.iter().take(MAX_SHOWN)) {
        sequence.tell(tracer, &parent, origin.started, (!is_one).then_some(index));
    }
}

/// Says what was asked for, and how it ended.
fn describe(span: &mut Span, origin: &Origin, facts: &Facts, outcome: &Outcome) {
    let mut set = |key: &'static str, value: Value| span.set_attribute(KeyValue::new(key, value));
    set("gen_ai.request.id", Arc::clone(&origin.request_id).into());
    set("gen_ai.response.model", origin.model.clone().into());
    set("http.request.method", "POST".into());
    set("http.route", origin.route.into());
    if let Some(tenant) = &facts.tenant {
        set("sconce.tenant", Arc::clone(tenant).into());
    }
    if let Some(sampling) = facts.sampling {
        set("gen_ai.request.n", count(sampling.n));
        set("gen_ai.request.temperature", decimal(sampling.temperature).into());
        set("gen_ai.request.top_p", decimal(sampling.top_p).into());
    }
    if let Some(max_tokens) = facts.max_tokens {
        set("gen_ai.request.max_tokens", i64::from(max_tokens).into());
    }
    if let Some(status) = outcome.status {
        set("http.response.status_code", i64::from(status).into());
    }
    let is_refused = outcome.status.is_some_and(|status| status >= 400);
    let error = facts.error.or(outcome.error);
    let (kind, status) = match error {
        Some(ErrorNames { kind, code: None }) => (kind, kind.to_owned()),
        Some(ErrorNames { kind, code: Some(code) }) => (code, format!("{kind}, {code}")),
        None if is_refused => ("http", "the request was refused".to_owned()),
        None if outcome.is_whole => return,
        None => ("cancelled", "the answer was not sent to its end".to_owned()),
    };
    set("error.type", kind.into());
    span.set_status(Status::error(status));
}

/// Says what was used, and how long it took: with several sequences until the first of them had
/// a token, and the longest that any of them took for the rest.
fn measure(span: &mut Span, facts: &Facts, sequences: &[Phases]) {
    if sequences.is_empty() {
        return;
    }
    let mut set = |key: &'static str, value: Value| span.set_attribute(KeyValue::new(key, value));
    set("gen_ai.usage.prompt_tokens", count(facts.prompt_tokens));
    let generated = sequences.iter().map(|s| s.usage.generated_tokens as usize).sum();
    set("gen_ai.usage.completion_tokens", count(generated));
    set("gen_ai.usage.num_sequences", count(sequences.len()));
    let preemptions = sequences.iter().map(|s| s.times.num_preemptions as usize).sum();
    set("sconce.num_preemptions", count(preemptions));
    let reasons: Vec<StringValue> =
        sequences.iter().filter_map(Phases::finish_reason).map(Into::into).collect();
    if !reasons.is_empty() {
        set("gen_ai.response.finish_reasons", Value::Array(Array::String(reasons)));
    }
    let longest = |of: fn(&Phases) -> Option<Duration>| sequences.iter().filter_map(of).max();
    let first_token = sequences.iter().filter_map(|s| between(Some(s.arrived), s.first_token));
    for (key, time) in [
        ("gen_ai.latency.time_in_queue", longest(|s| between(Some(s.arrived), s.scheduled))),
        ("gen_ai.latency.time_to_first_token", first_token.min()),
        ("gen_ai.latency.time_in_model_prefill", longest(|s| between(s.scheduled, s.first_token))),
        ("gen_ai.latency.time_in_model_decode", longest(|s| between(s.first_token, Some(s.ended)))),
        (
            "gen_ai.latency.time_in_model_inference",
            longest(|s| between(s.scheduled, Some(s.ended))),
        ),
        ("gen_ai.latency.e2e", longest(|s| between(Some(s.arrived), Some(s.ended)))),
    ] {
        if let Some(time) = time {
            set(key, time.as_secs_f64().into());
        }
    }
}

/// One of the engine's requests, with when its phases began.
struct Phases {
    times: RequestTimes,
    usage: Metering,
    arrived: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    ended: Instant,
}

impl Phases {
    /// Those of a sequence that has ended, or was left, by `now`.
    fn of(sequence: &Sequence, now: Instant) -> Option<Self> {
        let times = sequence.clock.read();
        let ended = times.ended.map(|(at, _)| at).or(sequence.left).unwrap_or(now).min(now);
        // The engine may go on with one that was left, until it hears of that.
        let by_then = |at: Option<Instant>| at.filter(|&at| at <= ended);
        Some(Self {
            arrived: times.arrived?.min(ended),
            scheduled: by_then(times.first_scheduled),
            first_token: by_then(times.first_token),
            ended,
            usage: sequence.usage,
            times,
        })
    }

    /// How it ended, if nobody and nothing cut it off.
    fn finish_reason(&self) -> Option<&'static str> {
        let (_, end) = self.times.ended?;
        let is_natural = matches!(end, End::Stop { .. } | End::StopCheck | End::Length);
        (is_natural && self.usage.generated_tokens > 0).then(|| end.name())
    }

    /// Makes the spans of its phases, under `parent`.
    fn tell(&self, tracer: &SdkTracer, parent: &Context, start: Start, index: Option<i64>) {
        let Metering { prompt_tokens, cached_tokens, generated_tokens, .. } = self.usage;
        let number = |key, count: u32| KeyValue::new(key, i64::from(count));
        let phase =
            |name: &'static str, from: Instant, to: Instant, mut attributes: Vec<KeyValue>| {
                attributes.extend(index.map(|index| KeyValue::new("sconce.sequence", index)));
                let builder = tracer
                    .span_builder(name)
                    .with_kind(SpanKind::Internal)
                    .with_start_time(start.date(from))
                    .with_attributes(attributes)
                    .with_events(self.events(start, from, to));
                tracer.build_with_context(builder, parent).end_with_timestamp(start.date(to));
            };
        phase("queue", self.arrived, self.scheduled.unwrap_or(self.ended), Vec::new());
        let Some(scheduled) = self.scheduled else { return };
        let first_token = self.first_token.unwrap_or(self.ended);
        let prompt = vec![
            number("sconce.prompt_tokens", prompt_tokens),
            number("sconce.cached_tokens", cached_tokens),
        ];
        phase("prefill", scheduled, first_token, prompt);
        // Nothing follows the token of an answer that has only one.
        if first_token < self.ended {
            let answer = vec![number("sconce.generated_tokens", generated_tokens)];
            phase("decode", first_token, self.ended, answer);
        }
    }

    /// Preemptions within a phase.
    fn events(&self, start: Start, from: Instant, to: Instant) -> Vec<Event> {
        let lost = self.times.preemptions.iter().map(|preemption| ("preempted", preemption.at));
        let taken = self.times.preemptions.iter().filter_map(|p| Some(("resumed", p.resumed?)));
        let mut events: Vec<_> =
            lost.chain(taken).filter(|&(_, at)| from <= at && at < to).collect();
        events.sort_by_key(|&(_, at)| at);
        let event = |(name, at)| Event::new(name, start.date(at), Vec::new(), 0);
        events.into_iter().map(event).collect()
    }
}

fn between(from: Option<Instant>, to: Option<Instant>) -> Option<Duration> {
    Some(to?.saturating_duration_since(from?))
}

fn count(count: usize) -> Value {
    Value::I64(i64::try_from(count).unwrap_or(i64::MAX))
}

/// The number that was written in the request: 0.7, not what is nearest to it in 32 bits.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}
