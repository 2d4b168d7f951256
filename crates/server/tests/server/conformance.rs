//! Answers held against the server's own document: those of every test that asks by
//! [`App::send`](crate::app::App::send) or [`Writing::send`](crate::writer::Writing::send), and
//! here one at least of each operation.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use http_body_util::BodyExt as _;
use jsonschema::Validator;
use sconce_batches::Limits;
use sconce_server::ServerConfig;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use crate::{app::App, batches, embeddings, writer::Writing};

/// The document with objects closed: what it does not name may not be sent.
struct Contract {
    document: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

static CONTRACT: OnceLock<Contract> = OnceLock::new();

/// An answer as it came.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

/// Sends a request, and holds the answer against the document.
pub(crate) fn exchange(runtime: &Runtime, router: &Router, request: Request<Body>) -> Answer {
    let (method, path) =
        (request.method().as_str().to_lowercase(), request.uri().path().to_owned());
    let answer = runtime.block_on(send(router, request));
    contract().check(&method, &path, &answer);
    answer
}

/// That of a server which no test looks at.
fn contract() -> &'static Contract {
    CONTRACT.get_or_init(|| {
        let app = App::new(ServerConfig::default());
        let request = Request::get("/openapi.json").body(Body::empty()).expect("a request");
        let answer = app.runtime.block_on(send(&app.router, request));
        let mut document = serde_json::from_str(&answer.text).expect("JSON");
        close(&mut document);
        Contract { document, validators: Mutex::default() }
    })
}

async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.expect("infallible");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("the body is read").to_bytes();
    let text = String::from_utf8(body.to_vec()).expect("UTF-8");
    Answer { status: head.status, headers: head.headers, text }
}

fn close(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(close),
        Value::Object(fields) => {
            let is_open = fields.get("properties").is_some_and(Value::is_object)
                && fields.get("type").is_some_and(|kind| kind == "object");
            if is_open {
                fields.entry("additionalProperties").or_insert(false.into());
            }
            fields.values_mut().for_each(close);
        }
        _ => {}
    }
}

impl Contract {
    /// The path as the document has it.
    fn template(&self, path: &str) -> Option<String> {
        let paths = self.document["paths"].as_object().expect("paths");
        let path = path.trim_end_matches('/');
        if paths.contains_key(path) {
            return Some(path.to_owned());
        }
        let of_id = |name: &&String| {
            let parts = name.split_once("{id}");
            parts.is_some_and(|(start, end)| path.starts_with(start) && path.ends_with(end))
        };
        // An id may have slashes: what follows it tells more.
        paths.keys().filter(of_id).max_by_key(|name| name.len()).cloned()
    }

    fn check(&self, method: &str, path: &str, answer: &Answer) {
        let Answer { status, headers, text } = answer;
        let kind = headers.get("content-type").map_or("", |kind| kind.to_str().expect("text"));
        let kind = kind.split(';').next().unwrap_or_default();
        let template = self.template(path);
        let operation = template.and_then(|path| self.document["paths"][&path].get(method));
        let Some(operation) = operation else {
            // A page's file, an error of what is no operation, or another path to one.
            if kind == "application/json" && status.as_u16() >= 400 {
                let is_messages = path.starts_with("/v1/messages");
                let name = if is_messages { "MessageError" } else { "Error" };
                let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
                self.validate(&schema, text, &format!("{method} {path} {status}"));
            }
            return;
        };
        let place = format!("{method} {path} {status} {kind}");
        let documented = &operation["responses"][status.as_str()];
        assert!(!documented.is_null(), "{place} is not documented: {text}");
        let content = &documented["content"][kind];
        assert!(!content.is_null(), "{place} is not documented: {text}");
        if kind == "text/event-stream" {
            self.check_events(&content["itemSchema"], text, &place);
        } else if kind == "application/json" {
            self.validate(&content["schema"], text, &place);
        }
        for (name, header) in documented["headers"].as_object().into_iter().flatten() {
            let given = headers.get(name).unwrap_or_else(|| panic!("{place} lacks {name}"));
            let given = given.to_str().expect("text");
            self.validate(&header["schema"], given, &format!("{place} {name}"));
        }
    }

