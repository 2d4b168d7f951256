//! Spans of requests, as a collector gets them.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Request, StatusCode},
    routing::post,
};
use futures::StreamExt as _;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::{AnyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind, status::StatusCode as SpanStatus},
};
use prost::Message as _;
use sconce_engine::EngineHandle;
use sconce_server::{ServerConfig, TenantDirectory, Traces, TracesConfig, TracesEndpoint};
use sconce_tenants::{NewTenant, add};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt as _;

use super::{
    app::{App, CHAT, COMPLETIONS},
    embeddings,
};

const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const SECRET: &str = "sk-what-nobody-may-read";

/// What a collector was sent.
#[derive(Clone, Default)]
struct Collected {
    bodies: Arc<Mutex<Vec<Bytes>>>,
    /// What it answers: these one after another, then 200.
    answers: Arc<Mutex<Vec<StatusCode>>>,
    /// Spans of each batch that it does not take.
    rejects: i64,
    is_deaf: bool,
}

impl Collected {
    async fn take(self, headers: HeaderMap, body: Bytes) -> (StatusCode, Vec<u8>) {
        if self.is_deaf {
            pending::<()>().await;
        }
        for (name, value) in [("content-type", "application/x-protobuf"), ("x-key", "k")] {
            assert_eq!(headers[name], value);
        }
        let answer = self.answers.lock().expect("nobody panics with it").pop();
        let answer = answer.unwrap_or(StatusCode::OK);
        if answer.is_success() {
            self.bodies.lock().expect("nobody panics with it").push(body);
        }
        let rejected_spans = self.rejects;
        let partial_success =
            ExportTracePartialSuccess { rejected_spans, error_message: "x".into() };
        let partial_success = (rejected_spans > 0).then_some(partial_success);
        (answer, ExportTraceServiceResponse { partial_success }.encode_to_vec())
    }

