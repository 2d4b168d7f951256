//! `/v1/live`: its shape, who may see what, how many may watch, and its end.

use std::{convert::Infallible, path::Path, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt as _;
use sconce_engine::{
    Built, CacheGroups, Engine, EngineOptions, FakeExecutor, SchedulerConfig, SchedulingPolicy,
};
use sconce_server::{ServerConfig, TenantDirectory, router};
use sconce_tenants::{ApiKey, NewTenant, add, add_admin_key};
use sconce_text::TextModel;
use sconce_types::{Executor, ExecutorError, ScheduledBatch, StepResult, TokenMasks};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::app::{App, COMPLETIONS};

const LIMITS: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 8,
    max_num_batched_tokens: 512,
    max_model_len: 16_384,
    num_blocks: 4096,
    max_queued: 64,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};

/// Steps of a millisecond: what is asked for runs while it is looked at.
struct Device(FakeExecutor);

impl Executor for Device {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        self.0.launch(batch)
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.0.sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        std::thread::sleep(Duration::from_millis(1));
        self.0.wait(result)
    }
}

/// A server of two tenants, and their keys.
struct Shared {
    app: App,
    tenants: Arc<TenantDirectory>,
    acme: ApiKey,
    beta: ApiKey,
    admin: ApiKey,
    _folder: tempfile::TempDir,
}

impl Shared {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sconce.toml");
        let (acme, beta) = (add_tenant(&file, "acme"), add_tenant(&file, "beta"));
        let admin = add_admin_key(&file).expect("the file is valid");
        let tenants = Arc::new(TenantDirectory::open(&file).expect("the file is valid"));
        let build = || -> Result<_, Infallible> {
            let executor = Device(FakeExecutor::new(257, LIMITS.num_blocks, LIMITS.max_num_seqs));
            Ok(Built { executor, energy: None, config: LIMITS, vocab_size: 257, info: () })
        };
        let options = EngineOptions::new("fake").tenants(tenants.tenants());
        let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
        let config = ServerConfig {
            served_model_names: vec!["fake".into()],
            tenants: Arc::clone(&tenants),
            ..ServerConfig::default()
        };
        let router = router(engine.clone(), Arc::new(TextModel::bytes()), config);
        // A thread of its own: requests go on between two looks.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
        Self { app: App { runtime, router, engine }, tenants, acme, beta, admin, _folder: folder }
    }

    /// A stream that runs until it is dropped, or for a quarter of a minute.
    fn run(&self, key: &ApiKey) -> Body {
        let body = json!({
            "prompt": "x".repeat(100), "max_tokens": 16_000, "stream": true, "ignore_eos": true,
        });
        let request = Request::post(COMPLETIONS)
            .header("authorization", format!("Bearer {}", key.as_str()))
            .body(Body::from(body.to_string()));
        open(&self.app, request.expect("a request")).expect("it is taken")
    }
}

fn add_tenant(file: &Path, name: &str) -> ApiKey {
    add(file, name, &NewTenant::default()).expect("it is new")
}

/// A response's body, or its status where it is refused.
fn open(app: &App, request: Request<Body>) -> Result<Body, StatusCode> {
    app.runtime.block_on(async {
        let response = app.router.clone().oneshot(request).await.expect("infallible");
        if response.status().is_success() {
            Ok(response.into_body())
        } else {
            Err(response.status())
        }
    })
}

fn watch(app: &App, headers: &[(&str, &str)]) -> Result<Body, StatusCode> {
    let mut request = Request::get("/v1/live");
    for &(name, value) in headers {
        request = request.header(name, value);
    }
    open(app, request.body(Body::empty()).expect("a request"))
}

fn watch_with(shared: &Shared, key: &ApiKey) -> Body {
    let key = format!("Bearer {}", key.as_str());
    watch(&shared.app, &[("authorization", &key)]).expect("it may watch")
}

/// The next event; `None` at the stream's end.
fn next(app: &App, stream: &mut Body) -> Option<Value> {
    let frame = app.runtime.block_on(stream.frame())?.expect("the body is read");
    let bytes = frame.into_data().expect("events are data");
    let text = std::str::from_utf8(&bytes).expect("UTF-8");
    let event = text.strip_prefix("data: ").and_then(|text| text.strip_suffix("\n\n"));
    Some(serde_json::from_str(event.expect("one event a frame")).expect("JSON"))
}

/// The first event that is as it should be.
fn first(app: &App, stream: &mut Body, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..100 {
        last = next(app, stream).expect("the stream goes on");
        if is_so(&last) {
            return last;
        }
    }
    panic!("none of a hundred events is: {last}")
}

#[test]
fn an_open_server_shows_everything() {
    let app = App::new(ServerConfig::default());
    let mut stream = watch(&app, &[]).expect("it is open");
    let event = next(&app, &mut stream).expect("an event");
    let tenants = json!([{
        "name": "default", "code": 2, "weight": 1, "share": 0.0, "running": 0, "waiting": 0,
        "kv_blocks": 0, "prompt_tokens": 0, "cached_tokens": 0, "generated_tokens": 0,
        "device_seconds": 0.0, "joules": null,
    }]);
    let expected = json!({
        "object": "live",
        "seconds": 0.0,
        "sees_all": true,
        "running": 0,
        "waiting": 0,
        "kv_blocks": { "total": 32, "used": 0, "tokens": 16, "changes": "" },
        "generated_tokens_per_second": 0.0,
        "prompt_tokens_per_second": 0.0,
        "ttft_seconds": { "p50": null, "p99": null },
        "itl_seconds": { "p50": null, "p99": null },
        "tenants": tenants,
    });
    assert_eq!(event, expected);
    let (status, answer) =
        app.post(COMPLETIONS, json!({ "prompt": "abc", "max_tokens": 20, "ignore_eos": true }));
    assert_eq!(status, 200, "{answer}");
    let is_counted = |event: &Value| event["tenants"][0]["generated_tokens"] == 20;
    let event = first(&app, &mut stream, is_counted);
    assert!(event["seconds"].as_f64() > Some(0.0), "{event}");
    assert_eq!(event["tenants"][0]["prompt_tokens"], 3);
    for name in ["ttft_seconds", "itl_seconds"] {
        let quantiles = &event[name];
        assert!(quantiles["p50"].as_f64() > Some(0.0), "{event}");
        assert!(quantiles["p99"].as_f64() >= quantiles["p50"].as_f64(), "{event}");
    }
}