    fn check_events(&self, event: &Value, text: &str, place: &str) {
        let names = &event["properties"]["event"];
        let data = &event["properties"]["data"];
        let (ends, data) = match data["anyOf"].as_array() {
            Some(any) => (any[0]["const"].as_str(), &any[1]["contentSchema"]),
            None => (None, &data["contentSchema"]),
        };
        for event in text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'))
        {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            let said = field("data: ").unwrap_or_else(|| panic!("{place}: {event} has no data"));
            assert_eq!(field("event: ").is_some(), !names.is_null(), "{place}: {event}");
            if Some(said) != ends {
                self.validate(data, said, place);
            }
        }
    }

    #[track_caller]
    fn validate(&self, schema: &Value, text: &str, place: &str) {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("{place}: {text}"));
        let validator = {
            let mut known = self.validators.lock().expect("nobody panics with it");
            Arc::clone(known.entry(schema.to_string()).or_insert_with(|| {
                let mut schema = schema.clone();
                schema["components"] = self.document["components"].clone();
                Arc::new(jsonschema::draft202012::new(&schema).expect("a schema"))
            }))
        };
        let errors: Vec<_> = validator
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{place}: {}\n{text}", errors.join("\n"));
    }
}

/// Asks, and notes which operation it was and whether the answer came as events.
struct Asking {
    seen: BTreeSet<(String, String, bool)>,
}

impl Asking {
    #[track_caller]
    fn ask(
        &mut self,
        (runtime, router): (&Runtime, &Router),
        (method, path): (&str, &str),
        body: &Value,
    ) -> Value {
        let request = Request::builder().method(method).uri(path);
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = request.body(body).expect("a request");
        let answer = exchange(runtime, router, request);
        let kind = answer.headers["content-type"].to_str().expect("text");
        if answer.status == 200 {
            let path = contract().template(path).expect("an operation");
            let is_stream = kind == "text/event-stream";
            self.seen.insert((method.to_lowercase(), path, is_stream));
        }
        serde_json::from_str(&answer.text).unwrap_or_default()
    }
}

