//! A server whose model writes one text, whatever it is asked.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use sconce_engine::{Built, CacheGroups, Engine, SchedulerConfig, SchedulingPolicy};
use sconce_server::{ServerConfig, router};
use sconce_text::{ReasoningFormat, TextModel, ToolFormat};
use sconce_types::{
    Executor, ExecutorError, Sample, SampleOutcome, ScheduledBatch, StepResult, TokenId,
    TokenLogprobs, TokenMask, TokenMasks,
};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::conformance::exchange;

const END: TokenId = 256;

/// Gives each slot the next byte of the text, or the first that its mask allows instead.
struct Writer {
    text: Vec<TokenId>,
    written: HashMap<usize, usize>,
    /// The slots of the step's rows, those that sample.
    rows: Vec<Option<usize>>,
    result: StepResult,
}

impl Executor for Writer {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        for admitted in &batch.admitted {
            self.written.insert(admitted.slot.index(), 0);
        }
        self.result.clear(batch.step);
        for sequence in &batch.sequences {
            let samples = matches!(sequence.sample, Sample::Token { .. });
            self.rows.push(samples.then(|| sequence.slot.index()));
        }
        Ok(())
    }

    fn sample(&mut self, masks: &TokenMasks) -> Result<(), ExecutorError> {
        for (row, slot) in self.rows.drain(..).enumerate() {
            let Some(slot) = slot else {
                self.result.push(SampleOutcome::Nothing);
                continue;
            };
            let mask = masks.get(row);
            if mask == TokenMask::Skip {
                self.result.push(SampleOutcome::Skipped);
                continue;
            }
            let written = self.written.get_mut(&slot).expect("it was admitted");
            let token = self.text.get(*written).copied().unwrap_or(END);
            *written += 1;
            let first = || (0..=END).find(|&token| mask.allows(token)).expect("one is allowed");
            let token = if mask.allows(token) { token } else { first() };
            let logprobs =
                TokenLogprobs { token, logprob: -0.25, rank: None, top: vec![(token, -0.25)] };
            self.result.push_row(SampleOutcome::Sampled, Some(token), Some(logprobs), Vec::new());
        }
        Ok(())
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        std::mem::swap(result, &mut self.result);
        Ok(())
    }
}

pub(crate) struct Writing {
    pub(crate) runtime: Runtime,
    pub(crate) router: Router,
}

impl Writing {
    /// A server of a model that writes this text, and calls as Hermes does.
    pub(crate) fn new(text: &str) -> Self {
        Self::of("hermes", text)
    }

    /// The same with calls in another form.
    pub(crate) fn of(tool_format: &str, text: &str) -> Self {
        Self::with(tool_format, Some("qwen3"), text)
    }

    /// A server of a model that calls as Hermes does, and does not think.
    pub(crate) fn thoughtless(text: &str) -> Self {
        Self::with("hermes", None, text)
    }

    fn with(tool_format: &str, reasoning_format: Option<&str>, text: &str) -> Self {
        let written: Vec<TokenId> = text.bytes().map(TokenId::from).collect();
        let config = SchedulerConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 512,
            max_model_len: 4096,
            num_blocks: 1024,
            max_queued: 64,
            groups: CacheGroups::ONE,
            depth: 1,
            prefix_cache: None,
            policy: SchedulingPolicy::Fair,
        };
        let text = TextModel::bytes();
        let vocab_size = text.vocab_size();
        let build = move || -> Result<_, Infallible> {
            let executor = Writer {
                text: written.clone(),
                written: HashMap::new(),
                rows: Vec::new(),
                result: StepResult::default(),
            };
            Ok(Built { executor, energy: None, config, vocab_size, info: () })
        };
        let (_, engine, ()) = Engine::start("writer", build).expect("the engine starts");
        let config = ServerConfig {
            served_model_names: vec!["writer".into()],
            tool_call_parser: ToolFormat::from_name(tool_format),
            reasoning_parser: reasoning_format.and_then(ReasoningFormat::from_name),
            ..ServerConfig::default()
        };
        let router = router(engine, Arc::new(text), config);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, router }
    }

    pub(crate) fn send(&self, request: Request<Body>) -> (StatusCode, String) {
        let answer = exchange(&self.runtime, &self.router, request);
        (answer.status, answer.text)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = Request::post(path).body(Body::from(body.to_string())).expect("a request");
        let (status, text) = self.send(request);
        (status.as_u16(), serde_json::from_str(&text).expect("JSON"))
    }

    /// The events of a stream: their names, empty where they have none, and what they say.
    pub(crate) fn events(&self, path: &str, body: &Value) -> Vec<(String, Value)> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let request = Request::post(path).body(Body::from(body.to_string())).expect("a request");
        let (status, text) = self.send(request);
        assert_eq!(status, StatusCode::OK, "{text}");
        let event = |event: &str| {
            let field = |name: &str| {
                event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
            };
            let data = field("data: ");
            let data = (data != "[DONE]" && !data.is_empty())
                .then(|| serde_json::from_str(data).expect("JSON"));
            data.map(|data| (field("event: ").to_owned(), data))
        };
        text.split("\n\n").filter_map(event).collect()
    }
}