    fn spans(&self) -> Vec<Span> {
        let bodies = self.bodies.lock().expect("nobody panics with it");
        let requests = bodies.iter().map(|body| {
            assert!(!contains(body, SECRET), "spans hold text of a prompt or an answer");
            ExportTraceServiceRequest::decode(&**body).expect("it is OTLP")
        });
        let mut spans = Vec::new();
        for of_resource in requests.flat_map(|request| request.resource_spans) {
            let resource = of_resource.resource.expect("whom they are of");
            let service = resource.attributes.iter().find(|a| a.key == "service.name");
            let service = service.and_then(|a| a.value.clone()).expect("a name");
            assert_eq!(service.value, Some(Any::StringValue("sconce".into())));
            spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        spans
    }
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Completes a server's configuration with what needs its engine.
type Complete<'a> = dyn FnOnce(ServerConfig, &EngineHandle) -> ServerConfig + 'a;

/// A server whose requests are traced.
struct Traced {
    app: App,
    traces: Arc<Traces>,
    collected: Collected,
}

impl Traced {
    fn new(collected: Collected) -> Self {
        Self::with(ServerConfig::default(), collected, |_| {})
    }

    fn with(
        config: ServerConfig,
        collected: Collected,
        change: impl FnOnce(&mut TracesConfig),
    ) -> Self {
        Self::over(collected, change, |complete| App::with(config, complete))
    }

    fn over(
        collected: Collected,
        change: impl FnOnce(&mut TracesConfig),
        make: impl FnOnce(Box<Complete<'_>>) -> App,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("it can be");
        let address = listener.local_addr().expect("it listens");
        let url = format!("http://{address}/v1/traces");
        let endpoint = TracesEndpoint::parse("--flag", &url).expect("a URL");
        // A batch is whole once the server ends.
        let delay = Duration::from_secs(3600);
        let mut traces_config = TracesConfig::new(endpoint);
        traces_config.delay = delay;
        traces_config.add_header("x-key", "k").expect("a header");
        change(&mut traces_config);
        let mut started = None;
        let app = make(Box::new(|config, engine| {
            let traces = Traces::start(&traces_config, engine.metrics());
            let traces = started.insert(Arc::new(traces));
            let collected = collected.clone();
            let take = move |headers, body| collected.take(headers, body);
            let router = Router::new().route("/v1/traces", post(take));
            let listener = TcpListener::from_std(listener).expect("inside a runtime");
            tokio::spawn(async { axum::serve(listener, router).await });
            ServerConfig { traces: Some(Arc::clone(traces)), ..config }
        }));
        Self { app, traces: started.expect("it was started"), collected }
    }

    fn ask(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> (StatusCode, String) {
        let request = request(path, headers, body);
        let (status, _, text) = self.app.send(request);
        (status, text)
    }

    fn shut_down(&self, within: Duration) {
        self.app.runtime.block_on(self.traces.shutdown(within));
    }

    /// Ends, and gives the spans of all requests.
    fn spans(self) -> Vec<Span> {
        self.shut_down(Duration::from_secs(60));
        let lost = self.metric("sconce:trace_spans_dropped_total");
        assert_eq!(lost, Vec::<String>::new(), "no span is lost");
        let spans = self.collected.spans();
        let exported = self.app.engine.metrics().trace_spans_exported.get();
        assert_eq!(exported, spans.len() as u64);
        spans
    }

    /// The lines of a metric that are not 0.
    fn metric(&self, name: &str) -> Vec<String> {
        let text = self.app.engine.metrics().render(true);
        let lines = text.lines().filter(|line| line.starts_with(name) && !line.ends_with(" 0"));
        lines.map(ToOwned::to_owned).collect()
    }
}

fn request(path: &str, headers: &[(&str, &str)], body: &Value) -> Request<Body> {
    let mut request = Request::post(path).header("content-type", "application/json");
    for &(name, value) in headers {
        request = request.header(name, value);
    }
    request.body(Body::from(body.to_string())).expect("a request")
}

/// A request of each wire for so many tokens of each of its choices.
fn body(path: &str, max_tokens: u32, stream: bool) -> Value {
    let message = json!([{ "role": "user", "content": SECRET }]);
    let mut body = match path {
        COMPLETIONS => json!({ "prompt": SECRET, "ignore_eos": true }),
        CHAT => json!({ "messages": message, "ignore_eos": true }),
        MESSAGES => json!({ "model": "fake", "messages": message }),
        RESPONSES => json!({ "input": SECRET }),
        _ => panic!("{path}"),
    };
    let most = if path == RESPONSES { "max_output_tokens" } else { "max_tokens" };
    body[most] = max_tokens.into();
    body["stream"] = stream.into();
    body["temperature"] = json!(0.7);
    body["top_p"] = json!(0.9);
    body
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Any> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    let AnyValue { value } = found.value.as_ref()?;
    value.as_ref()
}

fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    match attribute(span, key) {
        Some(Any::StringValue(text)) => text,
        other => panic!("{key} is {other:?}"),
    }
}

fn number(span: &Span, key: &str) -> i64 {
    match attribute(span, key) {
        Some(&Any::IntValue(number)) => number,
        other => panic!("{key} is {other:?}"),
    }
}

fn seconds(span: &Span, key: &str) -> f64 {
    match attribute(span, key) {
        Some(&Any::DoubleValue(seconds)) => seconds,
        other => panic!("{key} is {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request's span and those of its phases, in their order.
fn only_request(spans: &[Span]) -> (&Span, Vec<&Span>) {
    let roots: Vec<_> = spans.iter().filter(|span| span.name == "llm_request").collect();
    let [root] = roots[..] else { panic!("{} requests", roots.len()) };
    let mut phases: Vec<_> = spans.iter().filter(|span| span.name != "llm_request").collect();
    phases.sort_by_key(|span| span.start_time_unix_nano);
    assert_eq!(root.kind, SpanKind::Server as i32);
    for phase in &phases {
        assert_eq!((&phase.trace_id, &phase.parent_span_id), (&root.trace_id, &root.span_id));
        assert_eq!(phase.kind, SpanKind::Internal as i32);
        assert!(root.start_time_unix_nano <= phase.start_time_unix_nano, "{phase:?}");
        assert!(phase.start_time_unix_nano <= phase.end_time_unix_nano, "{phase:?}");
        assert!(phase.end_time_unix_nano <= root.end_time_unix_nano, "{phase:?}");
    }
    (root, phases)
}

fn names<'a>(phases: &[&'a Span]) -> Vec<&'a str> {
    phases.iter().map(|phase| &*phase.name).collect()
}

/// The error's type, if the span's status is one.
fn error(span: &Span) -> Option<&str> {
    let is_error = span.status.as_ref().is_some_and(|s| s.code == SpanStatus::Error as i32);
    is_error.then(|| text(span, "error.type"))
}

#[test]
fn a_request_over_any_wire_has_a_span_with_its_phases() {
    for path in [COMPLETIONS, CHAT, MESSAGES, RESPONSES] {
        for stream in [false, true] {
            let traced = Traced::new(Collected::default());
            let parent = format!("00-{TRACE}-{PARENT}-01");
            let headers =
                [("traceparent", &*parent), ("tracestate", "a=1"), ("x-request-id", "mine-1")];
            let (status, answer) = traced.ask(path, &headers, &body(path, 9, stream));
            assert_eq!(status, StatusCode::OK, "{answer}");
            let histograms = Arc::clone(traced.app.engine.metrics());
            let spans = traced.spans();
            let (root, phases) = only_request(&spans);
            assert_eq!(hex(&root.trace_id), TRACE);
            assert_eq!((hex(&root.parent_span_id), &*root.trace_state), (PARENT.into(), "a=1"));
            assert_eq!(error(root), None);
            for (key, value) in [
                ("gen_ai.request.id", "mine-1"),
                ("gen_ai.response.model", "fake"),
                ("sconce.tenant", "default"),
                ("http.request.method", "POST"),
                ("http.route", path),
            ] {
                assert_eq!(text(root, key), value, "{key} of {path}");
            }
            let generated = number(root, "gen_ai.usage.completion_tokens");
            for (key, value) in [
                ("gen_ai.request.n", 1),
                ("gen_ai.request.max_tokens", 9),
                ("gen_ai.usage.num_sequences", 1),
                ("sconce.num_preemptions", 0),
                ("http.response.status_code", 200),
            ] {
                assert_eq!(number(root, key), value, "{key} of {path}");
            }
            assert_eq!(seconds(root, "gen_ai.request.temperature"), 0.7);
            assert_eq!(seconds(root, "gen_ai.request.top_p"), 0.9);
            assert!(number(root, "gen_ai.usage.prompt_tokens") >= SECRET.len() as i64);
            assert!((1..=9).contains(&generated), "{generated}");
            // Those wires cannot ignore an end that comes at once.
            let expected: &[_] =
                if generated > 1 { &["queue", "prefill", "decode"] } else { &["queue", "prefill"] };
            assert_eq!(names(&phases), expected, "{path}");
            for pair in phases.windows(2) {
                assert_eq!(pair[0].end_time_unix_nano, pair[1].start_time_unix_nano);
            }
            assert_eq!(
                number(phases[1], "sconce.prompt_tokens"),
                number(root, "gen_ai.usage.prompt_tokens")
            );
            assert_eq!(attribute(phases[0], "sconce.sequence"), None);
            for (key, histogram) in [
                ("gen_ai.latency.time_in_queue", &histograms.queue_time),
                ("gen_ai.latency.time_to_first_token", &histograms.time_to_first_token),
                ("gen_ai.latency.time_in_model_prefill", &histograms.prefill_time),
                ("gen_ai.latency.time_in_model_decode", &histograms.decode_time),
                ("gen_ai.latency.time_in_model_inference", &histograms.inference_time),
                ("gen_ai.latency.e2e", &histograms.e2e_latency),
            ] {
                let difference = seconds(root, key) - histogram.get_sample_sum();
                assert!(difference.abs() < 1e-9, "{key} of {path} is not what the metrics say");
            }
        }
    }
}

#[test]
fn each_choice_has_its_phases_and_prompts_are_counted_once() {
    let traced = Traced::new(Collected::default());
    let ask = json!({
        "prompt": ["abc", "de"], "max_tokens": 4, "n": 2, "best_of": 3, "ignore_eos": true
    });
    assert_eq!(traced.ask(COMPLETIONS, &[], &ask).0, StatusCode::OK);
    let spans = traced.spans();
    let (root, phases) = only_request(&spans);
    assert!(root.parent_span_id.is_empty(), "it begins its trace");
    for (key, value) in [
        ("gen_ai.request.n", 2),
        ("gen_ai.usage.num_sequences", 6),
        ("gen_ai.usage.prompt_tokens", 5),
        ("gen_ai.usage.completion_tokens", 24),
    ] {
        assert_eq!(number(root, key), value, "{key}");
    }
    for sequence in 0..6 {
        let own = phases.iter().copied().filter(|s| number(s, "sconce.sequence") == sequence);
        assert_eq!(names(&own.collect::<Vec<_>>()), ["queue", "prefill", "decode"]);
    }
    assert_eq!(phases.len(), 18);
    let Some(Any::ArrayValue(reasons)) = attribute(root, "gen_ai.response.finish_reasons") else {
        panic!("no reasons");
    };
    let length = AnyValue { value: Some(Any::StringValue("length".into())) };
    assert_eq!(reasons.values, vec![length; 6]);
}

#[test]
fn texts_that_are_embedded_have_the_phases_of_their_prompts() {
    let traced =
        Traced::over(Collected::default(), |_| {}, |complete| embeddings::app_with(None, complete));
    let texts = vec!["abc"; 20];
    let (status, answer) = traced.ask("/v1/embeddings", &[], &json!({ "input": texts }));
    assert_eq!(status, StatusCode::OK, "{answer}");
    let spans = traced.spans();
    let (root, phases) = only_request(&spans);
    for (key, value) in [
        ("gen_ai.usage.num_sequences", 20),
        ("gen_ai.usage.prompt_tokens", 60),
        ("gen_ai.usage.completion_tokens", 0),
    ] {
        assert_eq!(number(root, key), value, "{key}");
    }
    for name in ["queue", "prefill"] {
        let count = phases.iter().filter(|phase| phase.name == name).count();
        assert_eq!(count, 16, "the first are shown");
    }
    assert_eq!(phases.len(), 32, "no text is followed by anything");
    assert_eq!(attribute(root, "gen_ai.response.finish_reasons"), None);
}

#[test]
fn a_request_that_is_refused_or_fails_has_an_error() {
    let error_of = |path: &str, ask: Value| {
        let traced = Traced::new(Collected::default());
        let (status, answer) = traced.ask(path, &[], &ask);
        let spans = traced.spans();
        let (root, phases) = only_request(&spans);
        assert_eq!(number(root, "http.response.status_code"), i64::from(status.as_u16()));
        let phases = names(&phases).join(" ");
        (status.as_u16(), error(root).map(ToOwned::to_owned), phases, answer)
    };
    let unknown = format!("no-{SECRET}");
    let named = |mut ask: Value| {
        ask["model"] = unknown.clone().into();
        ask
    };
    for (path, ask, status, kind) in [
        (COMPLETIONS, named(body(COMPLETIONS, 3, false)), 404, "model_not_found"),
        (MESSAGES, named(body(MESSAGES, 3, true)), 404, "model_not_found"),
        (RESPONSES, body(RESPONSES, 4000, false), 400, "context_length_exceeded"),
        (CHAT, json!({ "messages": SECRET }), 400, "invalid_request_error"),
    ] {
        let (found, error, phases, answer) = error_of(path, ask);
        assert_eq!((found, error.as_deref()), (status, Some(kind)), "{answer}");
        assert_eq!(phases, "", "the engine never got it");
    }
    // Nothing may follow the first token: a whole answer is none, one that is streamed breaks off.
    for (stream, status) in [(false, 400), (true, 200)] {
        let ask = json!({
            "prompt": "x", "max_tokens": 3, "stream": stream,
            "structured_outputs": { "regex": "ab" }, "allowed_token_ids": [b'a'],
        });
        let (found, error, phases, answer) = error_of(COMPLETIONS, ask);
        assert_eq!((found, error.as_deref()), (status, Some("invalid_request_error")), "{answer}");
        assert_eq!(phases, "queue prefill decode");
    }
}

#[test]
fn a_request_whose_client_leaves_is_cancelled_with_what_it_had() {
    let traced = Traced::new(Collected::default());
    let ask = body(COMPLETIONS, 100, true);
    traced.app.runtime.block_on(async {
        let router = traced.app.router.clone();
        let response = router.oneshot(request(COMPLETIONS, &[], &ask)).await.expect("infallible");
        let mut body = response.into_body().into_data_stream();
        body.next().await.expect("a first chunk").expect("it is read");
    });
    // Before there is an answer: its body never comes.
    traced.app.runtime.block_on(async {
        let body = futures::stream::pending::<Result<Vec<u8>, std::convert::Infallible>>();
        let request = Request::post(CHAT).body(Body::from_stream(body)).expect("a request");
        let mut answer = Box::pin(traced.app.router.clone().oneshot(request));
        assert!(futures::poll!(&mut answer).is_pending());
    });
    let spans = traced.spans();
    let (early, streamed): (Vec<_>, Vec<_>) = spans.into_iter().partition(|span| {
        span.name == "llm_request" && attribute(span, "http.response.status_code").is_none()
    });
    assert_eq!(error(&early[0]), Some("cancelled"));
    let (root, phases) = only_request(&streamed);
    assert_eq!(error(root), Some("cancelled"));
    assert!(names(&phases).starts_with(&["queue", "prefill"]), "{:?}", names(&phases));
    assert!((1..=100).contains(&number(root, "gen_ai.usage.completion_tokens")));
}

#[test]
fn the_parent_says_whether_a_trace_is_sampled_and_a_malformed_one_is_none() {
    let traced = Traced::new(Collected::default());
    let malformed = format!("00-{}-{PARENT}-01", TRACE.to_uppercase());
    for (parent, route) in [
        (format!("00-{TRACE}-{PARENT}-00"), COMPLETIONS),
        (malformed, CHAT),
        ("nonsense".to_owned(), MESSAGES),
    ] {
        let headers = [("traceparent", &*parent), ("tracestate", "a=1")];
        assert_eq!(traced.ask(route, &headers, &body(route, 2, false)).0, StatusCode::OK);
    }
    // What does not go to the engine has no span.
    assert_eq!(traced.app.status("GET", "/v1/models", &[]), 200);
    assert_eq!(traced.app.status("GET", COMPLETIONS, &[]), 405);
    assert_eq!(traced.ask("/tokenize", &[], &json!({ "prompt": "x" })).0, StatusCode::OK);
    let spans = traced.spans();
    let roots: Vec<_> = spans.iter().filter(|span| span.name == "llm_request").collect();
    let routes: Vec<_> = roots.iter().map(|root| text(root, "http.route")).collect();
    assert_eq!(routes, [CHAT, MESSAGES], "one that is not sampled has none");
    for root in roots {
        assert!(root.parent_span_id.is_empty() && root.trace_state.is_empty(), "{root:?}");
        assert_ne!(hex(&root.trace_id), TRACE);
    }
}

#[test]
fn spans_name_the_tenant() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sconce.toml");
    let key = add(&file, "acme", &NewTenant::default()).expect("it is new");
    let tenants = Arc::new(TenantDirectory::open(&file).expect("the file is usable"));
    let config = ServerConfig { tenants, ..ServerConfig::default() };
    let traced = Traced::with(config, Collected::default(), |_| {});
    let bearer = format!("Bearer {}", key.as_str());
    let (status, _) =
        traced.ask(COMPLETIONS, &[("authorization", &bearer)], &body(COMPLETIONS, 2, false));
    assert_eq!(status, StatusCode::OK);
    let (status, _) = traced.ask(COMPLETIONS, &[], &body(COMPLETIONS, 2, false));
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let spans = traced.spans();
    let roots: Vec<_> = spans.iter().filter(|span| span.name == "llm_request").collect();
    assert_eq!(text(roots[0], "sconce.tenant"), "acme");
    assert_eq!(attribute(roots[1], "sconce.tenant"), None);
    assert_eq!(error(roots[1]), Some("invalid_api_key"));
}

#[test]
fn a_collector_that_never_answers_holds_neither_requests_nor_the_end() {
    let collected = Collected { is_deaf: true, ..Collected::default() };
    let traced = Traced::with(ServerConfig::default(), collected, |config| {
        (config.max_queued, config.delay) = (4, Duration::from_millis(1));
    });
    for _ in 0..20 {
        let (status, answer) = traced.ask(COMPLETIONS, &[], &body(COMPLETIONS, 3, false));
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let lost = traced.metric("sconce:trace_spans_dropped_total");
    assert!(lost.len() == 1 && lost[0].contains("reason=\"queue_full\""), "{lost:?}");
    traced.shut_down(Duration::from_millis(50));
    // What comes later is lost too, and counted.
    traced.ask(COMPLETIONS, &[], &body(COMPLETIONS, 3, false));
    let lost = traced.metric("sconce:trace_spans_dropped_total");
    assert!(lost.iter().any(|line| line.contains("reason=\"shutdown\"")), "{lost:?}");
    traced.shut_down(Duration::from_secs(60));
}

#[test]
fn what_a_collector_refuses_is_lost_and_what_it_puts_off_is_sent_again() {
    for (answers, rejects, exported, lost) in [
        (vec![StatusCode::SERVICE_UNAVAILABLE], 0, 4, None),
        (vec![StatusCode::NOT_FOUND], 0, 0, Some("reason=\"export_failed\"} 4")),
        (vec![], 3, 1, Some("reason=\"rejected\"} 3")),
    ] {
        let answers = Arc::new(Mutex::new(answers));
        let collected = Collected { answers, rejects, ..Collected::default() };
        let traced = Traced::new(collected);
        traced.ask(COMPLETIONS, &[], &body(COMPLETIONS, 3, false));
        traced.shut_down(Duration::from_secs(60));
        assert_eq!(traced.app.engine.metrics().trace_spans_exported.get(), exported);
        let lines = traced.metric("sconce:trace_spans_dropped_total");
        assert_eq!(lines.len(), usize::from(lost.is_some()), "{lines:?}");
        assert!(lost.is_none_or(|lost| lines[0].contains(lost)), "{lines:?}");
    }
}

#[test]
fn a_collector_that_is_not_there_costs_requests_nothing() {
    let traced = Traced::with(ServerConfig::default(), Collected::default(), |config| {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/v1/traces", unused.local_addr().expect("it listens"));
        let endpoint = TracesEndpoint::parse("--flag", &url).expect("a URL");
        (config.endpoint, config.timeout) = (endpoint, Duration::from_millis(300));
    });
    let (status, answer) = traced.ask(COMPLETIONS, &[], &body(COMPLETIONS, 3, false));
    assert_eq!(status, StatusCode::OK, "{answer}");
    traced.shut_down(Duration::from_secs(60));
    let lost = traced.metric("sconce:trace_spans_dropped_total");
    assert!(lost.len() == 1 && lost[0].contains("reason=\"export_failed\"} 4"), "{lost:?}");
}
