//! Who is at fault where a chat template does not render.

use std::{convert::Infallible, sync::Arc};

use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, FakeExecutor, SchedulerConfig, SchedulingPolicy,
};
use sconce_server::{ServerConfig, router};
use sconce_text::{TextConfig, TextModel};
use serde_json::{Value, json};
use tower::ServiceExt as _;

fn engine() -> EngineHandle {
    let limits = SchedulerConfig {
        max_num_seqs: 2,
        max_num_batched_tokens: 64,
        max_model_len: 128,
        num_blocks: 16,
        max_queued: 4,
        groups: CacheGroups::ONE,
        depth: 1,
        prefix_cache: None,
        policy: SchedulingPolicy::Fair,
    };
    let build = move || -> Result<_, Infallible> {
        let executor = FakeExecutor::new(257, limits.num_blocks, limits.max_num_seqs);
        Ok(Built { executor, energy: None, config: limits, vocab_size: 257, info: () })
    };
    Engine::start("fake", build).expect("the engine starts").1
}

/// The answer to a chat request with further fields: the status and the error.
fn answer(template: &str, further: Value) -> (u16, Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let vocab: serde_json::Map<_, _> =
        (33..=126_u8).map(|byte| (char::from(byte).to_string(), json!(byte))).collect();
    let tokenizer =
        json!({ "version": "1.0", "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
    std::fs::write(dir.path().join("chat_template.jinja"), template).expect("written");
    let text = TextModel::load(dir.path(), &TextConfig::default()).expect("it loads");
    let config = ServerConfig { served_model_names: vec!["fake".into()], ..Default::default() };
    let mut body = json!({
        "model": "fake", "max_tokens": 1, "messages": [{ "role": "user", "content": "Hi" }],
    });
    body.as_object_mut().expect("an object").extend(further.as_object().expect("one").clone());
    let request = Request::post("/v1/chat/completions").body(Body::from(body.to_string()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let router = router(engine(), Arc::new(text), config);
        let response = router.oneshot(request.expect("a request")).await.expect("infallible");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("the body is read").to_bytes();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        (status, body["error"].clone())
    })
}

#[test]
fn a_template_that_fails_is_the_servers_fault() {
    let (status, error) = answer("{{ messages[0].content.nothing() }}", json!({}));
    assert_eq!((status, &error["type"]), (500, &json!("server_error")), "{error}");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("chat template failed") && message.contains("nothing"), "{message}");
}

#[test]
fn what_a_template_raises_is_the_clients_fault() {
    let (status, error) = answer("{{ raise_exception('roles must alternate') }}", json!({}));
    assert_eq!((status, &error["param"]), (400, &json!("messages")), "{error}");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("roles must alternate")));
}

#[test]
fn variables_that_a_template_cannot_take_are_the_clients_fault() {
    let template = "{% if depth is defined %}{{ 1 + depth }}{% endif %}x";
    let (status, error) = answer(template, json!({ "chat_template_kwargs": { "depth": "a" } }));
    assert_eq!((status, &error["param"]), (400, &json!("chat_template_kwargs")), "{error}");
    assert_eq!(answer(template, json!({ "chat_template_kwargs": { "depth": 1 } })).0, 200);
}
