//! From a token's event to the bytes of its server-sent event, through the
//! whole router.

use std::{
    convert::Infallible,
    hint::black_box,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
};

use axum::{
    body::{Body, Bytes},
    http::Request,
};
use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use sconce_engine::{Built, CacheGroups, Engine, EngineOptions, SchedulerConfig, SchedulingPolicy};
use sconce_server::{ServerConfig, router};
use sconce_types::{
    Executor, ExecutorError, Sample, ScheduledBatch, ScheduledSequence, StepResult, TokenId,
    TokenMasks,
};
use serde_json::json;
use tower::ServiceExt as _;

use crate::{counted, text};

const STREAMS: usize = 64;

/// 64 chats stream, and each has so many tokens ready. Reading them as one
/// frame of each body is counted, and the engine's thread is not. With `copy`,
/// each frame is copied once.
pub(crate) fn frames(tokens: usize, copy: bool) {
    let sample = text::byte_level();
    let (token, vocab_size) = (sample.tokens[1], sample.model.vocab_size());
    let (permit, permits) = channel();
    let (launch, launches) = channel();
    let config = SchedulerConfig {
        max_num_seqs: STREAMS,
        max_num_batched_tokens: 1024,
        max_model_len: 512,
        num_blocks: 512,
        max_queued: STREAMS,
        groups: CacheGroups::ONE,
        depth: 1,
        prefix_cache: None,
        policy: SchedulingPolicy::Fair,
    };
    let mut executor = Some(Lockstep { token, launch, permits, rows: 0, step: 0 });
    let build = move || -> Result<_, Infallible> {
        let executor = executor.take().expect("it is built once");
        Ok(Built { executor, energy: None, config, vocab_size, info: () })
    };
    // Steps are slow under callgrind: a target would have prompts computed in chunks.
    let options = EngineOptions::new("lockstep").target_itl(None).max_queue_wait(None);
    let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
    let router = router(engine, Arc::clone(&sample.model), ServerConfig::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let _in_runtime = runtime.enter();

    let mut responses: Vec<_> =
        (0..STREAMS).map(|_| Box::pin(router.clone().oneshot(request()))).collect();
    for response in &mut responses {
        assert!(response.now_or_never().is_none(), "it is submitted, and waits for a token");
    }
    launches.recv().expect("the engine runs");
    let steps = |count| {
        for _ in 0..count {
            permit.send(()).expect("the engine runs");
            // The next step is launched once the last one's tokens are delivered.
            launches.recv().expect("the engine runs");
        }
    };
    // The first step may have been launched before the last request came.
    steps(2);
    let mut bodies: Vec<Body> = responses
        .into_iter()
        .map(|response| {
            let Ok(head) = response.now_or_never().expect("the first token is there");
            let mut body = head.into_body();
            while frame(&mut body).is_some() {}
            body
        })
        .collect();
    steps(tokens);
    let mut frames = Vec::with_capacity(STREAMS);
    counted(|| {
        for body in &mut bodies {
            let bytes = frame(body).expect("tokens are there");
            if copy {
                black_box(bytes.to_vec());
            }
            frames.push(bytes);
        }
    });
    for bytes in frames {
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches(" quick").count(), tokens, "{text}");
    }
}

/// What can be read of a body by now.
fn frame(body: &mut Body) -> Option<Bytes> {
    let frame = body.frame().now_or_never()?.expect("a stream does not end here");
    Some(frame.expect("no error").into_data().expect("a frame of data"))
}

fn request() -> Request<Body> {
    let body = json!({
        "stream": true, "max_tokens": 256, "temperature": 0,
        "messages": [{ "role": "user", "content": "hello" }],
    });
    let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
    request.body(Body::from(body.to_string())).expect("a request")
}

/// An executor whose steps wait for permits, and whose tokens are all the same.
struct Lockstep {
    token: TokenId,
    /// Told of every launch.
    launch: Sender<()>,
    permits: Receiver<()>,
    step: u64,
    rows: usize,
}

impl Executor for Lockstep {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        let over = || ExecutorError::Fatal("the measurement is over".to_owned());
        self.launch.send(()).map_err(|_| over())?;
        self.permits.recv().map_err(|_| over())?;
        let samples = |sequence: &ScheduledSequence| sequence.sample != Sample::Nothing;
        assert!(batch.sequences.iter().all(samples), "prompts fit one step");
        (self.step, self.rows) = (batch.step, batch.sequences.len());
        Ok(())
    }

    fn sample(&mut self, _: &TokenMasks) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        result.clear(self.step);
        (0..self.rows).for_each(|_| result.push_token(self.token));
        Ok(())
    }
}
