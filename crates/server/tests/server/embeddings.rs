//! `/v1/embeddings`, over a model whose embeddings tell what it was given.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, EngineOptions, SchedulerConfig, SchedulingPolicy,
};
use sconce_server::{ServerConfig, router};
use sconce_text::TextModel;
use sconce_types::{
    EmbeddingInfo, Executor, ExecutorError, Sample, SampleOutcome, ScheduledBatch, StepResult,
    TokenId, TokenMasks,
};
use serde_json::{Value, json};

use crate::app::{App, CHAT};

const PATH: &str = "/v1/embeddings";
pub(crate) const MAX_TOKENS: usize = 20;

/// Makes `[length, sum of tokens, first, last]` of each prompt.
#[derive(Default)]
struct Telling {
    prompts: HashMap<usize, Vec<TokenId>>,
    result: StepResult,
}

impl Executor for Telling {
    fn launch(&mut self, batch: &ScheduledBatch) -> Result<(), ExecutorError> {
        for admitted in &batch.admitted {
            let prompt = admitted.token_ids[..admitted.prompt_len].to_vec();
            self.prompts.insert(admitted.slot.index(), prompt);
        }
        self.result.clear(batch.step);
        for sequence in &batch.sequences {
            if sequence.sample == Sample::Nothing {
                self.result.push(SampleOutcome::Nothing);
                continue;
            }
            let prompt = &self.prompts[&sequence.slot.index()];
            let sum = prompt.iter().sum::<u32>() as f32;
            let ends = [prompt[0], prompt[prompt.len() - 1]].map(|token| token as f32);
            let embedding = [prompt.len() as f32, sum, ends[0], ends[1]];
            self.result.embeddings.push((sequence.request, Arc::from(embedding)));
            self.result.push_token(0);
        }
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

/// A server of few places: of four texts that run and two that wait.
pub(crate) fn app(matryoshka: Option<Vec<usize>>) -> App {
    app_with(matryoshka, |config, _| config)
}

/// The same, with a configuration that needs the engine, or a runtime.
pub(crate) fn app_with(
    matryoshka: Option<Vec<usize>>,
    complete: impl FnOnce(ServerConfig, &EngineHandle) -> ServerConfig,
) -> App {
    let limits = SchedulerConfig {
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_model_len: MAX_TOKENS + 1,
        num_blocks: 8,
        max_queued: 2,
        groups: CacheGroups::ONE,
        depth: 1,
        prefix_cache: None,
        policy: SchedulingPolicy::Fair,
    };
    let text = Arc::new(TextModel::bytes());
    let vocab_size = text.vocab_size();
    let build = move || -> Result<_, Infallible> {
        let executor = Telling::default();
        Ok(Built { executor, energy: None, config: limits, vocab_size, info: () })
    };
    let options = EngineOptions::new("telling");
    let (_, engine, ()) = Engine::start(options, build).expect("the engine starts");
    let embedding =
        EmbeddingInfo { dimensions: 4, matryoshka, is_normalized: false, max_tokens: MAX_TOKENS };
    let config = ServerConfig {
        served_model_names: vec!["telling".into()],
        embedding: Some(embedding),
        ..ServerConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let config = {
        let _inside = runtime.enter();
        complete(config, &engine)
    };
    let router = router(engine.clone(), text, config);
    App { runtime, router, engine }
}

fn embeddings(answer: &Value) -> Vec<Value> {
    let data = answer["data"].as_array().expect("a list");
    data.iter().map(|item| item["embedding"].clone()).collect()
}

#[test]
fn inputs_of_every_form_are_embedded_in_their_order() {
    let app = app(None);
    let a = json!([1.0, 97.0, 97.0, 97.0]);
    for (input, expected) in [
        (json!("a"), vec![a.clone()]),
        (json!(["a", "ab"]), vec![a.clone(), json!([2.0, 195.0, 97.0, 98.0])]),
        (json!([97, 98, 99]), vec![json!([3.0, 294.0, 97.0, 99.0])]),
        (json!([[98], [97]]), vec![json!([1.0, 98.0, 98.0, 98.0]), a.clone()]),
    ] {
        let (status, answer) = app.post(PATH, json!({ "model": "telling", "input": input }));
        assert_eq!(status, 200, "{answer}");
        assert_eq!(embeddings(&answer), expected);
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("telling")));
        let tokens: f64 = expected.iter().map(|e| e[0].as_f64().expect("a length")).sum();
        let tokens = tokens as u64;
        assert_eq!(answer["usage"], json!({ "prompt_tokens": tokens, "total_tokens": tokens }));
        for (index, item) in answer["data"].as_array().expect("a list").iter().enumerate() {
            assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(index)));
        }
    }
}

