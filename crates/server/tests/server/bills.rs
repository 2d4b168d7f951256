//! What clients are told that they used, beside the ledger and the metrics; what limits let
//! through, and what tells nothing of others.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt as _;
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, EngineOptions, FakeExecutor, PrefixKey,
    SchedulerConfig, SchedulingPolicy,
};
use sconce_server::{ServerConfig, TenantDirectory, router};
use sconce_tenants::{ApiKey, NewTenant, add, add_admin_key};
use sconce_text::TextModel;
use sconce_types::{
    End, Executor, ExecutorError, MeterEntry, MeterSink, RequestId, ScheduledBatch, StepResult,
    TokenMasks,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

const LIMITS: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 8,
    max_num_batched_tokens: 64,
    max_model_len: 256,
    num_blocks: 128,
    max_queued: 64,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: Some(PrefixKey([1, 2])),
    policy: SchedulingPolicy::Priority,
};

/// A fake executor whose steps take a time.
struct Slow {
    fake: FakeExecutor,
    step: Duration,
}

impl Executor for Slow {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        std::thread::sleep(self.step);
        self.fake.launch(batch)
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.fake.sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        self.fake.wait(result)
    }
}

/// Each request's last entry.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<Vec<(RequestId, MeterEntry)>>>);

impl MeterSink for Ledger {
    fn record(&mut self, entries: &mut Vec<MeterEntry>) {
        let mut kept = self.0.lock().expect("nothing panics with it");
        for entry in entries.drain(..) {
            kept.retain(|(id, _)| *id != entry.request);
            kept.push((entry.request, entry));
        }
    }
}

struct App {
    runtime: Runtime,
    router: Router,
    engine: EngineHandle,
    ledger: Ledger,
    file: PathBuf,
    acme: ApiKey,
    beta: ApiKey,
    admin: ApiKey,
    _folder: tempfile::TempDir,
}

impl App {
    /// Two tenants, with more of the file given as text.
    fn new(more: &str) -> Self {
        Self::slow(more, Duration::ZERO)
    }

    fn slow(more: &str, step: Duration) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sconce.toml");
        let add = |name: &str| add(&file, name, &NewTenant::default()).expect("it is new");
        let (acme, beta) = (add("acme"), add("beta"));
        let admin = add_admin_key(&file).expect("the file is valid");
        let text = std::fs::read_to_string(&file).expect("it is there");
        std::fs::write(&file, text + more).expect("it can be written");
        let tenants = TenantDirectory::open(&file).expect("the file is valid");
        let build = move || -> Result<_, Infallible> {
            let fake = FakeExecutor::new(257, LIMITS.num_blocks, LIMITS.max_num_seqs);
            let executor = Slow { fake, step };
            Ok(Built { executor, energy: None, config: LIMITS, vocab_size: 257, info: () })
        };
        let ledger = Ledger::default();
        let options = EngineOptions::new("fake").tenants(tenants.tenants());
        let options = options.sink(Some(Box::new(ledger.clone())));
        let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
        let config = ServerConfig {
            served_model_names: vec!["fake".into()],
            tenants: Arc::new(tenants),
            ..ServerConfig::default()
        };
        let router = router(engine.clone(), Arc::new(TextModel::bytes()), config);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, router, engine, ledger, file, acme, beta, admin, _folder: folder }
    }

    fn request(method: &str, path: &str, key: Option<&ApiKey>, body: &Value) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {}", key.as_str()));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        request.body(body).expect("a request")
    }

    fn text(&self, method: &str, path: &str, key: Option<&ApiKey>, body: &Value) -> (u16, String) {
        self.runtime.block_on(async {
            let request = Self::request(method, path, key, body);
            let response = self.router.clone().oneshot(request).await.expect("infallible");
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.expect("the body is read");
            (status, String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8"))
        })
    }

    fn post(&self, path: &str, key: &ApiKey, body: &Value) -> (u16, Value) {
        let (status, text) = self.text("POST", path, Some(key), body);
        (status, serde_json::from_str(&text).unwrap_or_else(|_| text.into()))
    }

    fn get(&self, path: &str, key: Option<&ApiKey>) -> (u16, Value) {
        let (status, text) = self.text("GET", path, key, &Value::Null);
        (status, serde_json::from_str(&text).unwrap_or_else(|_| text.into()))
    }

    fn complete(&self, key: &ApiKey, more: Value) -> (u16, Value) {
        let mut body = json!({ "prompt": "x".repeat(40), "max_tokens": 60, "seed": 5 });
        let Value::Object(more) = more else { panic!("fields are an object") };
        body.as_object_mut().expect("an object").extend(more);
        self.post("/v1/completions", key, &body)
    }

    /// The ledger's entries since the last time, once everything has ended.
    fn entries(&self) -> Vec<MeterEntry> {
        while self.engine.unfinished() > 0 {
            std::thread::yield_now();
        }
        self.runtime.block_on(self.engine.settle()).expect("the engine answers");
        let kept = std::mem::take(&mut *self.ledger.0.lock().expect("nothing panics with it"));
        kept.into_iter().map(|(_, entry)| entry).collect()
    }
}

