//! What clients see when a device fails.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt as _;
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, FakeExecutor, SchedulerConfig, SchedulingPolicy,
};
use sconce_scheduler::Fault;
use sconce_server::{ConnectionConfig, ServeError, ServerConfig, listen, router, serve};
use sconce_text::TextModel;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower::ServiceExt as _;

const LIMITS: SchedulerConfig = SchedulerConfig {
    max_num_seqs: 4,
    max_num_batched_tokens: 64,
    max_model_len: 128,
    num_blocks: 32,
    max_queued: 16,
    groups: CacheGroups::ONE,
    depth: 1,
    prefix_cache: None,
    policy: SchedulingPolicy::Fair,
};
const ASK: &str = r#"{"model": "fake", "prompt": [1, 2, 3], "max_tokens": 8, "ignore_eos": true}"#;

/// A server of an engine whose executor has this fault.
fn app(fault: Fault) -> (EngineHandle, Router) {
    let text = Arc::new(TextModel::bytes());
    let vocab_size = text.vocab_size();
    let build = move || -> Result<_, Infallible> {
        let tokens = u32::try_from(vocab_size).expect("a few hundred");
        let mut executor = FakeExecutor::new(tokens, LIMITS.num_blocks, LIMITS.max_num_seqs);
        executor.inject(fault.clone());
        Ok(Built { executor, energy: None, config: LIMITS, vocab_size, info: () })
    };
    let (_, engine, ()) = Engine::start("fake", build).expect("the engine starts");
    let config = ServerConfig { served_model_names: vec!["fake".into()], ..Default::default() };
    let router = router(engine.clone(), text, config);
    (engine, router)
}

async fn send(
    router: &Router,
    method: &str,
    path: &str,
    body: &'static str,
) -> (StatusCode, String) {
    let request = Request::builder().method(method).uri(path).body(Body::from(body));
    let response = router.clone().oneshot(request.expect("a request")).await.expect("infallible");
    let status = response.status();
    let body = response.into_body().collect().await.expect("the body is read");
    (status, String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8"))
}

#[tokio::test]
async fn a_lost_executor_is_a_clear_500_and_the_next_request_is_answered() {
    let (_engine, router) = app(Fault::LoseExecutor(3));
    let (status, text) = send(&router, "POST", "/v1/completions", ASK).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.contains("the executor is lost"), "{text}");
    let (status, text) = send(&router, "POST", "/v1/completions", ASK).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let (status, _) = send(&router, "GET", "/ready", "").await;
    assert_eq!(status, StatusCode::OK);
    let (_, text) = send(&router, "GET", "/metrics", "").await;
    assert!(
        text.contains("sconce:engine_restarts_total{engine=\"0\",model_name=\"fake\"} 1"),
        "{text}"
    );
}

#[tokio::test]
async fn a_lost_device_is_answered_and_ends_the_server() {
    let (engine, router) = app(Fault::LoseDevice(3));
    let listener = listen("127.0.0.1", 0).await.expect("a free port");
    let address = listener.local_addr().expect("it listens");
    let never = futures::stream::pending();
    let served = serve(listener, router.clone(), engine, never, ConnectionConfig::default());
    let ask = async {
        let mut client = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{ASK}",
            ASK.len()
        );
        client.write_all(request.as_bytes()).await.expect("it is sent");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("it is answered");
        answer
    };
    let (served, answer) = tokio::join!(served, ask);
    assert!(
        answer.starts_with("HTTP/1.1 500") && answer.contains("the device is lost"),
        "{answer}"
    );
    assert!(matches!(served, Err(ServeError::DeviceLost)), "{served:?}");
    let (status, _) = send(&router, "GET", "/ready", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}
