//! What clients send and look for beside the fields themselves: content types, paths, metrics,
//! words of errors.

use axum::{body::Body, http::Request};
use sconce_server::ServerConfig;
use serde_json::{Value, json};

use crate::app::{App, CHAT, COMPLETIONS};

#[test]
fn a_body_says_that_it_is_json() {
    let app = App::new(ServerConfig::default());
    let ask = |headers: &[(&str, &str)]| {
        let mut request = Request::post(COMPLETIONS);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Body::from(r#"{"prompt": "x", "max_tokens": 1}"#);
        let (status, _, text) = app.send(request.body(body).expect("a request"));
        (status.as_u16(), text)
    };
    let page = ("origin", "http://127.0.0.1:8000");
    for good in [
        &[("content-type", "application/json")][..],
        &[("content-type", "Application/JSON; charset=utf-8"), page],
        &[("content-type", "application/vnd.api+json")],
        &[],
    ] {
        assert_eq!(ask(good).0, 200, "{good:?}");
    }
    for bad in [
        &[("content-type", "text/plain")][..],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "multipart/form-data; boundary=x"), page],
        &[page],
        &[("sec-fetch-site", "cross-site")],
    ] {
        let (status, text) = ask(bad);
        assert_eq!(status, 415, "{bad:?}: {text}");
        assert!(text.contains("application/json"), "{text}");
    }
}

#[test]
fn a_path_that_is_nearly_right_is_told() {
    let app = App::new(ServerConfig::default());
    for (path, meant) in [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/completions/", "/v1/completions"),
        ("/models", "/v1/models"),
        ("/v1/v1/models/x", "/v1/models/x"),
    ] {
        let (status, answer) = app.post(path, "{}");
        assert_eq!(status, 404);
        let message = answer["error"]["message"].as_str().expect("a message");
        assert!(message.ends_with(&format!("did you mean {meant}?")), "{message}");
    }
    for path in ["/v1/nothing", "/chat", "/v1"] {
        let message = app.post(path, "{}").1["error"]["message"].clone();
        assert!(!message.as_str().expect("a message").contains("did you mean"), "{message}");
    }
}

#[test]
fn a_proxys_prefix_is_taken_off() {
    let config = ServerConfig { root_path: "/llm/".into(), ..ServerConfig::default() };
    let app = App::new(config);
    for (path, status) in [
        ("/llm/health", 200),
        ("/health", 200),
        ("/llm/v1/models?x=1", 200),
        ("/llm/", 404),
        ("/llmhealth", 404),
        ("/llm/llm/health", 404),
    ] {
        assert_eq!(app.status("GET", path, &[]), status, "{path}");
    }
}

#[test]
fn numbers_of_requests_are_where_dashboards_look() {
    let app = App::new(ServerConfig::default());
    let body = json!({ "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": true, "n": 2 });
    assert_eq!(app.post(COMPLETIONS, body).0, 200);
    let get = |path: &str| app.send(Request::get(path).body(Body::empty()).expect("a request")).2;
    assert_eq!(get("/load"), r#"{"server_load":0}"#);
    let metrics = get("/metrics");
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("{name} is missing"))
    };
    assert_eq!(value("vllm:request_params_n_sum"), 2.0);
    assert_eq!(value("vllm:request_inference_time_seconds_count"), 2.0);
    assert_eq!(value("vllm:request_num_preemptions_count"), 2.0);
    // Each choice computes three tokens of its prompt and generates four.
    assert_eq!(value("vllm:iteration_tokens_total_sum"), 2.0 * (3.0 + 4.0));
    let waiting = value("vllm:num_requests_waiting_by_reason{");
    assert_eq!(waiting, 0.0);
}

#[test]
fn what_does_not_fit_is_said_in_openais_words() {
    let app = App::new(ServerConfig::default());
    let long = "x".repeat(200);
    let user = json!([{ "role": "user", "content": long }]);
    for (path, body, param) in [
        (COMPLETIONS, json!({ "prompt": long }), "prompt"),
        (COMPLETIONS, json!({ "prompt": "x", "max_tokens": 200 }), "prompt"),
        (CHAT, json!({ "messages": user }), "messages"),
        ("/v1/responses", json!({ "input": long }), "input"),
    ] {
        let (status, answer) = app.post(path, &body);
        assert_eq!(status, 400);
        let error = &answer["error"];
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("context_length_exceeded"), &json!(param))
        );
        let message = error["message"].as_str().expect("a message");
        assert!(
            message.starts_with("This model's maximum context length is 128 tokens"),
            "{message}"
        );
    }
}

#[test]
fn what_asks_for_nothing_is_taken_and_the_rest_refused() {
    let app = App::new(ServerConfig::default());
    let ask = |more: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1 });
        let Value::Object(more) = more else { panic!("further fields are an object") };
        body.as_object_mut().expect("an object").extend(more);
        app.post(CHAT, body)
    };
    for good in [
        json!({ "store": false, "metadata": { "a": "b" }, "user": "u", "verbosity": "medium" }),
        json!({ "prompt_cache_key": "k", "service_tier": "auto", "model": "" }),
        json!({ "reasoning_effort": "low", "stream": true,
                "stream_options": { "include_obfuscation": false } }),
    ] {
        let mut whole = good.clone();
        whole["stream"] = false.into();
        if good["stream"].is_null() {
            let (status, answer) = ask(whole);
            assert_eq!(status, 200, "{good}: {answer}");
            assert_eq!(answer["model"], "fake", "an empty name is not echoed");
            let fingerprint = answer["system_fingerprint"].as_str().expect("one");
            assert!(fingerprint.starts_with("sconce-"));
        }
    }
    for (bad, param) in [
        (json!({ "store": true }), "store"),
        (json!({ "verbosity": "low" }), "verbosity"),
        (json!({ "reasoning_effort": "huge" }), "reasoning_effort"),
        (
            json!({ "stream": true, "stream_options": { "include_obfuscation": true } }),
            "stream_options.include_obfuscation",
        ),
    ] {
        let (status, answer) = ask(bad);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
}
