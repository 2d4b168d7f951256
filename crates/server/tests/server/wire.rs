//! The server on real sockets: time limits, connections' limits and ends, and what HTTP
//! clients do beside sending requests.
//!
//! Where time limits are tested, time is paused: it moves on to the next one whenever nobody
//! has anything to do.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use axum::body::Bytes;
use futures::{SinkExt as _, channel::mpsc, future::join_all};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, FakeExecutor, PrefixKey, SchedulerConfig,
    SchedulingPolicy,
};
use sconce_server::{ConnectionConfig, ServeError, ServerConfig, listen, router, serve};
use sconce_text::TextModel;
use sconce_types::{Executor, ExecutorError, ScheduledBatch, StepResult, TokenMasks};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::Instant,
};

const LIMITS: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 8,
    max_num_batched_tokens: 64,
    max_model_len: 4096,
    num_blocks: 1024,
    max_queued: 64,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: Some(PrefixKey([1, 2])),
    policy: SchedulingPolicy::Fair,
};
pub(super) const MAX_BODY: usize = 64 << 10;

/// An executor that needs a permit for each step until permits end.
struct Gated {
    inner: FakeExecutor,
    permits: Receiver<()>,
}

impl Executor for Gated {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        let _ = self.permits.recv();
        self.inner.launch(batch)
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        self.inner.sample(masks)
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        self.inner.wait(result)
    }
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) engine: EngineHandle,
    /// Gone where steps need no permit.
    pub(super) permits: Option<Sender<()>>,
    signals: mpsc::UnboundedSender<()>,
    pub(super) served: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    pub(super) async fn start(config: ConnectionConfig) -> Self {
        let mut server = Self::gated(config).await;
        server.permits = None;
        server
    }

    pub(super) async fn gated(config: ConnectionConfig) -> Self {
        let text = Arc::new(TextModel::bytes());
        let vocab_size = text.vocab_size();
        let (permit, permits) = channel();
        let mut permits = Some(permits);
        let build = move || -> Result<_, Infallible> {
            let tokens = u32::try_from(vocab_size).expect("a few hundred");
            let inner = FakeExecutor::new(tokens, LIMITS.num_blocks, LIMITS.max_num_seqs);
            let permits = permits.take().expect("it is built once");
            let executor = Gated { inner, permits };
            Ok(Built { executor, energy: None, config: LIMITS, vocab_size, info: () })
        };
        let (_, engine, ()) = Engine::start("fake", build).expect("the engine starts");
        let names = vec!["fake".into()];
        let server_config = ServerConfig {
            served_model_names: names,
            max_body_bytes: MAX_BODY,
            access_log: config.access_log,
            ..ServerConfig::default()
        };
        let router = router(engine.clone(), text, server_config);
        let listener = listen("127.0.0.1", 0).await.expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let (signals, received) = mpsc::unbounded();
        let served = tokio::spawn(serve(listener, router, engine.clone(), received, config));
        Self { address, engine, permits: Some(permit), signals, served }
    }

    pub(super) async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.expect("it listens"))
    }

    /// One request on a connection of its own, which the server closes.
    pub(super) async fn ask(&self, request: &str) -> String {
        let mut client = self.connect().await;
        client.send(request).await;
        client.rest().await
    }

    pub(super) async fn signal(&self) {
        self.signals.clone().send(()).await.expect("it listens for signals");
    }

    pub(super) async fn ended(self) -> Result<(), ServeError> {
        self.served.await.expect("it does not panic")
    }
}

pub(super) struct Client(pub(super) TcpStream);

impl Client {
    pub(super) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("it is sent");
    }

    /// Reads until the server closes the connection.
    pub(super) async fn rest(&mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).await.expect("the connection is closed in order");
        text
    }

    /// As [`Self::rest`], where the server may not have read all that was sent.
    pub(super) async fn rest_or_reset(&mut self) -> String {
        let mut text = Vec::new();
        while self.0.read_buf(&mut text).await.is_ok_and(|len| len > 0) {}
        String::from_utf8(text).expect("UTF-8")
    }

    /// Sends a byte every few seconds until the server closes its side.
    pub(super) async fn drip(self) -> String {
        let (mut reader, mut writer) = self.0.into_split();
        let mut text = String::new();
        let drip = async {
            while writer.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            read = reader.read_to_string(&mut text) => read.map(|_| ()).unwrap_or_default(),
            () = drip => {}
        }
        text
    }

    /// Reads until the text is there.
    pub(super) async fn until(&mut self, wanted: &str) -> String {
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(wanted) {
            let read = self.0.read_buf(&mut text).await.expect("it is answered");
            assert!(read > 0, "no {wanted:?} in {:?}", String::from_utf8_lossy(&text));
        }
        String::from_utf8(text).expect("UTF-8")
    }
}