/// Ten times as many texts as the engine has places for.
#[test]
fn more_texts_than_there_are_places_wait_for_their_own_request() {
    let app = app(None);
    let inputs: Vec<Vec<u32>> = (0..300).map(|i| vec![i % 250; 1 + i as usize % 19]).collect();
    let (status, answer) = app.post(PATH, json!({ "input": inputs }));
    assert_eq!(status, 200, "{answer}");
    let got = embeddings(&answer);
    assert_eq!(got.len(), 300);
    for (input, got) in inputs.iter().zip(&got) {
        let sum: u32 = input.iter().sum();
        assert_eq!((&got[0], &got[1]), (&json!(input.len() as f64), &json!(f64::from(sum))));
    }
    assert_eq!(app.engine.unfinished(), 0);
}

#[test]
fn base64_is_of_little_endian_f32s() {
    let app = app(None);
    let (status, answer) =
        app.post(PATH, json!({ "input": "a", "encoding_format": "base64", "user": "me" }));
    assert_eq!(status, 200, "{answer}");
    // 1 is 00 00 80 3f, 97 is 00 00 c2 42.
    assert_eq!(embeddings(&answer), [json!("AACAPwAAwkIAAMJCAADCQg==")]);
}

#[test]
fn long_inputs_are_refused_or_cut() {
    let app = app(None);
    let long = "a".repeat(MAX_TOKENS + 1);
    let tokens = vec![97; MAX_TOKENS + 1];
    for input in [json!(long), json!(tokens)] {
        let (status, answer) = app.post(PATH, json!({ "input": [input] }));
        let error = &answer["error"];
        assert_eq!(status, 400, "{answer}");
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("context_length_exceeded"), &json!("input"))
        );
        for (cut, len) in [(-1, MAX_TOKENS), (7, 7)] {
            let (status, answer) =
                app.post(PATH, json!({ "input": [input], "truncate_prompt_tokens": cut }));
            assert_eq!(status, 200, "{answer}");
            assert_eq!(embeddings(&answer)[0][0], json!(len as f64));
        }
    }
    for cut in [0, -2, MAX_TOKENS as i64 + 1] {
        let body = json!({ "input": "a", "truncate_prompt_tokens": cut });
        assert_eq!(app.refused(PATH, body).0, "truncate_prompt_tokens", "{cut}");
    }
}

#[test]
fn every_wrong_field_is_named() {
    let app = app(None);
    for (body, param) in [
        (json!({}), "input"),
        (json!({ "input": null }), "input"),
        (json!({ "input": 5 }), "input"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": [[]] }), "input"),
        (json!({ "input": [97, "a"] }), "input"),
        (json!({ "input": [97.5] }), "input"),
        (json!({ "input": [-1] }), "input"),
        (json!({ "input": [257] }), "input"),
        (json!({ "input": vec!["a"; 2049] }), "input"),
        (json!({ "input": "a", "encoding_format": "hex" }), "encoding_format"),
        (json!({ "input": "a", "dimensions": 2 }), "dimensions"),
        (json!({ "input": "a", "dimensions": "4" }), "dimensions"),
        (json!({ "input": "a", "user": 1 }), "user"),
        (json!({ "input": "a", "truncate_prompt_tokens": "x" }), "truncate_prompt_tokens"),
        (json!({ "input": "a", "inputs": "b" }), "inputs"),
        (json!({ "input": "a", "normalize": true }), "normalize"),
    ] {
        let text = body.to_string();
        assert_eq!(app.refused(PATH, body).0, param, "{}", &text[..text.len().min(80)]);
    }
    let (status, answer) = app.post(PATH, json!({ "model": "other", "input": "a" }));
    assert_eq!((status, &answer["error"]["param"]), (404, &json!("model")));
    let (status, _) = app.post(PATH, json!({ "input": "a", "dimensions": 4 }));
    assert_eq!(status, 200);
}

#[test]
fn only_matryoshka_embeddings_are_cut_and_then_normalised() {
    let app = app(Some(vec![2]));
    let (status, answer) = app.post(PATH, json!({ "input": [3, 1], "dimensions": 2 }));
    assert_eq!(status, 200, "{answer}");
    let length = 20_f32.sqrt();
    let got: Vec<f32> = serde_json::from_value(embeddings(&answer)[0].clone()).expect("numbers");
    assert_eq!(got, [2.0 / length, 4.0 / length]);
    assert_eq!(app.refused(PATH, json!({ "input": "a", "dimensions": 3 })).0, "dimensions");
}

#[test]
fn each_kind_of_model_refuses_what_the_other_does() {
    let encoder = app(None);
    let chat = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    for (path, body) in [
        (CHAT, &chat),
        ("/v1/completions", &json!({ "prompt": "hi" })),
        ("/v1/responses", &json!({ "input": "hi" })),
    ] {
        let (param, message) = encoder.refused(path, body);
        assert_eq!(param, "model");
        assert!(message.contains("\"telling\" makes embeddings"), "{message}");
    }
    let (status, answer) = encoder.post("/v1/messages", &chat);
    assert_eq!((status, &answer["type"]), (400, &json!("error")), "{answer}");
    let generator = App::new(ServerConfig::default());
    let (param, message) = generator.refused(PATH, json!({ "input": "hi" }));
    assert_eq!(param, "model");
    assert!(message.contains("\"fake\" generates text"), "{message}");
}