fn sum(entries: &[MeterEntry], of: fn(&MeterEntry) -> u32) -> u64 {
    entries.iter().map(|entry| u64::from(of(entry))).sum()
}

fn generated(entries: &[MeterEntry]) -> u64 {
    sum(entries, |entry| entry.usage.generated_tokens)
}

/// The data of a stream's events.
fn events(text: &str) -> Vec<Value> {
    let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

#[test]
fn usage_the_ledger_and_the_metrics_count_the_same_tokens() {
    let app = App::new("");
    let metrics = app.engine.metrics();
    // Letters of the answer to come, to stop at.
    let (_, answer) = app.complete(&app.acme, json!({}));
    let text = answer["choices"][0]["text"].as_str().expect("a text").to_owned();
    let letters: Vec<String> =
        text.chars().filter(|c| c.is_ascii_graphic()).map(String::from).collect();
    assert!(letters.len() > 5, "{text:?}");
    let late = letters.iter().rev().find(|c| text.find(c.as_str()) > Some(5)).expect("a letter");
    let ids: Vec<u32> = late.bytes().map(u32::from).collect();
    let cases = [
        (json!({ "stop": late }), "stop", "stop"),
        (json!({ "stop": late, "include_stop_str_in_output": true }), "stop", "stop"),
        (json!({ "stop": [late, "never there"], "n": 3 }), "", "stop"),
        (json!({ "stop_token_ids": ids }), "stop", "stop"),
        (json!({ "max_tokens": 9, "ignore_eos": true }), "length", "length"),
        (json!({ "n": 4, "max_tokens": 9, "ignore_eos": true }), "length", "length"),
        (json!({ "prompt": ["a", "bc"], "n": 2, "max_tokens": 5 }), "", "length"),
        (json!({ "echo": true, "max_tokens": 0 }), "length", "length"),
        (json!({ "echo": true, "max_tokens": 0, "logprobs": 1 }), "length", "length"),
        (json!({ "echo": true, "max_tokens": 7 }), "", "length"),
    ];
    app.entries();
    let mut all = [metrics.prompt_tokens.get(), metrics.generation_tokens.get()];
    for (more, reason, end) in cases {
        let mut more = more;
        more["include_metering"] = json!(true);
        let (status, answer) = app.complete(&app.acme, more.clone());
        assert_eq!(status, 200, "{more}: {answer}");
        let choices = answer["choices"].as_array().expect("choices").len();
        let entries = app.entries();
        assert_eq!(entries.len(), choices, "{more}: each choice is a request");
        let usage = &answer["usage"];
        assert_eq!(usage["completion_tokens"], generated(&entries), "{more}: {answer}");
        let device: u64 = entries.iter().map(|entry| entry.usage.device_ns).sum();
        let told = usage["metering"]["device_seconds"].as_f64().expect("a number");
        assert!((told - device as f64 * 1e-9).abs() < 1e-9, "{more}: {answer}");
        if !reason.is_empty() {
            assert_eq!(answer["choices"][0]["finish_reason"], reason, "{more}");
            assert!(
                entries.iter().all(|entry| entry.end.map(End::name) == Some(end)),
                "{more}: {entries:?}"
            );
        }
        if more["max_tokens"] == 0 {
            assert_eq!(usage["completion_tokens"], 0, "{more}");
        }
        all[0] += sum(&entries, |entry| entry.usage.prompt_tokens);
        all[1] += generated(&entries);
        assert_eq!(all, [metrics.prompt_tokens.get(), metrics.generation_tokens.get()], "{more}");
        // The same in a stream.
        more["stream"] = json!(true);
        let (status, text) = app.complete(&app.acme, more.clone());
        assert_eq!(status, 200, "{more}");
        let events = events(text.as_str().expect("a stream"));
        let last = &events.last().expect("a last chunk")["usage"];
        let entries = app.entries();
        assert_eq!(last["completion_tokens"], usage["completion_tokens"], "{more}");
        assert_eq!(last["completion_tokens"], generated(&entries), "{more}");
        all[0] += sum(&entries, |entry| entry.usage.prompt_tokens);
        all[1] += generated(&entries);
    }
}

#[test]
fn what_times_out_or_is_left_was_told_what_it_is_billed() {
    let app = App::slow("", Duration::from_millis(2));
    let metrics = app.engine.metrics();
    let more = json!({
        "stream": true, "timeout": 0.1, "max_tokens": 200, "ignore_eos": true, "logprobs": 0,
        "stream_options": { "include_usage": true, "continuous_usage_stats": true },
    });
    let (status, text) = app.complete(&app.acme, more.clone());
    assert_eq!(status, 200, "{text}");
    let chunks = events(text.as_str().expect("a stream"));
    let [.., last, error] = &chunks[..] else { panic!("tokens, then an error") };
    assert_eq!(error["error"]["code"], "timeout", "{error}");
    let entries = app.entries();
    assert_eq!(entries[0].end, Some(End::Deadline));
    assert_eq!(last["usage"]["completion_tokens"], generated(&entries));
    assert_eq!(metrics.generation_tokens.get(), generated(&entries));
    // Its client leaves after the first chunk.
    let mut body = more;
    body["prompt"] = json!("y".repeat(40));
    body.as_object_mut().expect("an object").remove("timeout");
    let read = app.runtime.block_on(async {
        let request = App::request("POST", "/v1/completions", Some(&app.acme), &body);
        let response = app.router.clone().oneshot(request).await.expect("infallible");
        let frame = response.into_body().frame().await.expect("a frame").expect("no error");
        let bytes = frame.into_data().expect("data");
        events(std::str::from_utf8(&bytes).expect("UTF-8")).len() as u64
    });
    let left = app.entries();
    assert_eq!((left.len(), left[0].end), (1, Some(End::Abort)));
    assert!((read..200).contains(&generated(&left)), "{read} were read: {left:?}");
    assert_eq!(metrics.generation_tokens.get(), generated(&entries) + generated(&left));
}

#[test]
fn a_limit_of_tokens_a_minute_holds_for_a_request_and_for_all() {
    let app = App::new("\n[tenants.acme.limits]\ntokens_per_minute = 400\n");
    // What never fits is told at once, with the limit.
    let max_tokens = || json!("max_tokens");
    for (more, param, most) in [
        (json!({ "prompt": "x".repeat(210), "max_tokens": 10, "n": 2 }), Value::Null, "shorten"),
        (json!({ "max_tokens": 170, "n": 2 }), max_tokens(), "at most 160"),
        (json!({ "prompt": vec!["x".repeat(100); 3], "max_tokens": 60 }), max_tokens(), "most 33"),
    ] {
        let (status, error) = app.complete(&app.acme, more.clone());
        assert_eq!((status, &error["error"]["param"]), (400, &param), "{error}");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains("400 tokens a minute") && message.contains(most), "{message}");
        assert_eq!(app.complete(&app.beta, more).0, 200, "another's limit");
    }
    assert!(app.entries().iter().all(|entry| entry.usage.prompt_tokens > 0));
    let messages = json!([{ "role": "user", "content": "hi" }]);
    for name in ["max_tokens", "max_completion_tokens"] {
        let body = json!({ "messages": messages, name: 200, "n": 2 });
        let (status, error) = app.post("/v1/chat/completions", &app.acme, &body);
        assert_eq!((status, &error["error"]["param"]), (400, &json!(name)), "{error}");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains(&format!("lower {name} to")), "{message}");
    }
    // A chat that names no max_tokens gets what the limit has room for.
    let chat = json!({ "messages": [{ "role": "user", "content": "hi" }], "n": 2, "seed": 3 });
    let (status, answer) = app.post("/v1/chat/completions", &app.acme, &chat);
    assert_eq!(status, 200, "{answer}");
    let mut used = 0;
    let mut refused = 0;
    for _ in 0..40 {
        let (status, answer) = app.complete(&app.acme, json!({ "ignore_eos": true }));
        match status {
            200 => used += answer["usage"]["total_tokens"].as_u64().expect("a number"),
            429 => refused += 1,
            _ => panic!("{answer}"),
        }
    }
    assert!(used <= 400 && refused >= 36, "{used} tokens, {refused} refused");
    let reload = || app.get("/v1/capacity?prompt_tokens=100", Some(&app.acme)).1;
    let waits = |capacity: &Value| capacity["retry_after_seconds"].as_f64();
    assert!(waits(&reload()) > Some(30.0), "{}", reload());
    let (status, _) = app.post("/admin/reload", &app.admin, &Value::Null);
    assert_eq!(status, 200);
    assert!(waits(&reload()) > Some(30.0), "a reload gives nothing back: {}", reload());
    let text = std::fs::read_to_string(&app.file).expect("it is there");
    let raised = text.replace("tokens_per_minute = 400", "tokens_per_minute = 800");
    std::fs::write(&app.file, raised).expect("it can be written");
    assert_eq!(app.post("/admin/reload", &app.admin, &Value::Null).0, 200);
    assert_eq!(app.complete(&app.acme, json!({})).0, 200, "a higher limit has room");
}

