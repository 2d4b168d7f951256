//! The server as a whole: load, disconnects, bad input, shutdown.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
};

use serde_json::{Value, json};

use crate::{
    model,
    process::{Server, sconce},
};

fn completion(extra: Value) -> String {
    let mut body = json!({ "prompt": [1, 2, 3, 4], "temperature": 0, "ignore_eos": true });
    body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    body.to_string()
}

#[test]
fn it_says_what_it_serves_and_answers() {
    let server = Server::start(&[]);
    for word in ["LlamaForCausalLM", "bfloat16", "CPU", "KV cache", "tokens", "curl -N http://"] {
        assert!(server.banner.contains(word), "no {word:?} in\n{}", server.banner);
    }
    knows_the_capital_of_france(&server);
}

#[test]
fn with_int8_weights_it_says_so_and_answers() {
    let server = Server::start(&["--quantization", "int8"]);
    // A byte for each of 134 million weights, and the outputs' scales.
    for words in ["weights   int8, 130 MiB", "KV cache  bfloat16"] {
        assert!(server.banner.contains(words), "no {words:?} in\n{}", server.banner);
    }
    knows_the_capital_of_france(&server);
}

fn knows_the_capital_of_france(server: &Server) {
    let body = json!({
        "messages": [{ "role": "user", "content": "What is the capital of France?" }],
        "temperature": 0,
    });
    let (status, text) = server.send("POST", "/v1/chat/completions", &body.to_string());
    let answer: Value = serde_json::from_str(&text).expect("the answer is JSON");
    assert_eq!(status, 200, "{text}");
    let content = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(content.contains("Paris"), "{content}");
}

#[test]
fn what_dropped_streams_held_is_free_within_a_step() {
    let server = Server::start(&["--max-model-len", "2048"]);
    std::thread::scope(|scope| {
        for client in 0..64 {
            let server = &server;
            scope.spawn(move || {
                let leaves = client % 2 == 0;
                let max_tokens = if leaves { 1500 } else { 24 };
                let body = completion(json!({ "max_tokens": max_tokens, "stream": true }));
                let mut lines =
                    BufReader::new(server.open("POST", "/v1/completions", &body)).lines();
                let mut chunks = 0;
                for line in &mut lines {
                    let line = line.expect("the stream is UTF-8");
                    chunks += usize::from(line.contains("\"text\""));
                    if leaves && chunks == 8 {
                        return;
                    }
                }
                assert!(!leaves && chunks >= 1, "client {client} got {chunks} chunks");
            });
        }
    });
    // A request that comes after all of them is answered after they are gone;
    // its own blocks are freed before its last token is sent.
    let polls = 200;
    for poll in 0..polls {
        let (status, _) =
            server.send("POST", "/v1/completions", &completion(json!({"max_tokens": 1})));
        assert_eq!(status, 200);
        if server.metric("sconce:kv_blocks_used") == 0.0 {
            assert_eq!(server.metric("vllm:num_requests_running"), 0.0);
            return;
        }
        assert!(poll + 1 < polls, "blocks are still held");
    }
}