#[test]
fn an_answer_of_every_operation_is_what_the_document_says() {
    let mut asking = Asking { seen: BTreeSet::new() };
    let call =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
    let writing = Writing::new(&format!("<think>hm</think>Let me see.\n{call}"));
    let fake = App::new(ServerConfig::default());
    let embedding = embeddings::app(None);
    let writing = (&writing.runtime, &writing.router);
    let fake = (&fake.runtime, &fake.router);
    let embedding = (&embedding.runtime, &embedding.router);
    let function = json!({ "name": "weather", "parameters": { "type": "object" } });
    let user = json!([{ "role": "user", "content": "Bern?" }]);
    for stream in [false, true] {
        for (path, body) in [
            (
                "/v1/chat/completions",
                json!({
                    "messages": user, "tools": [{ "type": "function", "function": function }],
                    "logprobs": true, "top_logprobs": 2, "include_metering": true,
                }),
            ),
            ("/v1/chat/completions", json!({ "messages": user, "max_tokens": 3, "n": 2 })),
            ("/v1/completions", json!({ "prompt": ["a", "b"], "echo": true, "logprobs": 2 })),
            (
                "/v1/responses",
                json!({
                    "input": "Bern?", "include": ["message.output_text.logprobs"], "user": "me",
                    "tools": [{ "type": "function", "name": "weather" }], "metadata": { "a": "b" },
                    "reasoning": { "effort": "low" },
                }),
            ),
            ("/v1/responses", json!({ "input": "Bern?", "max_output_tokens": 20 })),
            (
                "/v1/messages",
                json!({
                    "model": "writer", "messages": user, "max_tokens": 500,
                    "tools": [{ "name": "weather", "input_schema": { "type": "object" } }],
                }),
            ),
        ] {
            let mut body = body;
            body["stream"] = stream.into();
            asking.ask(writing, ("POST", path), &body);
        }
    }
    let options = json!({ "include_usage": true, "continuous_usage_stats": true });
    let chat = json!({ "messages": user, "stream": true, "stream_options": options });
    asking.ask(writing, ("POST", "/v1/chat/completions"), &chat);
    let response = asking.ask(writing, ("POST", "/v1/responses"), &json!({ "input": "x" }));
    let stored = format!("/v1/responses/{}", response["id"].as_str().expect("an id"));
    asking.ask(writing, ("GET", &stored), &Value::Null);
    asking.ask(writing, ("DELETE", &stored), &Value::Null);
    asking.ask(writing, ("GET", &stored), &Value::Null);
    let count = json!({ "model": "writer", "messages": user });
    asking.ask(writing, ("POST", "/v1/messages/count_tokens"), &count);
    let tokenize = json!({ "prompt": "a", "return_token_strs": true });
    asking.ask(fake, ("POST", "/tokenize"), &tokenize);
    asking.ask(fake, ("POST", "/tokenize"), &json!({ "messages": user }));
    asking.ask(fake, ("POST", "/detokenize"), &json!({ "tokens": [97] }));
    for format in ["float", "base64"] {
        let body = json!({ "input": ["a", "b"], "encoding_format": format });
        asking.ask(embedding, ("POST", "/v1/embeddings"), &body);
    }
    for path in [
        "/v1/models",
        "/v1/models/fake",
        "/v1/models/none",
        "/v1/capacity",
        "/v1/capacity?prompt_tokens=0",
        "/health",
        "/ping",
        "/ready",
        "/load",
        "/version",
        "/metrics",
        "/openapi.json",
        "/admin/tenants",
        "/admin/steps",
        "/v1/nothing",
    ] {
        asking.ask(fake, ("GET", path), &Value::Null);
    }
    let score = json!({ "text_1": "a", "text_2": ["b", "c"] });
    asking.ask(embedding, ("POST", "/v1/score"), &score);
    let rerank = json!({ "query": "a", "documents": ["b", "c"] });
    asking.ask(embedding, ("POST", "/v1/rerank"), &rerank);
    let folder = tempfile::tempdir().expect("a folder");
    let files = batches::app(folder.path(), Limits::default(), true);
    let line = json!({
        "custom_id": "a", "method": "POST", "url": "/v1/completions",
        "body": { "prompt": "x", "max_tokens": 2 },
    });
    let file = files.file(&line.to_string());
    // A form, which is asked by it.
    asking.seen.insert(("post".to_owned(), "/v1/files".to_owned(), false));
    let batch = files.batch(&file, "/v1/completions");
    let ended = files.ended(&batch);
    let output = ended["output_file_id"].as_str().expect("it was answered").to_owned();
    let on_disk = (&files.runtime, &files.router);
    for path in [
        "/v1/files",
        &format!("/v1/files/{file}"),
        &format!("/v1/files/{output}/content"),
        "/v1/batches",
        &format!("/v1/batches/{batch}"),
    ] {
        asking.ask(on_disk, ("GET", path), &Value::Null);
    }
    // One that nothing runs may be given up.
    let folder = tempfile::tempdir().expect("a folder");
    let idle = batches::app(folder.path(), Limits::default(), false);
    let waiting = json!({
        "input_file_id": idle.file(&line.to_string()), "endpoint": "/v1/completions",
        "completion_window": "24h",
    });
    let idle = (&idle.runtime, &idle.router);
    let waiting = asking.ask(idle, ("POST", "/v1/batches"), &waiting);
    let cancel = format!("/v1/batches/{}/cancel", waiting["id"].as_str().expect("an id"));
    asking.ask(idle, ("POST", &cancel), &Value::Null);
    asking.ask(on_disk, ("DELETE", &format!("/v1/files/{output}")), &Value::Null);
    for path in ["/reset_prefix_cache", "/admin/reload"] {
        asking.ask(fake, ("POST", path), &Value::Null);
    }
    let contract = contract();
    let mut documented = BTreeSet::new();
    for (path, operations) in contract.document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let content = operation["responses"]["200"]["content"].as_object().expect("content");
            documented.extend(
                content
                    .keys()
                    .map(|kind| (method.clone(), path.clone(), kind == "text/event-stream")),
            );
        }
    }
    // A watcher's stream has no end (`live.rs`), and there is no file to read again (`reload.rs`).
    let elsewhere = [("get", "/v1/live", true), ("post", "/admin/reload", false)];
    for (method, path, stream) in elsewhere {
        assert!(documented.remove(&(method.to_owned(), path.to_owned(), stream)), "{path}");
    }
    assert_eq!(asking.seen, documented);
}

#[test]
fn what_is_not_documented_is_found() {
    let contract = contract();
    let schema = json!({ "$ref": "#/components/schemas/Error" });
    let refused = |error: Value| {
        std::panic::catch_unwind(|| contract.validate(&schema, &error.to_string(), "")).is_err()
    };
    let error = json!({ "message": "m", "type": "server_error", "param": null, "code": null });
    assert!(!refused(json!({ "error": error })));
    for (name, value) in [("type", json!("error")), ("more", json!(1)), ("message", Value::Null)] {
        let mut error = error.clone();
        error[name] = value;
        assert!(refused(json!({ "error": error })), "{name}");
    }
    assert!(refused(json!({ "error": { "message": "m" } })));
}
