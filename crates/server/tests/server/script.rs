//! A server whose model writes what a test wishes: each token is a function of the last.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt as _;
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, PrefixKey, SchedulerConfig, SchedulingPolicy,
};
use sconce_server::{ServerConfig, router};
use sconce_text::{TextConfig, TextModel};
use sconce_types::{
    Executor, ExecutorError, Input, Sample, SampleOutcome, SamplingParams, ScheduledBatch,
    ScheduledSequence, StepResult, TokenId, TokenLogprobs, TokenMasks,
};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

/// Special tokens, bytes, words; ids in this order.
const SPECIALS: [&str; 4] = ["<unk>", "<s>", "</s>", "<|end|>"];
const WORDS: [&str; 9] = ["▁", "▁Hello", "▁world", "▁true", "true", "A", "B", "C", "▁A"];

/// A token's id.
pub(crate) fn id(token: &str) -> TokenId {
    let at = |list: &[&str]| list.iter().position(|&other| other == token);
    let id = at(&SPECIALS).or_else(|| Some(SPECIALS.len() + 256 + at(&WORDS)?));
    TokenId::try_from(id.expect("a token of the vocabulary")).expect("small")
}

/// The tokens of the bytes of a text.
pub(crate) fn bytes(text: &str) -> Vec<TokenId> {
    text.bytes().map(byte).collect()
}

pub(crate) fn byte(byte: u8) -> TokenId {
    TokenId::try_from(SPECIALS.len()).expect("small") + TokenId::from(byte)
}

/// Llama 2's kind: words with a marked space, bytes for what has no token, `<s>` first.
fn text_model() -> TextModel {
    let mut vocab = Map::new();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let (specials, words) = (SPECIALS.iter(), WORDS.iter());
    for token in
        specials.map(|s| (*s).to_owned()).chain(bytes).chain(words.map(|s| (*s).to_owned()))
    {
        let id = vocab.len();
        vocab.insert(token, json!(id));
    }
    let special = |(id, content): (usize, &&str)| {
        json!({
            "id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let first = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": SPECIALS.iter().enumerate().map(special).collect::<Vec<_>>(),
        "pre_tokenizer": { "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true },
        "post_processor": {
            "type": "TemplateProcessing", "single": [first, sequence("A")],
            "pair": [first, sequence("A"), sequence("B")],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
        },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "WordLevel", "unk_token": "<unk>", "vocab": vocab },
    });
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, value: &Value| {
        std::fs::write(dir.path().join(name), value.to_string()).expect("it is written");
    };
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", &json!({ "eos_token": "</s>", "chat_template": template }));
    TextModel::load(dir.path(), &TextConfig::default()).expect("it loads")
}

/// Writes after each token the one that the script has for it, else `</s>`.
struct ScriptedExecutor {
    script: HashMap<TokenId, TokenId>,
    top: Vec<(TokenId, f32)>,
    slots: HashMap<usize, ScriptedSlot>,
    result: StepResult,
}

struct ScriptedSlot {
    params: Arc<SamplingParams>,
    prompt: Vec<TokenId>,
    last: TokenId,
}

impl ScriptedExecutor {
    fn compute(&mut self, batch: &ScheduledBatch, sequence: &ScheduledSequence) {
        let slot = self.slots.get_mut(&sequence.slot.index()).expect("it was admitted");
        let len = sequence.input.len();
        if let Input::Tokens(range) = &sequence.input {
            slot.last = batch.token_ids[range.end - 1];
        }
        let logprobs = |token: TokenId, num_top: u32| {
            let standing = self.top.iter().zip(1..).find(|((other, _), _)| *other == token);
            // Whatever it does not know comes behind all that it knows.
            let rank = Some(standing.map_or(1000 + token, |(_, rank)| rank));
            let top = self.top.iter().take(num_top as usize).copied().collect();
            let logprob = standing.map_or(-9.0, |(&(_, logprob), _)| logprob);
            TokenLogprobs { token, logprob, rank, top }
        };
        let start = sequence.num_computed_tokens;
        let end = slot.prompt.len().min(start + len + 1);
        let predicted = slot.prompt.get(start + 1..end).unwrap_or_default();
        let prompt_logprobs = slot.params.prompt_logprobs.map_or_else(Vec::new, |num_top| {
            predicted.iter().map(|&token| logprobs(token, num_top)).collect()
        });
        let Sample::Token { .. } = sequence.sample else {
            return self.result.push_row(SampleOutcome::Nothing, None, None, prompt_logprobs);
        };
        let token = self.script.get(&slot.last).copied().unwrap_or(id("</s>"));
        slot.last = token;
        let logprobs = slot.params.logprobs.map(|num_top| logprobs(token, num_top));
        self.result.push_row(SampleOutcome::Sampled, Some(token), logprobs, prompt_logprobs);
    }
}

impl Executor for ScriptedExecutor {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        for admitted in &batch.admitted {
            let prompt = admitted.token_ids[..admitted.prompt_len].to_vec();
            let slot = ScriptedSlot { params: Arc::clone(&admitted.params), prompt, last: 0 };
            self.slots.insert(admitted.slot.index(), slot);
        }
        self.result.clear(batch.step);
        batch.sequences.iter().for_each(|sequence| self.compute(batch, sequence));
        Ok(())
    }

    fn sample(&mut self, _: &TokenMasks) -> Result<(), ExecutorError> {
        Ok(())
    }

    fn wait(&mut self, result: &mut StepResult) -> Result<(), ExecutorError> {
        std::mem::swap(result, &mut self.result);
        Ok(())
    }
}

