//! The endpoints over an engine without a model: what is accepted, what is
//! refused and how, and that nothing a client sends is answered with a 5xx.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
};
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use sconce_engine::{
    Built, CacheGroups, Engine, EngineHandle, FakeExecutor, PrefixKey, SchedulerConfig,
    SchedulingPolicy,
};
use sconce_server::{ServerConfig, router};
use sconce_tenants::ApiKeys;
use sconce_text::{TextConfig, TextModel};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

const VOCAB_SIZE: u32 = 257;

/// A tokenizer whose tokens are ASCII characters, and a generation config.
fn text(generation: &Value) -> Arc<TextModel> {
    let mut vocab = Map::new();
    for byte in 33..=126_u8 {
        vocab.insert(char::from(byte).to_string(), json!(byte));
    }
    vocab.insert("Ġ".to_owned(), json!(32));
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    let template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, value: &Value| {
        std::fs::write(dir.path().join(name), value.to_string()).expect("it is written");
    };
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", &json!({ "chat_template": template }));
    write("generation_config.json", generation);
    Arc::new(TextModel::load(dir.path(), &TextConfig::default()).expect("it loads"))
}

struct App {
    runtime: Runtime,
    router: Router,
    engine: EngineHandle,
}

impl App {
    fn new(config: ServerConfig) -> Self {
        Self::with(config, &json!({ "eos_token_id": 256 }))
    }

    fn with(config: ServerConfig, generation: &Value) -> Self {
        let limits = SchedulerConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 64,
            max_model_len: 128,
            num_blocks: 32,
            max_queued: 64,
            groups: CacheGroups::ONE,
            depth: 1,
            prefix_cache: Some(PrefixKey([1, 2])),
            policy: SchedulingPolicy::Fair,
        };
        let build = move || -> Result<_, Infallible> {
            let executor = FakeExecutor::new(VOCAB_SIZE, limits.num_blocks, limits.max_num_seqs);
            let vocab_size = VOCAB_SIZE as usize;
            Ok(Built { executor, energy: None, config: limits, vocab_size, info: () })
        };
        let (_, engine, ()) = Engine::start("fake", build).expect("the engine starts");
        let config = ServerConfig { served_model_names: vec!["fake".into()], ..config };
        let router = router(engine.clone(), text(generation), config);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { runtime, router, engine }
    }

    fn send(&self, request: Request<Body>) -> (StatusCode, String) {
        self.runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.expect("infallible");
            let status = response.status();
            let body = response.into_body().collect().await.expect("the body is read");
            (status, String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8"))
        })
    }

    fn post(&self, path: &str, body: impl ToString) -> (StatusCode, String) {
        let request = Request::post(path).body(Body::from(body.to_string()));
        self.send(request.expect("a request"))
    }

    fn post_ok(&self, path: &str, body: &Value) -> Value {
        let (status, text) = self.post(path, body);
        assert_eq!(status, StatusCode::OK, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The data of a stream's events but the closing `[DONE]`.
    fn events(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, text) = self.post(path, body);
        assert_eq!(status, StatusCode::OK, "{text}");
        let mut data: Vec<_> = text
            .split("\n\n")
            .filter(|event| !event.is_empty())
            .map(|event| event.strip_prefix("data: ").expect("an event of data"))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }

    /// An error's fields: status, param, code, message.
    fn refused(&self, path: &str, body: impl ToString) -> (u16, Value, Value, String) {
        let (status, text) = self.post(path, body);
        let error: Value = serde_json::from_str(&text).expect("an error is JSON");
        let error = &error["error"];
        assert!(error["type"].is_string(), "{text}");
        let message = error["message"].as_str().expect("a message").to_owned();
        (status.as_u16(), error["param"].clone(), error["code"].clone(), message)
    }
}

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn with(base: &Value, extra: Value) -> Value {
    let mut body = base.clone();
    let Value::Object(extra) = extra else { panic!("extra fields are an object") };
    body.as_object_mut().expect("an object").extend(extra);
    body
}

fn completion(extra: Value) -> Value {
    with(&json!({ "prompt": "hello", "seed": 1, "max_tokens": 12 }), extra)
}

fn chat(extra: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    with(&json!({ "messages": messages, "seed": 1, "max_tokens": 12 }), extra)
}

