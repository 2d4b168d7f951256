//! Tenants over HTTP: who may do what, and what nobody learns of another.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use http_body_util::BodyExt as _;
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, EngineOptions, FakeExecutor, PrefixKey,
    SchedulerConfig, SchedulingPolicy,
};
use sconce_server::{ServerConfig, TenantDirectory, router};
use sconce_tenants::{ApiKey, NewTenant, add, add_admin_key};
use sconce_text::TextModel;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

const LIMITS: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 8,
    max_num_batched_tokens: 64,
    max_model_len: 256,
    num_blocks: 64,
    max_queued: 64,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: Some(PrefixKey([1, 2])),
    policy: SchedulingPolicy::Fair,
};

struct App {
    runtime: Runtime,
    router: Router,
    engine: EngineHandle,
    file: PathBuf,
    acme: ApiKey,
    beta: ApiKey,
    admin: ApiKey,
    _folder: tempfile::TempDir,
}

impl App {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sconce.toml");
        let add = |name: &str| add(&file, name, &NewTenant::default()).expect("it is new");
        let (acme, beta) = (add("acme"), add("beta"));
        let admin = add_admin_key(&file).expect("the file is valid");
        let text = std::fs::read_to_string(&file).expect("it is there");
        let more = "\n[tenants.beta.priorities]\nurgent = -5\n[tenants.beta.prices]\nprompt = 1\ngenerated = 2\n";
        std::fs::write(&file, text + more).expect("it can be written");
        let tenants = TenantDirectory::open(&file).expect("the file is valid");
        let build = || -> Result<_, Infallible> {
            let executor = FakeExecutor::new(257, LIMITS.num_blocks, LIMITS.max_num_seqs);
            Ok(Built { executor, energy: None, config: LIMITS, vocab_size: 257, info: () })
        };
        let options = EngineOptions::new("fake").tenants(tenants.tenants());
        let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
        let config = ServerConfig {
            served_model_names: vec!["fake".into(), "other".into()],
            tenants: Arc::new(tenants),
            ..ServerConfig::default()
        };
        let router = router(engine.clone(), Arc::new(TextModel::bytes()), config);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, router, engine, file, acme, beta, admin, _folder: folder }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        key: Option<&ApiKey>,
        body: &Value,
    ) -> (StatusCode, HeaderMap, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {}", key.as_str()));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = request.body(body).expect("a request");
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.expect("infallible");
            let (head, body) = response.into_parts();
            let body = body.collect().await.expect("the body is read").to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            (head.status, head.headers, body)
        })
    }

    fn complete(&self, key: &ApiKey, more: &Value) -> (StatusCode, Value) {
        let mut body = json!({ "prompt": "x".repeat(100), "max_tokens": 4 });
        for (name, value) in more.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let (status, _, answer) = self.send("POST", "/v1/completions", Some(key), &body);
        (status, answer)
    }

    fn cached_tokens(&self, key: &ApiKey) -> u64 {
        let (status, answer) = self.complete(key, &json!({}));
        assert_eq!(status, StatusCode::OK, "{answer}");
        let details = &answer["usage"]["prompt_tokens_details"];
        details["cached_tokens"].as_u64().expect("it is there")
    }
}