#[test]
fn other_sites_pages_see_nothing_of_an_open_server() {
    let app = App::new(ServerConfig::default());
    let status =
        |headers: &[(&str, &str)]| watch(&app, headers).map_or_else(|e| e, |_| StatusCode::OK);
    assert_eq!(status(&[("host", "localhost:8000"), ("sec-fetch-site", "same-origin")]), 200);
    assert_eq!(status(&[("host", "localhost:8000"), ("sec-fetch-site", "cross-site")]), 403);
    assert_eq!(status(&[("host", "rebound.example")]), 403);
}

#[test]
fn an_administrator_sees_all_tenants_and_a_tenant_itself_among_others() {
    let shared = Shared::new();
    assert_eq!(watch(&shared.app, &[]).err(), Some(StatusCode::UNAUTHORIZED));
    let wrong = [("authorization", "Bearer sk-nobody")];
    assert_eq!(watch(&shared.app, &wrong).err(), Some(StatusCode::UNAUTHORIZED));
    let _streams = [shared.run(&shared.acme), shared.run(&shared.beta), shared.run(&shared.beta)];
    let all_run = |event: &Value| {
        let tenants = event["tenants"].as_array().expect("a list");
        tenants.iter().zip([1, 2]).all(|(tenant, running)| tenant["running"] == running)
    };
    let mut stream = watch_with(&shared, &shared.admin);
    let event = first(&shared.app, &mut stream, all_run);
    assert_eq!((&event["sees_all"], &event["running"]), (&json!(true), &json!(3)));
    let names: Vec<_> = event["tenants"].as_array().expect("a list").iter().collect();
    assert_eq!((&names[0]["name"], &names[0]["code"]), (&json!("acme"), &json!(2)));
    assert_eq!((&names[1]["name"], &names[1]["code"]), (&json!("beta"), &json!(3)));
    let counts = blocks(&event);
    assert!(counts[2] >= 7 && counts[3] >= 14, "{counts:?}");
    assert_eq!(counts[2] + counts[3], event["kv_blocks"]["used"].as_u64().expect("a count"));

    let mut stream = watch_with(&shared, &shared.acme);
    let event = next(&shared.app, &mut stream).expect("an event");
    assert_eq!((&event["sees_all"], &event["running"]), (&json!(false), &json!(1)));
    assert!(!event.to_string().contains("beta"), "{event}");
    let tenants = event["tenants"].as_array().expect("a list");
    assert_eq!((tenants.len(), &tenants[0]["name"]), (1, &json!("acme")));
    assert_eq!(event["itl_seconds"]["p50"], Value::Null, "it is all tenants' together");
    let counts = blocks(&event);
    assert!(counts[2] >= 7 && counts[3] == 0 && counts[255] >= 14, "{counts:?}");
    assert_eq!(counts[2], event["kv_blocks"]["used"].as_u64().expect("a count"));
}

/// Blocks by code, of a stream's first event.
fn blocks(event: &Value) -> [u64; 256] {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let changes = event["kv_blocks"]["changes"].as_str().expect("a text");
    let mut bytes = STANDARD.decode(changes).expect("base64").into_iter();
    let mut counts = [0; 256];
    while bytes.len() > 0 {
        let mut count = || {
            let (mut count, mut shift) = (0, 0);
            for byte in bytes.by_ref() {
                count |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    break;
                }
            }
            count
        };
        let (_, length) = (count(), count());
        counts[usize::from(bytes.next().expect("a code"))] += length;
    }
    counts
}

#[test]
fn so_many_may_watch_and_a_place_is_free_once_one_has_gone() {
    let app = App::new(ServerConfig::default());
    let mut streams: Vec<_> = (0..16).map(|_| watch(&app, &[]).expect("a place")).collect();
    assert_eq!(watch(&app, &[]).err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert!(next(&app, &mut streams[15]).is_some());
    streams.pop();
    let mut last = watch(&app, &[]).expect("a place");
    assert!(next(&app, &mut last).is_some());
    assert_eq!(watch(&app, &[]).err(), Some(StatusCode::SERVICE_UNAVAILABLE));
}

#[test]
fn it_ends_when_the_tenants_change_and_when_the_server_drains() {
    let shared = Shared::new();
    let Shared { app, tenants, .. } = &shared;
    let mut stream = watch_with(&shared, &shared.acme);
    assert!(next(app, &mut stream).is_some());
    app.runtime.block_on(tenants.reload(&app.engine)).expect("the file is valid");
    assert_eq!(next(app, &mut stream), None, "its key may be another's now");
    let mut stream = watch_with(&shared, &shared.acme);
    assert!(next(app, &mut stream).is_some());
    app.runtime.block_on(app.engine.drain());
    assert_eq!(next(app, &mut stream), None);
}
