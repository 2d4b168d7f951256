//! One line for each request.

use std::{
    io,
    sync::{Arc, Mutex},
};

use axum::{
    body::Body,
    extract::ConnectInfo,
    http::{Request, StatusCode},
};
use futures::StreamExt as _;
use sconce_server::{ConnectionConfig, ServerConfig, TenantDirectory};
use sconce_tenants::{NewTenant, add, add_admin_key};
use serde_json::{Value, json};
use tower::ServiceExt as _;
use tracing_subscriber::fmt::MakeWriter;

use super::{
    app::{App, CHAT, COMPLETIONS},
    wire::{IDLE, Server},
};

/// Lines that were logged.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    pub(super) fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().expect("nobody panics with it"));
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// The fields of the only line.
    pub(super) fn take_one(&self) -> Value {
        let text = self.take();
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let [line] = &lines[..] else { panic!("not one line:\n{text}") };
        assert_eq!(line["target"], "sconce::access");
        line["fields"].clone()
    }
}

fn app() -> App {
    App::new(ServerConfig { access_log: true, ..ServerConfig::default() })
}

#[test]
fn every_request_has_a_line_with_what_it_used() {
    let (app, lines) = (app(), Lines::default());
    let subscriber = tracing_subscriber::fmt().json().with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for (path, body, prompt, generated) in [
        (
            COMPLETIONS,
            json!({ "prompt": "abcd", "max_tokens": 3, "n": 2, "ignore_eos": true }),
            4,
            6,
        ),
        (
            COMPLETIONS,
            json!({ "prompt": ["ab", "c"], "max_tokens": 3, "stream": true, "ignore_eos": true }),
            3,
            6,
        ),
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 5, "ignore_eos": true }),
            0,
            5,
        ),
    ] {
        let request = Request::post(path).header("x-request-id", "mine-1");
        let mut request = request.body(Body::from(body.to_string())).expect("a request");
        let client = std::net::SocketAddr::from(([192, 0, 2, 7], 4711));
        request.extensions_mut().insert(ConnectInfo(client));
        let (status, _, text) = app.send(request);
        assert_eq!(status, StatusCode::OK, "{text}");
        let line = lines.take_one();
        for (field, value) in [
            ("request_id", json!("mine-1")),
            ("client", json!("192.0.2.7:4711")),
            ("tenant", json!("default")),
            ("method", json!("POST")),
            ("path", json!(path)),
            ("status", json!(200)),
            ("complete", json!(true)),
            ("generated_tokens", json!(generated)),
            ("bytes", json!(text.len())),
        ] {
            assert_eq!(line[field], value, "{field} of {line}");
        }
        let tokens = line["prompt_tokens"].as_u64().expect("a number");
        assert!(tokens == prompt || path == CHAT && tokens > 0, "{line}");
        let ms = |field: &str| line[field].as_f64().unwrap_or_else(|| panic!("{field} of {line}"));
        assert!(ms("queue_ms") <= ms("ttft_ms") && ms("ttft_ms") <= ms("total_ms"), "{line}");
    }
    for (method, path, body, status) in [
        ("POST", COMPLETIONS, "{", 400),
        ("POST", COMPLETIONS, r#"{"prompt": "x", "max_tokens": 4000}"#, 400),
        ("GET", COMPLETIONS, "", 405),
        ("GET", "/nowhere", "", 404),
        ("GET", "/health", "", 200),
        ("HEAD", "/health", "", 200),
    ] {
        let request = Request::builder().method(method).uri(path).body(Body::from(body));
        app.send(request.expect("a request"));
        let line = lines.take_one();
        assert_eq!((&line["status"], &line["path"]), (&json!(status), &json!(path)), "{line}");
        assert_eq!((&line["complete"], &line["ttft_ms"]), (&json!(true), &Value::Null), "{line}");
    }
}

#[test]
fn a_client_that_leaves_has_a_line_with_what_it_was_sent() {
    let (app, lines) = (app(), Lines::default());
    let subscriber = tracing_subscriber::fmt().json().with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let ask = |body: Body| {
        let request = Request::post(COMPLETIONS).body(body).expect("a request");
        app.router.clone().oneshot(request)
    };
    app.runtime.block_on(async {
        let body = json!({ "prompt": "x", "max_tokens": 100, "stream": true }).to_string();
        let response = ask(Body::from(body)).await.expect("infallible");
        let mut body = response.into_body().into_data_stream();
        body.next().await.expect("a first chunk").expect("it is read");
        assert_eq!(lines.take(), "", "the line comes at the end");
        drop(body);
    });
    let line = lines.take_one();
    assert_eq!((&line["status"], &line["complete"]), (&json!(200), &json!(false)), "{line}");
    let generated = line["generated_tokens"].as_u64().expect("a number");
    assert!((1..=100).contains(&generated), "{line}");
    // Before there is an answer: its body never comes.
    app.runtime.block_on(async {
        let body = futures::stream::pending::<Result<Vec<u8>, std::convert::Infallible>>();
        let mut request = Box::pin(ask(Body::from_stream(body)));
        assert!(futures::poll!(&mut request).is_pending());
    });
    let line = lines.take_one();
    assert_eq!((&line["status"], &line["complete"]), (&json!(499), &json!(false)), "{line}");
}