/// A server over such a model.
pub(crate) struct Server {
    runtime: Runtime,
    router: Router,
    _engine: EngineHandle,
}

impl Server {
    /// A model that goes from each token to the next, with these log-probabilities
    /// everywhere.
    pub(crate) fn new(sequence: &[TokenId], top: &[(TokenId, f32)]) -> Self {
        let script: HashMap<_, _> = sequence.windows(2).map(|pair| (pair[0], pair[1])).collect();
        let top = top.to_vec();
        let config = SchedulerConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 64,
            max_model_len: 256,
            num_blocks: 128,
            max_queued: 64,
            groups: CacheGroups::ONE,
            depth: 1,
            prefix_cache: None::<PrefixKey>,
            policy: SchedulingPolicy::Fair,
        };
        let text = text_model();
        let vocab_size = text.vocab_size();
        let build = move || -> Result<_, Infallible> {
            let (script, top) = (HashMap::clone(&script), top.clone());
            let executor = ScriptedExecutor {
                script,
                top,
                slots: HashMap::new(),
                result: StepResult::default(),
            };
            Ok(Built { executor, energy: None, config, vocab_size, info: () })
        };
        let (_, engine, ()) = Engine::start("script", build).expect("the engine starts");
        let config =
            ServerConfig { served_model_names: vec!["script".into()], ..ServerConfig::default() };
        let router = router(engine.clone(), Arc::new(text), config);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, router, _engine: engine }
    }

    fn send(&self, path: &str, body: &Value) -> String {
        let request = Request::post(path).body(Body::from(body.to_string())).expect("a request");
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.expect("infallible");
            let status = response.status();
            let body = response.into_body().collect().await.expect("the body is read");
            let text = String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8");
            assert_eq!(status, StatusCode::OK, "{text}");
            text
        })
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        serde_json::from_str(&self.send(path, body)).expect("JSON")
    }

    /// A completion of a prompt, with further fields.
    pub(crate) fn complete(&self, prompt: impl Into<Value>, more: Value) -> Value {
        self.post("/v1/completions", &completion(prompt, more))
    }

    /// The same in a stream: the choices of all chunks.
    pub(crate) fn stream(&self, prompt: impl Into<Value>, more: Value) -> Vec<Value> {
        let mut body = completion(prompt, more);
        body["stream"] = true.into();
        let text = self.send("/v1/completions", &body);
        let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        let chunks = data.filter(|data| *data != "[DONE]");
        chunks
            .map(|chunk| serde_json::from_str::<Value>(chunk).expect("JSON")["choices"][0].take())
            .collect()
    }
}

fn completion(prompt: impl Into<Value>, more: Value) -> Value {
    let mut body = json!({ "prompt": prompt.into(), "max_tokens": 32, "temperature": 0 });
    let Value::Object(more) = more else { panic!("further fields are an object") };
    body.as_object_mut().expect("an object").extend(more);
    body
}