pub(super) fn completion(headers: &str, extra: Value) -> String {
    let mut body = json!({ "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": true });
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    post("/v1/completions", headers, &body.to_string())
}

pub(super) fn post(path: &str, headers: &str, body: &str) -> String {
    let len = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {len}\r\n\r\n{body}")
}

pub(super) const CLOSE: &str = "Connection: close\r\n";
pub(super) const IDLE: &str = "GET /version HTTP/1.1\r\nHost: test\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let server = Server::start(ConnectionConfig::default()).await;
    let limit = ConnectionConfig::default().head_timeout;
    let started = Instant::now();
    let (mut slow, mut silent) = (server.connect().await, server.connect().await);
    slow.send("GET /version HTTP/1.1\r\nHost: te").await;
    let (slow, silent) = tokio::join!(slow.rest(), silent.rest());
    assert!(slow.starts_with("HTTP/1.1 408 ") && slow.contains("request_timeout"), "{slow}");
    assert_eq!(silent, "");
    assert!(started.elapsed() >= limit && started.elapsed() < 2 * limit);

    // A byte now and then is no reason to wait longer.
    let started = Instant::now();
    let slow = server.connect().await;
    let text = slow.drip().await;
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(started.elapsed() >= limit);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_a_while() {
    let server = Server::start(ConnectionConfig::default()).await;
    let limit = ConnectionConfig::default().keep_alive_timeout;
    let mut client = server.connect().await;
    client.send(IDLE).await;
    client.until("\"version\"").await;
    let started = Instant::now();
    // It is open for most of that time.
    tokio::time::sleep(limit - Duration::from_secs(1)).await;
    client.send(IDLE).await;
    client.until("\"version\"").await;
    client.rest().await;
    assert!(started.elapsed() >= 2 * limit - Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_answered_and_ended() {
    let server = Server::start(ConnectionConfig::default()).await;
    let head = "POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\n{";
    let started = Instant::now();
    let mut stalled = server.connect().await;
    stalled.send(head).await;
    let text = stalled.rest().await;
    assert!(text.starts_with("HTTP/1.1 408 ") && text.contains("body did not come"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(30), "it is closed with its answer");

    let started = Instant::now();
    let mut dripping = server.connect().await;
    dripping.send(head).await;
    let text = dripping.drip().await;
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(started.elapsed() >= Duration::from_secs(30));

    // What came at once does not pay for what comes later.
    let started = Instant::now();
    let mut burst = server.connect().await;
    burst.send(&head.replace("1000", "65000")).await;
    burst.send(&" ".repeat(64_000)).await;
    let text = burst.drip().await;
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(30) && took < Duration::from_secs(32), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_dropped() {
    let server = Server::start(ConnectionConfig::default()).await;
    let started = Instant::now();
    let mut client = server.connect().await;
    let requests = "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n".repeat(64);
    // It sends until answers fill the buffers, and then the server does not read either.
    while client.0.write_all(requests.as_bytes()).await.is_ok() {}
    assert!(started.elapsed() >= ConnectionConfig::default().write_timeout);
    assert!(server.ask(&completion(CLOSE, json!({}))).await.contains("200 OK"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_over_the_limit_is_told() {
    let config = ConnectionConfig {
        max_connections: 3,
        max_connections_per_client: 2,
        ..ConnectionConfig::default()
    };
    let server = Server::start(config).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = server.connect().await;
        client.send(IDLE).await;
        client.until("\"version\"").await;
        held.push(client);
    }
    let text = server.connect().await.rest().await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("too_many_connections"), "{text}");
    assert!(text.contains("\r\nretry-after: ") && text.contains("\r\nconnection: close"), "{text}");
    drop(held);
    // Their places are free once the server has seen the ends.
    while server.ask(&IDLE.replace("Host", "Connection: close\r\nHost")).await.contains(" 503 ") {}
}

#[tokio::test]
async fn a_chunked_body_that_was_read_leaves_nothing_to_wait_for() {
    let config = ConnectionConfig { max_connections: 1, ..ConnectionConfig::default() };
    let server = Server::start(config).await;
    let body = json!({ "prompt": [1], "max_tokens": 1 }).to_string();
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: t\r\n{CLOSE}Transfer-Encoding: chunked\r\n\r\n\
         {:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let mut first = server.connect().await;
    first.send(&chunked).await;
    assert!(first.rest().await.starts_with("HTTP/1.1 200 "));
    // The client still has its socket, but the server has let go of the connection.
    let text = server.ask(&IDLE.replace("Host", "Connection: close\r\nHost")).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_answered_while_it_is_sent() {
    let server = Server::start(ConnectionConfig::default()).await;
    // More than fits into the buffers of both sides.
    let large = "x".repeat(16 << 20);
    let text = server.ask(&post("/v1/completions", "", &large)).await;
    assert!(text.starts_with("HTTP/1.1 413 ") && text.contains("65536"), "{text}");
    let chunked = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let head = "POST /tokenize HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n";
    let text = server.ask(&format!("{head}{chunked}")).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    // Whatever is refused before its body is read.
    let text = server.ask(&post("/no/such/path", "", &large)).await;
    assert!(text.starts_with("HTTP/1.1 404 "), "{text}");
}

#[tokio::test]
async fn a_declared_length_is_refused_before_the_body_is_asked_for() {
    let server = Server::start(ConnectionConfig::default()).await;
    let expect = |len: usize| {
        format!(
            "POST /v1/completions HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\n{CLOSE}\
             Content-Length: {len}\r\n\r\n"
        )
    };
    let text = server.ask(&expect(MAX_BODY + 1)).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    let without = expect(MAX_BODY + 1).replace("Expect: 100-continue\r\n", "");
    let text = server.ask(&without).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");

    let body = json!({ "prompt": [1], "max_tokens": 1 }).to_string();
    let mut client = server.connect().await;
    client.send(&expect(body.len())).await;
    client.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.send(&body).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn encodings_are_refused_by_name() {
    let server = Server::start(ConnectionConfig::default()).await;
    let gzip = format!("{CLOSE}Content-Encoding: gzip\r\n");
    let text = server.ask(&post("/v1/chat/completions", &gzip, "\u{1f}\u{8b}")).await;
    assert!(text.starts_with("HTTP/1.1 415 ") && text.contains("gzip"), "{text}");
    assert!(text.contains("accept-encoding: identity"), "{text}");
    let text = server.ask(&post("/v1/completions", CLOSE, "\u{feff}{\"prompt\": [1]}")).await;
    assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("byte order mark"), "{text}");
    let identity = format!("{CLOSE}Content-Encoding: identity\r\n");
    let text = server.ask(&completion(&identity, json!({}))).await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}

#[tokio::test]
async fn methods_and_slashes() {
    let server = Server::start(ConnectionConfig::default()).await;
    let ask = async |line: &str| {
        server.ask(&format!("{line} HTTP/1.1\r\nHost: test\r\n{CLOSE}\r\n")).await
    };
    let text = ask("OPTIONS /v1/chat/completions").await;
    assert!(text.starts_with("HTTP/1.1 204 ") && text.contains("allow: POST"), "{text}");
    let text = ask("GET /v1/chat/completions").await;
    assert!(text.starts_with("HTTP/1.1 405 ") && text.contains("allow: POST"), "{text}");
    let text = ask("HEAD /health").await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\n"), "{text}");
    for path in ["/health/", "/v1/models/", "/v1/models/fake", "/v1/models/fake/"] {
        let text = ask(&format!("GET {path}")).await;
        assert!(text.starts_with("HTTP/1.1 200 "), "{path}: {text}");
    }
    let request = completion(CLOSE, json!({})).replace("completions", "completions/");
    assert!(server.ask(&request).await.starts_with("HTTP/1.1 200 "));
    let text = ask("GET /metrics").await;
    assert!(!text.contains("handler=\"/v1/completions/\""), "a route has one label");
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let server = Server::gated(ConnectionConfig::default()).await;
    for stream in [false, true] {
        for headers in ["", CLOSE] {
            let mut client = server.connect().await;
            client.send(&completion(headers, json!({ "stream": stream }))).await;
            client.0.shutdown().await.expect("it is shut down");
            while server.engine.unfinished() == 0 {
                tokio::task::yield_now().await;
            }
            // The server sees the end before there is a token: it sends an answer's first byte.
            let mut first = [0];
            client.0.read_exact(&mut first).await.expect("a byte");
            assert_eq!(&first, b"H");
            for _ in 0..4 {
                server.permits.as_ref().expect("they are needed").send(()).expect("it runs");
            }
            let text = client.rest().await;
            assert!(text.starts_with("TTP/1.1 200 OK\r\n"), "{text}");
            assert!(text.contains(if stream { "[DONE]" } else { "\"finish_reason\"" }), "{text}");
        }
    }
}

#[tokio::test]
async fn a_half_closed_client_gets_the_answers_to_all_its_requests() {
    let mut server = Server::gated(ConnectionConfig::default()).await;
    let mut client = server.connect().await;
    client.send(&completion("", json!({}))).await;
    while server.engine.unfinished() == 0 {
        tokio::task::yield_now().await;
    }
    // The server sees the end behind a request that it has not read.
    client.send(IDLE).await;
    client.0.shutdown().await.expect("it is shut down");
    let mut first = [0];
    client.0.read_exact(&mut first).await.expect("a byte");
    assert_eq!(&first, b"H");
    server.permits = None;
    let text = client.rest().await;
    assert!(text.starts_with("TTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.contains("\"finish_reason\"") && text.contains("\"version\""), "{text}");
}

#[tokio::test]
async fn a_client_that_is_gone_is_cancelled() {
    let server = Server::gated(ConnectionConfig::default()).await;
    let permit = || server.permits.as_ref().expect("they are needed").send(()).expect("it runs");
    for (stream, next) in [(false, ""), (true, ""), (false, IDLE), (false, "x")] {
        let mut client = server.connect().await;
        client.send(&completion("", json!({ "stream": stream, "max_tokens": 4000 }))).await;
        while server.engine.unfinished() == 0 {
            tokio::task::yield_now().await;
        }
        // The server does not read this before it has answered.
        client.send(next).await;
        drop(client);
        // Each step may be the one after which the engine hears of it.
        let mut steps = 0;
        while server.engine.unfinished() > 0 {
            permit();
            tokio::time::sleep(Duration::from_millis(5)).await;
            steps += 1;
            assert!(steps < 2000, "it runs for nobody (stream: {stream}, then {next:?})");
        }
    }
}

#[tokio::test]
async fn http2_is_spoken_without_being_asked_for() {
    let server = Server::start(ConnectionConfig::default()).await;
    let socket = TcpStream::connect(server.address).await.expect("it listens");
    let connected =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await;
    let (sender, connection) = connected.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let ask = |stream: bool| {
        let mut sender = sender.clone();
        let body = json!({ "prompt": [1, 2], "max_tokens": 4, "stream": stream }).to_string();
        let request =
            hyper::Request::post("http://test/v1/completions").body(Full::<Bytes>::from(body));
        async move {
            let response = sender.send_request(request.expect("a request")).await;
            let response = response.expect("it is answered");
            let status = response.status();
            let body = response.into_body().collect().await.expect("it is whole").to_bytes();
            (status.as_u16(), String::from_utf8(body.to_vec()).expect("UTF-8"))
        }
    };
    let answers = join_all((0..20).map(|n| ask(n % 2 == 0))).await;
    for (n, (status, text)) in answers.iter().enumerate() {
        assert_eq!(*status, 200, "{text}");
        assert!(text.contains(if n % 2 == 0 { "[DONE]" } else { "\"finish_reason\"" }), "{text}");
    }
}

#[tokio::test]
async fn connections_without_a_request_do_not_hold_the_end_up() {
    let config = ConnectionConfig {
        // Whoever waits for any of these takes hours.
        head_timeout: Duration::from_secs(10_000),
        keep_alive_timeout: Duration::from_secs(10_000),
        drain_timeout: Duration::from_secs(10_000),
        ..ConnectionConfig::default()
    };
    let server = Server::start(config).await;
    let mut silent = server.connect().await;
    let mut idle = server.connect().await;
    idle.send(IDLE).await;
    idle.until("\"version\"").await;
    let mut head = server.connect().await;
    head.send("POST /v1/completions HTTP/1.1\r\nHo").await;
    let mut body = server.connect().await;
    body.send("POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: 90\r\n\r\n{").await;
    // All of them are taken up.
    assert!(server.ask(&completion(CLOSE, json!({}))).await.contains("200 OK"));
    server.signal().await;
    let text = body.rest().await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("shutting down"), "{text}");
    assert!(text.contains("connection: close"), "{text}");
    for client in [&mut silent, &mut idle, &mut head] {
        // A reset is an end too.
        let _ = client.0.read(&mut [0; 64]).await;
    }
    server.ended().await.expect("nothing was cut off");
}

#[tokio::test]
async fn what_is_refused_while_draining_closes_its_connection() {
    let mut server = Server::gated(ConnectionConfig::default()).await;
    let (mut running, mut kept) = (server.connect().await, server.connect().await);
    kept.send(IDLE).await;
    kept.until("\"version\"").await;
    running.send(&completion("", json!({ "stream": true }))).await;
    while server.engine.unfinished() == 0 {
        tokio::task::yield_now().await;
    }
    server.signal().await;
    while !server.engine.is_draining() {
        tokio::task::yield_now().await;
    }
    kept.send(&completion("", json!({}))).await;
    let text = kept.rest().await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("connection: close"), "{text}");
    server.permits = None;
    let text = running.rest().await;
    assert!(text.contains("[DONE]"), "{text}");
    server.ended().await.expect("nothing was cut off");
}

#[tokio::test]
async fn a_second_signal_and_the_time_limit_cut_off_and_count() {
    // The time limit is an hour where there are two signals.
    for (signals, millis) in [(2, 3_600_000), (1, 20)] {
        let drain_timeout = Duration::from_millis(millis);
        let config = ConnectionConfig { drain_timeout, ..ConnectionConfig::default() };
        let server = Server::gated(config).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut client = server.connect().await;
            client.send(&completion("", json!({}))).await;
            clients.push(client);
        }
        while server.engine.unfinished() < 3 {
            tokio::task::yield_now().await;
        }
        for _ in 0..signals {
            server.signal().await;
        }
        let ended = server.ended().await;
        assert!(matches!(ended, Err(ServeError::RequestsCut(3))), "{ended:?}");
    }
}

#[tokio::test]
async fn text_far_beyond_the_context_is_refused() {
    let server = Server::start(ConnectionConfig::default()).await;
    let text = "a ".repeat(16 << 10);
    let many = |item: &str, count: usize| format!("[{}]", vec![item; count].join(","));
    let message = format!(r#"{{"role": "user", "content": "{text}"}}"#);
    let refused = [
        ("/v1/completions", format!(r#"{{"prompt": "{text}"}}"#)),
        ("/v1/chat/completions", format!(r#"{{"messages": [{message}]}}"#)),
        ("/tokenize", format!(r#"{{"prompt": "{text}"}}"#)),
        ("/tokenize", format!(r#"{{"messages": [{message}]}}"#)),
        ("/detokenize", format!(r#"{{"tokens": {}}}"#, many("1", 20_000))),
        ("/v1/completions", format!(r#"{{"prompt": {}}}"#, many("1", 20_000))),
    ];
    for (path, body) in refused {
        let text = server.ask(&post(path, CLOSE, &body)).await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{path}: {text}");
        assert!(text.contains("context_length_exceeded"), "{path}: {text}");
    }
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let text = server.ask(&post("/tokenize", CLOSE, &format!(r#"{{"prompt": {deep}}}"#))).await;
    assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
    // What is only somewhat too long is counted.
    let counted = format!(r#"{{"prompt": "{}"}}"#, "a".repeat(3 * LIMITS.max_model_len));
    let text = server.ask(&post("/tokenize", CLOSE, &counted)).await;
    assert!(text.contains(r#"{"count":12288,"#), "{}", &text[..200]);
}