#[test]
fn a_stream_is_the_whole_in_pieces() {
    let app = App::new(ServerConfig::default());
    for extra in
        [json!({}), json!({ "n": 3 }), json!({ "stop": ["a", "Q~"] }), json!({ "logprobs": 2 })]
    {
        let whole = app.post_ok(COMPLETIONS, &completion(extra.clone()));
        let n = whole["choices"].as_array().expect("choices").len();
        let mut texts = vec![String::new(); n];
        let mut reasons = vec![Value::Null; n];
        let stream =
            with(&extra, json!({ "stream": true, "stream_options": { "include_usage": true } }));
        let events = app.events(COMPLETIONS, &completion(stream));
        let (last, chunks) = events.split_last().expect("a last chunk");
        assert_eq!(last["usage"], whole["usage"]);
        assert_eq!(last["choices"], json!([]));
        for chunk in chunks {
            assert_eq!(chunk["usage"], Value::Null);
            let choice = &chunk["choices"][0];
            let index =
                usize::try_from(choice["index"].as_u64().expect("an index")).expect("small");
            texts[index].push_str(choice["text"].as_str().expect("a text"));
            if !choice["finish_reason"].is_null() {
                reasons[index] = choice["finish_reason"].clone();
            }
        }
        for (index, choice) in whole["choices"].as_array().expect("choices").iter().enumerate() {
            assert_eq!(choice["text"], texts[index], "{extra}");
            assert_eq!(choice["finish_reason"], reasons[index], "{extra}");
        }
    }
}

#[test]
fn usage_counts_prompt_tokens_that_were_cached_until_the_cache_is_reset() {
    let app = App::new(ServerConfig::default());
    let body = |n: u64| json!({ "prompt": vec![7; 40], "max_tokens": 2, "n": n });
    let cached = |n| {
        let usage = app.post_ok(COMPLETIONS, &body(n))["usage"].take();
        assert_eq!(usage["prompt_tokens"], 40);
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
    };
    assert_eq!(cached(1), 0);
    assert_eq!(cached(1), 32);
    assert_eq!(cached(2), 32, "a prompt of two choices is counted once");
    let (status, _) = app.post("/reset_prefix_cache", "");
    assert_eq!(status, StatusCode::OK);
    assert_eq!(cached(1), 0);
}