#[test]
fn a_key_speaks_for_its_tenant_and_no_other() {
    let app = App::new();
    let body = json!({ "prompt": "x", "max_tokens": 1 });
    let (status, headers, _) = app.send("POST", "/v1/completions", None, &body);
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(headers["www-authenticate"], "Bearer");
    let stranger = ApiKey::generate();
    let (status, ..) = app.send("POST", "/v1/completions", Some(&stranger), &body);
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let (status, _, error) = app.send("POST", "/v1/completions", Some(&app.admin), &body);
    assert_eq!(status, StatusCode::FORBIDDEN, "{error}");
    for (key, name) in [(&app.acme, "acme"), (&app.beta, "beta")] {
        let (status, _, capacity) =
            app.send("GET", "/v1/capacity?prompt_tokens=10", Some(key), &Value::Null);
        assert_eq!((status, &capacity["tenant"]), (StatusCode::OK, &json!(name)));
        for (method, path) in
            [("POST", "/admin/reload"), ("GET", "/admin/tenants"), ("POST", "/reset_prefix_cache")]
        {
            let (status, ..) = app.send(method, path, Some(key), &Value::Null);
            assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
            let (status, ..) = app.send(method, path, Some(&app.admin), &Value::Null);
            assert_eq!(status, StatusCode::OK, "{path}");
        }
    }
    let (_, _, tenants) = app.send("GET", "/admin/tenants", Some(&app.admin), &Value::Null);
    let text = tenants.to_string();
    assert!(text.contains("acme") && !text.contains("sha256"), "{text}");
    for bad in ["prompt_tokens=0", "prompt_tokens=256", "prompt_tokens=x", "tokens=1"] {
        let path = format!("/v1/capacity?{bad}");
        let (status, ..) = app.send("GET", &path, Some(&app.beta), &Value::Null);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[test]
fn no_tenant_finds_what_another_has_cached() {
    let app = App::new();
    assert_eq!(app.cached_tokens(&app.acme), 0);
    assert_eq!(app.cached_tokens(&app.acme), 96, "its own prompt is found");
    assert_eq!(app.cached_tokens(&app.beta), 0, "another's is not");
    assert_eq!(app.cached_tokens(&app.beta), 96);
    let (status, ..) = app.send("POST", "/reset_prefix_cache", Some(&app.admin), &Value::Null);
    assert_eq!(status, StatusCode::OK);
    assert_eq!(app.cached_tokens(&app.acme), 0);
}

#[test]
fn a_file_is_read_again_without_a_stream_dropped_or_refused_whole() {
    let app = App::new();
    let before = std::fs::read_to_string(&app.file).expect("it is there");
    let reload = || app.send("POST", "/admin/reload", Some(&app.admin), &Value::Null);
    let allowed = before.replace("[tenants.acme]", "[tenants.acme]\nmodels = [\"other\"]");
    std::fs::write(&app.file, &allowed).expect("it can be written");
    assert_eq!(app.complete(&app.acme, &json!({ "model": "fake" })).0, StatusCode::OK);
    assert_eq!(reload().0, StatusCode::OK);
    let (status, error) = app.complete(&app.acme, &json!({ "model": "fake" }));
    assert_eq!(status, StatusCode::NOT_FOUND, "{error}");
    assert_eq!(app.complete(&app.acme, &json!({})).0, StatusCode::NOT_FOUND, "the first is fake");
    assert_eq!(app.complete(&app.acme, &json!({ "model": "other" })).0, StatusCode::OK);
    let (_, _, models) = app.send("GET", "/v1/models", Some(&app.acme), &Value::Null);
    assert_eq!(models["data"].as_array().map(Vec::len), Some(1));
    // Something wrong in one place: all stays as it was.
    let wrong = before.replace("[tenants.beta]", "[tenants.beta]\nweight = 0");
    std::fs::write(&app.file, wrong).expect("it can be written");
    let (status, _, error) = reload();
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(error["error"]["message"].to_string().contains("weight"), "{error}");
    assert_eq!(app.complete(&app.acme, &json!({ "model": "other" })).0, StatusCode::OK);
    assert_eq!(app.complete(&app.acme, &json!({ "model": "fake" })).0, StatusCode::NOT_FOUND);
    assert_eq!(app.complete(&app.beta, &json!({})).0, StatusCode::OK);
    assert_eq!(app.engine.unfinished(), 0);
}

#[test]
fn priorities_timeouts_and_metering_are_asked_for_by_name() {
    let app = App::new();
    for good in [json!(0), json!(-5), json!("urgent")] {
        let (status, answer) = app.complete(&app.beta, &json!({ "priority": good }));
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    for (field, value) in [
        ("priority", json!("calm")),
        ("priority", json!(-6)),
        ("priority", json!(1.5)),
        ("timeout", json!(0)),
        ("timeout", json!(5e-324)),
        ("timeout", json!(1e9)),
        ("timeout", json!("1s")),
    ] {
        let (status, error) = app.complete(&app.beta, &json!({ field: value }));
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        assert_eq!(error["error"]["param"], field, "{error}");
    }
    let (status, error) = app.complete(&app.acme, &json!({ "priority": "urgent" }));
    assert_eq!(status, StatusCode::BAD_REQUEST, "another tenant's name: {error}");
    let (_, answer) = app.complete(&app.beta, &json!({ "include_metering": true, "n": 2 }));
    let metering = &answer["usage"]["metering"];
    assert!(metering["device_seconds"].as_f64() > Some(0.0), "{answer}");
    assert!(metering["kv_block_seconds"].as_f64() > Some(0.0), "{answer}");
    assert_eq!(metering["joules"], Value::Null, "a fake device has no meter");
    // Both choices computed the prompt or found it: what is cached costs nothing here.
    assert!(metering["price"].as_f64() >= Some(8.0 * 2e-6), "{answer}");
    let (_, answer) = app.complete(&app.beta, &json!({}));
    assert_eq!(answer["usage"]["metering"], Value::Null, "it was not asked for");
}

/// The names of metrics in a query of Prometheus, with the labels that it asks for.
fn asked(query: &str) -> Vec<(String, Vec<String>)> {
    let word = |at: usize, text: &str| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        let end = text[at..].find(|c| !is_part(c)).map_or(text.len(), |len| at + len);
        text[at..end].to_owned()
    };
    let mut labels: Vec<String> = Vec::new();
    for by in query.match_indices("by (").map(|(at, by)| &query[at + by.len()..]) {
        let list = by.split(')').next().unwrap_or_default();
        labels.extend(list.split(", ").filter(|label| *label != "le").map(str::to_owned));
    }
    ["vllm:", "sconce:"]
        .iter()
        .flat_map(|prefix| query.match_indices(prefix))
        .map(|(at, _)| {
            let name = word(at, query);
            let rest = &query[at + name.len()..];
            let own = rest.strip_prefix('{').map(|rest| word(0, rest));
            (name, labels.iter().cloned().chain(own).collect())
        })
        .collect()
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let app = App::new();
    let text = std::fs::read_to_string(&app.file).expect("it is there");
    let limited = text + "\n[tenants.acme.limits]\ntokens_per_minute = 150\n";
    std::fs::write(&app.file, limited).expect("it can be written");
    app.send("POST", "/admin/reload", Some(&app.admin), &Value::Null);
    let statuses = [(); 2].map(|()| app.complete(&app.acme, &json!({})).0.as_u16());
    assert_eq!(statuses, [200, 429], "one is served and one refused");
    let metrics = app.runtime.block_on(async {
        let key = format!("Bearer {}", app.admin.as_str());
        let request = Request::get("/metrics").header("authorization", key).body(Body::empty());
        let response = app.router.clone().oneshot(request.expect("a request")).await;
        let body = response.expect("infallible").into_body().collect().await.expect("it is read");
        String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8")
    });
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/grafana/sconce.json");
    let dashboard = std::fs::read_to_string(folder).expect("it is part of the repository");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("a list");
    let mut queries = 0;
    for target in panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten() {
        let query = target["expr"].as_str().expect("a query");
        let asked = asked(query);
        assert!(!asked.is_empty(), "{query}");
        for (name, labels) in asked {
            queries += 1;
            let line = metrics.lines().find(|line| {
                line.strip_prefix(&*name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            });
            let line = line.unwrap_or_else(|| panic!("{name} is no metric: {query}"));
            for label in labels {
                assert!(line.contains(&format!("{label}=\"")), "{line} lacks {label}: {query}");
            }
        }
    }
    assert!(queries > 30, "{queries}");
    let ids: std::collections::BTreeSet<_> =
        panels.iter().map(|panel| panel["id"].as_u64().expect("a number")).collect();
    assert_eq!(ids.len(), panels.len(), "ids tell panels apart");
}