#[test]
fn a_line_names_who_asked_and_holds_neither_keys_nor_prompts() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sconce.toml");
    let acme = add(&file, "acme", &NewTenant::default()).expect("it is new");
    let admin = add_admin_key(&file).expect("the file is valid");
    let tenants = Arc::new(TenantDirectory::open(&file).expect("the file is usable"));
    let app = App::new(ServerConfig { tenants, access_log: true, ..ServerConfig::default() });
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for (method, path, key, expected) in [
        ("POST", "/v1/completions?key=sk-secret", acme.as_str(), "tenant=\"acme\""),
        ("GET", "/admin/tenants", admin.as_str(), "tenant=\"(admin)\""),
        ("GET", "/v1/models", "sk-secret", "status=401"),
        ("GET", "/x%0Ay\"z", "sk-secret", "path=\"/x%0Ay\\\"z\""),
        ("GET", "/\u{1b}[31m\u{202e}x", "sk-secret", "status=404"),
    ] {
        let request = Request::builder().method(method).header("x-request-id", "a\"b=c");
        let request = request.header("authorization", format!("Bearer {key}"));
        let Ok(uri) = path.parse::<axum::http::Uri>() else { continue };
        let body = Body::from(r#"{"prompt": "sk-secret", "max_tokens": 1}"#);
        app.send(request.uri(uri).body(body).expect("a request"));
        let text = lines.take();
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(text.contains(expected) && text.contains("request_id=\"a\\\"b=c\""), "{text}");
        for hidden in ["secret", acme.as_str(), admin.as_str(), "\u{1b}"] {
            assert!(!text.contains(hidden), "{text:?} shows {hidden:?}");
        }
    }
}

#[test]
fn polled_paths_can_be_left_out() {
    let unlogged_paths = vec!["/health".to_owned(), "/metrics".to_owned()];
    let config = ServerConfig { access_log: true, unlogged_paths, ..ServerConfig::default() };
    let (app, lines) = (App::new(config), Lines::default());
    let subscriber = tracing_subscriber::fmt().json().with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for path in ["/health", "/health/", "/health?x=1", "/metrics"] {
        assert_eq!(app.status("GET", path, &[]), 200);
        assert_eq!(lines.take(), "", "{path}");
    }
    for (path, status) in [("/health/x", 404), ("/ping", 200), ("/", 200)] {
        assert_eq!(app.status("GET", path, &[]), status);
        assert_eq!(lines.take_one()["path"], path);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_before_there_is_a_request_has_a_line() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let config = ConnectionConfig { access_log: true, ..ConnectionConfig::default() };
    let large = format!("GET / HTTP/1.1\r\nHost: {}", "x".repeat(100_000));
    for (max_connections, sent, status) in [
        (0, "", 503),
        (1, "GET /version HTTP/1.1\r\nHost: te", 408),
        (1, "GET / HTTP/one\r\n\r\n", 400),
        (1, &large, 431),
    ] {
        let config = ConnectionConfig { max_connections, ..config.clone() };
        let server = Server::start(config).await;
        let mut client = server.connect().await;
        let address = client.0.local_addr().expect("it is connected");
        client.send(sent).await;
        let text = client.rest_or_reset().await;
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        // Lines of other targets are none of requests.
        let lines = lines.take();
        let line = lines.lines().find(|line| line.contains("sconce::access"));
        let line: Value = serde_json::from_str(line.unwrap_or_default()).expect("a line");
        let fields = &line["fields"];
        let body = text.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
        for (field, value) in [
            ("status", json!(status)),
            ("client", json!(address.to_string())),
            ("bytes", json!(body)),
            ("path", Value::Null),
        ] {
            assert_eq!(fields[field], value, "{field} of {line}");
        }
        let took = fields["total_ms"].as_f64().expect("a number");
        assert_eq!(took > 0.0, status == 408, "{line}");
    }
    // Those that have one have no second line.
    let server = Server::start(config).await;
    server.ask(&IDLE.replace("Host", "Connection: close\r\nHost")).await;
    assert_eq!(lines.take().matches("sconce::access").count(), 1);
}

#[test]
fn it_can_be_off() {
    let (app, lines) = (App::new(ServerConfig::default()), Lines::default());
    let subscriber = tracing_subscriber::fmt().with_writer(lines.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    assert_eq!(app.status("GET", "/health", &[]), 200);
    assert_eq!(lines.take(), "");
}