#[test]
fn a_chat_stream_opens_with_the_role_and_ends_with_a_reason() {
    let app = App::new(ServerConfig::default());
    let whole = app.post_ok(CHAT, &chat(json!({})));
    let events = app.events(CHAT, &chat(json!({ "stream": true })));
    assert_eq!(events[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let text: String =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    let last = events.last().expect("a last chunk");
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn prompts_of_every_kind_and_echo() {
    let app = App::new(ServerConfig::default());
    let text = app.post_ok(COMPLETIONS, &completion(json!({})))["choices"][0]["text"].clone();
    let tokens: Vec<u8> = b"hello".to_vec();
    for prompt in [json!(tokens), json!(["hello"]), json!([tokens])] {
        let answer = app.post_ok(COMPLETIONS, &completion(json!({ "prompt": prompt })));
        assert_eq!(answer["choices"][0]["text"], text);
        assert_eq!(answer["usage"]["prompt_tokens"], 5);
    }
    let body = completion(json!({ "echo": true, "logprobs": 1, "max_tokens": 0 }));
    let scored = app.post_ok(COMPLETIONS, &body);
    let choice = &scored["choices"][0];
    assert_eq!(choice["text"], "hello");
    assert_eq!(choice["logprobs"]["tokens"], json!(["h", "e", "l", "l", "o"]));
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([null, -1.0, -1.0, -1.0, -1.0]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2, 3, 4]));
    assert_eq!(scored["usage"]["completion_tokens"], 0);
}

#[test]
fn nulls_and_what_asks_for_nothing_are_accepted() {
    let app = App::new(ServerConfig::default());
    for field in [
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "logit_bias",
        "user",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "response_format",
        "top_logprobs",
        "logprobs",
        "min_tokens",
        "top_k",
        "metadata",
        "model",
    ] {
        app.post_ok(CHAT, &chat(json!({ field: null })));
    }
    app.post_ok(
        CHAT,
        &chat(json!({ "tools": [], "store": false, "response_format": { "type": "text" } })),
    );
    app.post_ok(COMPLETIONS, &completion(json!({ "best_of": 1, "suffix": "", "priority": 0 })));
}

#[test]
fn what_is_wrong_is_refused_by_name() {
    let app = App::new(ServerConfig::default());
    let cases = [
        (
            json!({ "temprature": 1 }),
            "temprature",
            "unknown_parameter",
            "did you mean temperature?",
        ),
        (json!({ "max_token": 1 }), "max_token", "unknown_parameter", "did you mean max_tokens?"),
        (json!({ "zzzz": 1 }), "zzzz", "unknown_parameter", "no field zzzz"),
        (json!({ "stream_options": { "x": 1 } }), "stream_options.x", "unknown_parameter", "x"),
        (json!({ "temperature": "hot" }), "temperature", "", "string"),
        (json!({ "temperature": -0.1 }), "temperature", "", "from 0"),
        (json!({ "top_p": 0 }), "top_p", "", "above 0"),
        (json!({ "top_k": -2 }), "top_k", "", "-2"),
        (json!({ "n": 0 }), "n", "", "from 1"),
        (json!({ "n": 4_000_000_000_u32 }), "n", "", "from 1"),
        (json!({ "n": 1.5 }), "n", "", "1.5"),
        (json!({ "min_tokens": 13 }), "min_tokens", "", "max_tokens"),
        (json!({ "presence_penalty": 3 }), "presence_penalty", "", "-2 to 2"),
        (json!({ "repetition_penalty": 0 }), "repetition_penalty", "", "above 0"),
        (json!({ "logit_bias": { "257": 1 } }), "logit_bias", "", "vocabulary"),
        (json!({ "logit_bias": { "x": 1 } }), "logit_bias", "", "token ids"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias", "", "100"),
        (json!({ "stop_token_ids": [257] }), "stop_token_ids", "", "vocabulary"),
        (json!({ "stop": [""] }), "stop", "", "empty"),
        (json!({ "stop": vec!["a"; 17] }), "stop", "", "16"),
        (json!({ "stop": 5 }), "stop", "", "string"),
        (json!({ "stream_options": {} }), "stream_options", "", "stream: true"),
        (
            json!({ "guided_json": { "a": 1 } }),
            "guided_json",
            "unsupported_parameter",
            "guided_json",
        ),
        (json!({ "cache_salt": "x" }), "cache_salt", "unsupported_parameter", "cache_salt"),
    ];
    for path in [COMPLETIONS, CHAT] {
        for (extra, param, code, words) in &cases {
            let body = if path == CHAT { chat(extra.clone()) } else { completion(extra.clone()) };
            let (status, got, got_code, message) = app.refused(path, &body);
            assert_eq!((status, &got), (400, &json!(param)), "{path} {extra}: {message}");
            assert_eq!(got_code.as_str().unwrap_or_default(), *code, "{path} {extra}");
            assert!(message.contains(words), "{path} {extra}: {message:?} lacks {words:?}");
        }
    }
    let (status, _, code, _) = app.refused(COMPLETIONS, completion(json!({ "model": "other" })));
    assert_eq!((status, code), (404, json!("model_not_found")));
    let (status, _, code, _) = app.refused(COMPLETIONS, completion(json!({ "max_tokens": 124 })));
    assert_eq!((status, code), (400, json!("context_length_exceeded")));
    let function = json!({ "name": "f" });
    assert_eq!(app.refused(CHAT, chat(json!({ "functions": [function] }))).1, "functions");
    let both = json!({ "max_completion_tokens": 3 });
    assert_eq!(app.refused(CHAT, chat(both)).1, "max_completion_tokens");
    for body in ["{", "[]", "null", "\"x\"", "{\"prompt\": \"a\", \"temperature\": 1e999}"] {
        assert_eq!(app.refused(COMPLETIONS, body).0, 400, "{body}");
    }
    let request = Request::post(COMPLETIONS).body(Body::from(vec![b'"', 0xff, b'"']));
    assert_eq!(app.send(request.expect("a request")).0, StatusCode::BAD_REQUEST);
    let nested = format!("{{\"prompt\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(app.refused(COMPLETIONS, nested).0, 400);
}

#[test]
fn the_models_generation_config_is_a_default_only() {
    let generation = json!({ "eos_token_id": 256, "top_k": -7 });
    let app = App::with(ServerConfig::default(), &generation);
    // What is wrong with it shows that it is used; a request's own value wins.
    assert_eq!(app.refused(COMPLETIONS, completion(json!({}))).1, "top_k");
    app.post_ok(COMPLETIONS, &completion(json!({ "top_k": 5 })));
}

#[test]
fn keys_ids_and_limits() {
    let app = App::new(ServerConfig {
        api_keys: ApiKeys::new(["right", "other"]).expect("they are keys"),
        max_body_bytes: 2000,
        ..ServerConfig::default()
    });
    let request = |key: Option<&str>, id: &str, body: &Value| {
        let mut request = Request::post(COMPLETIONS).header("x-request-id", id);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.body(Body::from(body.to_string())).expect("a request")
    };
    let body = completion(json!({}));
    for key in [None, Some("wrong"), Some("righ"), Some("")] {
        assert_eq!(app.send(request(key, "a", &body)).0, StatusCode::UNAUTHORIZED, "{key:?}");
    }
    for key in ["right", "other"] {
        assert_eq!(app.send(request(Some(key), "a", &body)).0, StatusCode::OK);
    }
    let large = completion(json!({ "user": "x".repeat(3000) }));
    let (status, text) = app.send(request(Some("right"), "a", &large));
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(text.contains("2000"), "{text}");
    for (id, kept) in [("abc-1", true), ("with space", false), ("", false)] {
        let given = app.runtime.block_on(async {
            let sent = request(Some("right"), id, &body);
            let response = app.router.clone().oneshot(sent).await.expect("infallible");
            response.headers()["x-request-id"].to_str().expect("ASCII").to_owned()
        });
        assert_eq!(given == id, kept, "{id:?} became {given:?}");
    }
    for path in ["/health", "/ready", "/version", "/metrics", "/ping"] {
        let open = Request::get(path).body(Body::empty()).expect("a request");
        assert_eq!(app.send(open).0, StatusCode::OK, "{path} needs no key");
    }
    let (_, metrics) = app.send(Request::get("/metrics").body(Body::empty()).expect("a request"));
    assert!(metrics.contains("http_requests_total{engine=\"0\",handler=\"/v1/completions\""));
    assert!(metrics.contains("vllm:generation_tokens_total{engine=\"0\",model_name=\"fake\"}"));
}

#[test]
fn a_dropped_response_frees_its_blocks() {
    let app = App::new(ServerConfig::default());
    app.runtime.block_on(async {
        for _ in 0..20 {
            let body = completion(
                json!({ "max_tokens": 120, "ignore_eos": true, "stream": true, "n": 4 }),
            );
            let request = Request::post(COMPLETIONS).body(Body::from(body.to_string()));
            let response =
                app.router.clone().oneshot(request.expect("a request")).await.expect("infallible");
            assert_eq!(response.status(), StatusCode::OK);
            drop(response);
        }
    });
    // Draining waits for every request to end, dropped or not.
    app.runtime.block_on(app.engine.drain());
    assert_eq!(app.engine.unfinished(), 0);
    let (status, _, _, message) = app.refused(COMPLETIONS, completion(json!({})));
    assert_eq!(status, 503, "{message}");
    let ready = app.send(Request::get("/ready").body(Body::empty()).expect("a request"));
    assert_eq!(ready.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn tokenize_and_detokenize_are_inverse() {
    let app = App::new(ServerConfig::default());
    let tokens = app.post_ok("/tokenize", &json!({ "prompt": "a b" }));
    assert_eq!(tokens["tokens"], json!([97, 32, 98]));
    assert_eq!(tokens["count"], 3);
    assert_eq!(tokens["max_model_len"], 128);
    let text = app.post_ok("/detokenize", &json!({ "tokens": tokens["tokens"] }));
    assert_eq!(text["prompt"], "a b");
    let chat =
        app.post_ok("/tokenize", &json!({ "messages": [{ "role": "user", "content": "x" }] }));
    assert_eq!(chat["count"], "user:x;".len());
    assert_eq!(app.refused("/detokenize", json!({ "tokens": [999] })).0, 400);
}

/// Any JSON, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~é]{0,12}".prop_map(Value::from),
        (-3_i64..4).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z0-9]{1,4}", inner, 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever stands in a field: an answer or a 4xx, never a 5xx, a panic or
    /// a hang.
    #[test]
    fn no_value_of_any_field_breaks_the_server(
        field in prop::sample::select(vec![
            "prompt", "messages", "model", "max_tokens", "max_completion_tokens", "temperature",
            "top_p", "top_k", "min_p", "n", "stop", "seed", "logprobs", "top_logprobs", "echo",
            "logit_bias", "stream", "stream_options", "min_tokens", "stop_token_ids",
            "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos",
            "skip_special_tokens", "add_generation_prompt", "chat_template_kwargs", "tools",
            "response_format", "structured_outputs", "metadata", "user", "best_of", "suffix", "anything",
        ]),
        value in any_json(),
        is_chat: bool,
    ) {
        thread_local! {
            static APP: App = App::new(ServerConfig::default());
        }
        let (path, body) = if is_chat {
            (CHAT, chat(json!({ field: value })))
        } else {
            (COMPLETIONS, completion(json!({ field: value })))
        };
        let (status, text) = APP.with(|app| app.post(path, &body));
        prop_assert!(status.as_u16() < 500, "{} {}: {} {}", path, body, status, text);
    }
}

#[test]
fn the_servers_seed_fixes_what_requests_without_one_get() {
    let texts = |between: usize| {
        let app = App::new(ServerConfig { seed: Some(7), ..ServerConfig::default() });
        (0..3)
            .map(|_| {
                for _ in 0..between {
                    app.send(Request::get("/health").body(Body::empty()).expect("a request"));
                }
                let answer = app.post_ok(COMPLETIONS, &completion(json!({ "seed": null })));
                (answer["choices"][0]["text"].clone(), answer["id"].clone())
            })
            .collect::<Vec<_>>()
    };
    let (alone, polled) = (texts(0), texts(2));
    for ((text, id), (same_text, other_id)) in alone.iter().zip(&polled) {
        assert_eq!(text, same_text);
        assert_ne!(id, other_id, "ids of two servers differ though their seeds are the same");
    }
}

#[test]
fn an_answer_can_be_sent_back_as_a_message() {
    let app = App::new(ServerConfig::default());
    let question = json!({ "role": "user", "content": "hi" });
    let answer =
        app.post_ok(CHAT, &chat(json!({ "max_tokens": 3 })))["choices"][0]["message"].clone();
    app.post_ok(CHAT, &chat(json!({ "messages": [question, answer, question] })));
    // What OpenAI's own answers hold beside role and content.
    let foreign = json!({
        "role": "assistant", "content": "x", "refusal": null, "annotations": [], "audio": null,
        "function_call": null, "tool_calls": null,
    });
    app.post_ok(CHAT, &chat(json!({ "messages": [question, foreign, question] })));
    let call = json!({ "role": "assistant", "content": "x", "tool_calls": [{ "id": "1" }] });
    let (status, param, code, _) = app.refused(CHAT, chat(json!({ "messages": [question, call] })));
    assert_eq!(
        (status, param, code),
        (400, json!("messages[1].tool_calls[0].function"), Value::Null)
    );
}

#[test]
fn what_a_client_sent_is_not_sent_back_whole() {
    let app = App::new(ServerConfig::default());
    let long = "x".repeat(1 << 21);
    for extra in [json!({ &long: 1 }), json!({ "temperature": long }), json!({ "model": long })] {
        let (status, text) = app.post(COMPLETIONS, completion(extra));
        assert!(status.is_client_error(), "{status}");
        assert!(text.len() < 5000, "{} bytes", text.len());
    }
}

#[test]
fn errors_name_the_field_that_was_sent() {
    let app = App::new(ServerConfig::default());
    let (_, param, _, message) =
        app.refused(CHAT, chat(json!({ "logprobs": true, "top_logprobs": 21 })));
    assert_eq!(param, "top_logprobs", "{message}");
    assert_eq!(app.refused(CHAT, json!({})).1, "messages");
    assert_eq!(app.refused(COMPLETIONS, json!({})).1, "prompt");
    let (_, param, _, message) = app.refused(CHAT, chat(json!({ "chat_template_kwarg": {} })));
    assert_eq!(param, "chat_template_kwarg");
    assert!(message.contains("did you mean chat_template_kwargs?"), "{message}");
}