#[test]
fn what_was_not_asked_for_fits_what_the_minute_leaves() {
    let app = App::new("\n[tenants.acme.limits]\ntokens_per_minute = 240\n");
    let ask = |prompts: &[usize]| {
        let prompts: Vec<_> = prompts.iter().map(|&len| "x".repeat(len)).collect();
        // `complete` asks for a maximum.
        app.post("/v1/completions", &app.acme, &json!({ "prompt": prompts, "ignore_eos": true }))
    };
    // OpenAI's default of 16 would not fit, and was not asked for.
    let (status, answer) = ask(&[150, 84]);
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(6)), "{answer}");
    let (status, error) = ask(&[150, 89]);
    assert_eq!((status, &error["error"]["param"]), (400, &Value::Null), "{error}");
    assert!(error["error"]["message"].as_str().expect("a message").contains("shorten the prompt"));
}

#[test]
fn priorities_are_those_that_the_tenants_file_names() {
    let app = App::new(
        "\n[tenants.acme.priorities]\nlater = 5\nlast = 10\n\
         \n[tenants.beta.limits]\nmax_running = 8\n",
    );
    for good in [json!("later"), json!("last"), json!(5), json!(10), json!(null)] {
        let (status, answer) = app.complete(&app.acme, json!({ "priority": good }));
        assert_eq!(status, 200, "{good}: {answer}");
    }
    for bad in [json!(-1_000_000), json!(0), json!(7), json!(11), json!(i32::MIN), json!("first")] {
        for chat in [false, true] {
            let (status, error) = if chat {
                let messages = json!([{ "role": "user", "content": "hi" }]);
                let body = json!({ "messages": messages, "priority": bad });
                app.post("/v1/chat/completions", &app.acme, &body)
            } else {
                app.complete(&app.acme, json!({ "priority": bad }))
            };
            assert_eq!((status, &error["error"]["param"]), (400, &json!("priority")), "{error}");
            let message = error["error"]["message"].as_str().expect("a message");
            assert!(message.contains("\"later\" (5)") && message.contains("\"last\""), "{message}");
        }
    }
    // A tenant without names has the default and nothing else.
    assert_eq!(app.complete(&app.beta, json!({ "priority": 0 })).0, 200);
    for bad in [json!(-1), json!(1), json!("later")] {
        let (status, error) = app.complete(&app.beta, json!({ "priority": bad }));
        assert_eq!((status, &error["error"]["param"]), (400, &json!("priority")), "{error}");
    }
}

