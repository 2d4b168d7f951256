//! A server of an engine without a model, for tests that need little more.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use sconce_engine::SchedulingPolicy;
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, EngineOptions, FakeExecutor, SchedulerConfig,
};
use sconce_server::{ServerConfig, router};
use sconce_text::TextModel;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::conformance::exchange;

pub(crate) const COMPLETIONS: &str = "/v1/completions";
pub(crate) const CHAT: &str = "/v1/chat/completions";

pub(crate) struct App {
    pub(crate) runtime: Runtime,
    pub(crate) router: Router,
    pub(crate) engine: EngineHandle,
}

impl App {
    pub(crate) fn new(config: ServerConfig) -> Self {
        Self::with(config, |config, _| config)
    }

    /// One whose configuration needs the engine, or a runtime, which this is called in.
    pub(crate) fn with(
        config: ServerConfig,
        complete: impl FnOnce(ServerConfig, &EngineHandle) -> ServerConfig,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let limits = SchedulerConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 64,
            max_model_len: 128,
            num_blocks: 32,
            max_queued: 64,
            groups: CacheGroups::ONE,
            depth: 1,
            prefix_cache: None,
            policy: SchedulingPolicy::Fair,
        };
        let text = Arc::new(TextModel::bytes());
        let vocab_size = text.vocab_size();
        let build = move || -> Result<_, Infallible> {
            let tokens = u32::try_from(vocab_size).expect("a few hundred");
            let executor = FakeExecutor::new(tokens, limits.num_blocks, limits.max_num_seqs);
            Ok(Built { executor, energy: None, config: limits, vocab_size, info: () })
        };
        let options = EngineOptions::new("fake").tenants(config.tenants.tenants());
        let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
        let config = ServerConfig { served_model_names: vec!["fake".into()], ..config };
        let config = {
            let _inside = runtime.enter();
            complete(config, &engine)
        };
        let router = router(engine.clone(), text, config);
        Self { runtime, router, engine }
    }

    pub(crate) fn send(&self, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        let answer = exchange(&self.runtime, &self.router, request);
        (answer.status, answer.headers, answer.text)
    }

    /// The status of a request with these headers.
    pub(crate) fn status(&self, method: &str, path: &str, headers: &[(&str, &[u8])]) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        self.send(request.body(Body::empty()).expect("a request")).0.as_u16()
    }

    pub(crate) fn post(&self, path: &str, body: impl ToString) -> (u16, Value) {
        let request = Request::post(path).body(Body::from(body.to_string()));
        let (status, _, text) = self.send(request.expect("a request"));
        (status.as_u16(), serde_json::from_str(&text).expect("JSON"))
    }

    /// The parameter at fault, and what is said of it.
    pub(crate) fn refused(&self, path: &str, body: impl ToString) -> (Value, String) {
        let (status, answer) = self.post(path, body);
        assert_eq!(status, 400, "{answer}");
        let error = &answer["error"];
        (error["param"].clone(), error["message"].as_str().expect("a message").to_owned())
    }
}