#[test]
fn bad_input_is_refused_by_name_and_costs_nobody_anything() {
    let server = Server::start(&["--max-body-bytes", "64K", "--max-model-len", "256"]);
    let cases: &[(&str, String, u16, &str)] = &[
        ("/v1/completions", "{".into(), 400, "not JSON"),
        ("/v1/completions", "[]".into(), 400, "object"),
        ("/v1/completions", completion(json!({"temprature": 1})), 400, "did you mean temperature"),
        ("/v1/completions", completion(json!({"temperature": "hot"})), 400, "temperature"),
        ("/v1/completions", completion(json!({"temperature": -1})), 400, "temperature"),
        ("/v1/completions", completion(json!({"n": 0})), 400, "n is 0"),
        ("/v1/completions", completion(json!({"n": 1_000_000_000})), 400, "n is"),
        ("/v1/completions", completion(json!({"min_tokens": 99})), 400, "min_tokens"),
        ("/v1/completions", completion(json!({"logit_bias": {"999999": 1}})), 400, "logit_bias"),
        ("/v1/completions", completion(json!({"suffix": "x"})), 400, "suffix"),
        ("/v1/completions", completion(json!({"guided_json": {"a": 1}})), 400, "guided_json"),
        ("/v1/completions", completion(json!({"model": "gpt-5"})), 404, "gpt-5"),
        ("/v1/completions", completion(json!({"max_tokens": 300})), 400, "256"),
        ("/v1/completions", json!({"prompt": [99_999_999]}).to_string(), 400, "vocabulary"),
        ("/v1/completions", json!({"prompt": []}).to_string(), 400, "empty"),
        ("/v1/completions", json!({"prompt": "x".repeat(70_000)}).to_string(), 413, "65536"),
        ("/v1/chat/completions", json!({"messages": []}).to_string(), 400, "messages"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "robot"}]}).to_string(),
            400,
            "robot",
        ),
        ("/v2/completions", "{}".into(), 404, "/v2/completions"),
    ];
    for (path, body, status, word) in cases {
        let (got, text) = server.send("POST", path, body);
        let short = &body[..body.len().min(100)];
        assert_eq!(got, *status, "{path} {short}: {text}");
        let error: Value = serde_json::from_str(&text).expect("an error is JSON");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains(word), "{path} {short}: {message:?} does not say {word:?}");
    }
    let (status, _) = server.send("GET", "/v1/completions", "");
    assert_eq!(status, 405);
    let (status, text) = server.send("POST", "/v1/completions", &completion(json!({})));
    assert_eq!(status, 200, "the server still answers: {text}");
    let (status, _) = server.send("GET", "/health", "");
    assert_eq!(status, 200);
}

#[test]
fn sigterm_lets_running_requests_finish() {
    let mut server = Server::start(&[]);
    let body = completion(json!({ "max_tokens": 200, "stream": true }));
    let mut lines = BufReader::new(server.open("POST", "/v1/completions", &body)).lines();
    // The first chunk shows that the request runs.
    assert!(lines.by_ref().any(|line| line.expect("UTF-8").contains("\"text\"")));
    let reader =
        std::thread::spawn(move || lines.map(|line| line.expect("UTF-8")).collect::<Vec<_>>());
    let status = server.terminate();
    assert!(status.success(), "a drained server exits with 0, not {status}");
    let rest = reader.join().expect("the stream is read");
    assert!(rest.iter().any(|line| line.contains("[DONE]")), "the stream ended whole");
}

#[test]
fn a_second_sigterm_ends_the_server_at_once_and_says_that_requests_were_cut_off() {
    let mut server = Server::start(&["--shutdown-timeout", "3600"]);
    let body = completion(json!({ "max_tokens": 4000, "stream": true }));
    let mut lines = BufReader::new(server.open("POST", "/v1/completions", &body)).lines();
    assert!(lines.by_ref().any(|line| line.expect("UTF-8").contains("\"text\"")));
    // Neither is waited for.
    let idle = server.open("GET", "/health", "");
    let half_sent = std::net::TcpStream::connect(&server.address).expect("it listens");
    std::io::Write::write_all(&mut &half_sent, b"POST /v1/compl").expect("it is sent");
    server.signal("TERM");
    // While it drains it says so, and closes the connection.
    while server.send("GET", "/ready", "").0 != 503 {}
    let status = server.terminate();
    assert_eq!(status.code(), Some(4), "{status}");
    drop((idle, half_sent));
}

#[test]
fn failures_to_start_say_why_and_exit_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let empty = tempfile::tempdir().expect("a directory");
    std::fs::write(empty.path().join("config.json"), "{}").expect("it is written");
    let model = model::dir().to_str().expect("UTF-8").to_owned();
    let empty = empty.path().to_str().expect("UTF-8").to_owned();
    let cases: [(&[&str], &str); 4] = [
        (&[&model, "--port", &port], "--port"),
        (&["no-such-model"], "no-such-model"),
        (&[&empty, "--port", "0"], "tokenizer.json"),
        (&[&model, "--port", "0", "--max-model-len", "9000"], "8192"),
    ];
    for (args, word) in cases {
        let output = sconce().arg("serve").args(args).output().expect("the binary runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(word), "{args:?}: {text} does not say {word:?}");
    }
    let output = sconce().args(["serve", "--prot", "1"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
}