#[test]
fn without_tenants_any_priority_is_taken_and_metrics_need_no_key() {
    let build = || -> Result<_, Infallible> {
        let executor = FakeExecutor::new(257, LIMITS.num_blocks, LIMITS.max_num_seqs);
        Ok(Built { executor, energy: None, config: LIMITS, vocab_size: 257, info: () })
    };
    let (_, engine, ()) = Engine::start("fake", build).expect("the engine starts");
    let router = router(engine, Arc::new(TextModel::bytes()), ServerConfig::default());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let status = |method: &str, path: &str, body: &Value| {
        let request = App::request(method, path, None, body);
        let response = runtime.block_on(router.clone().oneshot(request)).expect("infallible");
        response.status().as_u16()
    };
    for (priority, expected) in [(json!(-7), 200), (json!(9), 200), (json!("urgent"), 400)] {
        let body = json!({ "prompt": "x", "max_tokens": 2, "priority": priority });
        assert_eq!(status("POST", "/v1/completions", &body), expected, "{priority}");
    }
    assert_eq!(status("GET", "/metrics", &Value::Null), 200);
    assert_eq!(status("GET", "/v1/capacity", &Value::Null), 200);
}

#[test]
fn counters_tell_a_tenant_of_itself_only() {
    let app = App::new("");
    for _ in 0..3 {
        assert_eq!(app.complete(&app.acme, json!({ "ignore_eos": true })).0, 200);
    }
    assert_eq!(app.complete(&app.beta, json!({ "ignore_eos": true, "max_tokens": 7 })).0, 200);
    app.entries();
    let stranger = ApiKey::generate();
    for key in [None, Some(&stranger)] {
        let (status, error) = app.get("/metrics", key);
        assert_eq!(status, 401);
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains("administrator's key"), "{message}");
    }
    let metrics = |key| app.text("GET", "/metrics", Some(key), &Value::Null);
    let (status, own) = metrics(&app.beta);
    assert_eq!(status, 200);
    assert!(own.contains("sconce:tenant_generation_tokens_total{") && own.contains("\"beta\"} 7"));
    for line in own.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.contains("tenant=\"beta\"") && !line.contains("acme"), "{line}");
    }
    let (_, all) = metrics(&app.admin);
    for name in ["vllm:generation_tokens_total", "tenant=\"acme\"", "tenant=\"beta\""] {
        assert!(all.contains(name), "{name}");
    }
    let (status, own) = app.get("/v1/capacity", Some(&app.beta));
    assert_eq!((status, &own["tenant"]), (200, &json!("beta")), "{own}");
    let engine: Vec<_> = own["engine"].as_object().expect("an object").keys().collect();
    assert_eq!(engine, ["share"], "{own}");
    assert_eq!(own["requests"]["running"], 0, "{own}");
    assert_eq!(app.get("/v1/capacity?tenant=beta", Some(&app.beta)).0, 200);
    assert_eq!(app.get("/v1/capacity?tenant=acme", Some(&app.beta)).0, 403);
    let (status, all) = app.get("/v1/capacity", Some(&app.admin));
    assert_eq!((status, &all["tenant"]), (200, &Value::Null), "{all}");
    assert!(all["engine"]["kv_blocks_free"].is_u64(), "{all}");
    assert!(all["engine"]["waiting"].is_u64(), "{all}");
    let (status, of_acme) = app.get("/v1/capacity?tenant=acme", Some(&app.admin));
    assert_eq!((status, &of_acme["tenant"]), (200, &json!("acme")), "{of_acme}");
    assert_eq!(app.get("/v1/capacity?tenant=nobody", Some(&app.admin)).0, 400);
}

#[test]
fn ids_do_not_count_requests() {
    let app = App::new("");
    let id = || app.complete(&app.beta, json!({})).1["id"].as_str().expect("an id").to_owned();
    let ids: Vec<_> = (0..20).map(|_| id()).collect();
    let ends: Vec<_> = ids.iter().map(|id| &id[id.len() - 8..]).collect();
    let ends: Vec<u32> =
        ends.iter().map(|end| u32::from_str_radix(end, 16).expect("digits")).collect();
    let steps = ends.windows(2).filter(|pair| pair[1].abs_diff(pair[0]) < 1_000).count();
    assert!(steps <= 1, "{ids:?}");
}

#[test]
fn a_full_queue_does_not_say_whose_requests_fill_it() {
    let app = App::slow("", Duration::from_millis(5));
    let flood: Vec<_> = std::iter::from_fn(|| {
        let request = App::request(
            "POST",
            "/v1/completions",
            Some(&app.acme),
            &json!({ "prompt": "x", "max_tokens": 200, "ignore_eos": true, "n": 1, "stream": true }),
        );
        let response = app.runtime.block_on(app.router.clone().oneshot(request));
        Some(response.expect("infallible"))
    })
    .take_while(|response| response.status() == StatusCode::OK)
    .take(8)
    .collect();
    // All that are free at once, through one request's choices.
    let body = json!({ "prompt": "x", "max_tokens": 200, "n": 100 });
    let (status, error) = app.post("/v1/completions", &app.acme, &body);
    assert_eq!(status, 429, "{error}");
    let message = error["error"]["message"].as_str().expect("a message");
    assert!(message.contains("queue is full") && !message.contains("unfinished"), "{message}");
    drop(flood);
}
