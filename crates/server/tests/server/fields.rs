//! Numbers in any spelling, fields that clients echo, and errors in the API's words.

use sconce_server::ServerConfig;
use serde_json::{Value, json};

use super::app::{App, CHAT, COMPLETIONS};

fn ask(path: &str, more: &str) -> String {
    let what = match path {
        CHAT => r#""messages": [{"role": "user", "content": "hi"}]"#,
        _ => r#""prompt": "hi""#,
    };
    format!("{{{what}, {more}}}")
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let app = App::new(ServerConfig::default());
    let fields = [
        r#""max_tokens": 3.0"#,
        r#""max_tokens": 3e0"#,
        r#""max_tokens": 3, "min_tokens": 2.0"#,
        r#""max_tokens": 3, "min_tokens": -0.0"#,
        r#""max_tokens": 3, "top_k": 50.0"#,
        r#""max_tokens": 3, "top_k": -1.0"#,
        r#""max_tokens": 3, "seed": 7.0, "n": 2.0"#,
        r#""max_tokens": 3, "stop_token_ids": [5.0, 6], "seed": 7"#,
        r#""max_tokens": 3, "logit_bias": {"16.0": 1.0, "17": -1}"#,
        r#""max_tokens": 3, "priority": 0.0, "timeout": 5.0"#,
        r#""max_tokens": 3, "temperature": -0.0, "length_penalty": 1"#,
    ];
    for path in [COMPLETIONS, CHAT] {
        for more in fields {
            // No end token is to come first.
            let more = format!(r#"{more}, "ignore_eos": true"#);
            let (status, answer) = app.post(path, ask(path, &more));
            assert_eq!(status, 200, "{path} {more}: {answer}");
            let choices = answer["choices"].as_array().expect("choices").len() as u64;
            assert_eq!(answer["usage"]["completion_tokens"], 3 * choices, "{more}");
        }
    }
    let (status, answer) =
        app.post(COMPLETIONS, r#"{"prompt": [1.0, 2, 3e0], "max_tokens": 1, "best_of": 1.0}"#);
    assert_eq!((status, &answer["usage"]["prompt_tokens"]), (200, &json!(3)), "{answer}");
    let (status, _) = app.post(CHAT, ask(CHAT, r#""logprobs": true, "top_logprobs": 2.0"#));
    assert_eq!(status, 200);
    let (status, answer) = app.post("/detokenize", r#"{"tokens": [104.0, 105]}"#);
    assert_eq!((status, &answer["prompt"]), (200, &json!("hi")), "{answer}");
}

#[test]
fn numbers_that_are_not_whole_or_too_large_are_refused_in_plain_words() {
    let app = App::new(ServerConfig::default());
    let cases = [
        (r#""max_tokens": 16.5"#, "max_tokens", "max_tokens is 16.5, but must be a whole number"),
        (r#""max_tokens": 1e30"#, "max_tokens", "but must be a whole number from 0 to 4294967295"),
        (r#""max_tokens": -1.0"#, "max_tokens", "max_tokens is -1, but must be a whole number"),
        (r#""max_tokens": 4294967296"#, "max_tokens", "max_tokens is 4294967296"),
        (r#""max_tokens": "16""#, "max_tokens", "max_tokens is the string \"16\", but must"),
        (r#""max_tokens": true"#, "max_tokens", "max_tokens is true, but must be a whole number"),
        (r#""max_tokens": [1]"#, "max_tokens", "max_tokens is a list, but must be a whole number"),
        (r#""top_k": 0.5"#, "top_k", "top_k is 0.5, but must be a whole number"),
        (r#""top_k": -2.0"#, "top_k", "top_k is -2, but must be a positive whole number, or 0"),
        (r#""stop_token_ids": [1.5]"#, "stop_token_ids[0]", "1.5"),
        (r#""logit_bias": {"1.5": 1}"#, "logit_bias", "keys must be token ids"),
        (r#""logit_bias": {"1e10": 1}"#, "logit_bias", "keys must be token ids"),
        (r#""temperature": "hot""#, "temperature", "the string \"hot\", but must be a number"),
        (r#""stream": 1"#, "stream", "stream is 1, but must be a boolean"),
        (r#""stop": 5"#, "stop", "stop must be a string or a list of strings"),
        (r#""stream_options": 5"#, "stream_options", "stream_options is 5, but must be an object"),
        (r#""n": 1.5"#, "n", "n is 1.5, but must be a whole number of at least 0"),
    ];
    for path in [COMPLETIONS, CHAT] {
        for (more, field, words) in cases {
            let (param, message) = app.refused(path, ask(path, more));
            assert_eq!(param, field, "{more}: {message}");
            assert!(message.contains(words), "{path} {more}: {message:?} lacks {words:?}");
            for rust in ["u32", "i64", "f32", "invalid type", "struct", "map"] {
                assert!(!message.contains(rust), "{message:?} speaks of {rust}");
            }
        }
        let (_, message) = app.refused(path, ask(path, r#""temperature": 1e400"#));
        assert!(message.contains("a number that is too large at line 1"), "{message}");
    }
    let (param, message) = app.refused(CHAT, r#"{"messages": [{"content": "x"}]}"#);
    assert_eq!((param, &*message), (json!("messages[0].role"), "messages[0].role is missing"));
    let (param, message) = app.refused(CHAT, r#"{"messages": [{"role": "robot"}]}"#);
    assert_eq!(param, "messages[0].role");
    assert!(message.contains("\"robot\", but must be one of system, developer"), "{message}");
}

#[test]
fn what_belongs_to_a_conversation_is_refused_beside_a_prompt() {
    let app = App::new(ServerConfig::default());
    for (field, value) in [
        ("tools", json!([])),
        ("continue_final_message", json!(false)),
        ("add_generation_prompt", json!(true)),
        ("chat_template_kwargs", json!({ "a": 1 })),
    ] {
        let (param, message) = app.refused("/tokenize", json!({ "prompt": "a", field: value }));
        assert_eq!(param, field, "{message}");
        let messages = json!([{ "role": "user", "content": "a" }]);
        let (status, answer) = app.post("/tokenize", json!({ "messages": messages, field: value }));
        assert_eq!(status, 200, "{answer}");
    }
}

#[test]
fn a_top_k_beyond_the_vocabulary_is_all_of_it() {
    let app = App::new(ServerConfig::default());
    for top_k in ["257", "1000000000000", "1e12", "9223372036854775807"] {
        let more = format!(r#""top_k": {top_k}, "max_tokens": 2"#);
        let (status, answer) = app.post(COMPLETIONS, ask(COMPLETIONS, &more));
        assert_eq!(status, 200, "{top_k}: {answer}");
    }
}

#[test]
fn nothing_is_said_of_a_maximum_that_was_not_sent() {
    let app = App::new(ServerConfig::default());
    // The context has 128 tokens: what is left is what is generated.
    for (len, left) in [(100, 16), (120, 8), (127, 1)] {
        let body = json!({ "prompt": vec![1; len], "ignore_eos": true });
        let (status, answer) = app.post(COMPLETIONS, body);
        assert_eq!(
            (status, &answer["usage"]["completion_tokens"]),
            (200, &json!(left)),
            "{answer}"
        );
    }
    let prompts = json!({ "prompt": [vec![1; 120], vec![1; 10]], "ignore_eos": true });
    let (_, answer) = app.post(COMPLETIONS, prompts);
    assert_eq!(answer["usage"]["completion_tokens"], 8 + 16, "each prompt has room of its own");
    let long = "x".repeat(200);
    for (path, body) in [
        (COMPLETIONS, json!({ "prompt": vec![1; 128] })),
        (COMPLETIONS, json!({ "prompt": long })),
        (CHAT, json!({ "messages": [{ "role": "user", "content": long }] })),
        (COMPLETIONS, json!({ "prompt": "x", "min_tokens": 17 })),
        (CHAT, json!({ "messages": [{ "role": "user", "content": "x" }], "min_tokens": 200 })),
    ] {
        let (param, message) = app.refused(path, &body);
        assert!(!message.contains("max_tokens") && param != "max_tokens", "{param}: {message}");
    }
    let asked = |field: &str, value: u32| {
        let messages = json!([{ "role": "user", "content": "x" }]);
        app.refused(CHAT, json!({ "messages": messages, field: value, "min_tokens": 3 }))
    };
    for (value, param) in [(0, "max_completion_tokens"), (2, "min_tokens"), (200, "messages")] {
        let (at, message) = asked("max_completion_tokens", value);
        assert_eq!(at.as_str().unwrap_or_default(), param, "{message}");
        let others = message.replace("max_completion_tokens", "");
        assert!(!others.contains("max_tokens") && others != message, "{message}");
    }
    assert!(asked("max_tokens", 200).1.contains("max_tokens is 200"));
}

#[test]
fn a_history_may_hold_what_other_servers_put_into_answers() {
    let app = App::new(ServerConfig::default());
    let prompt_tokens = |message: Value| {
        let (status, answer) = app.post(
            CHAT,
            json!({
                "messages": [message, { "role": "user", "content": "go on" }],
                "max_tokens": 1, "prompt_cache_key": "conversation-7",
            }),
        );
        assert_eq!(status, 200, "{answer}");
        answer["usage"]["prompt_tokens"].as_u64().expect("a number")
    };
    let plain = prompt_tokens(json!({ "role": "assistant", "content": "hello" }));
    for (field, value) in [
        ("refusal", Value::Null),
        ("annotations", json!([])),
        ("audio", Value::Null),
        ("tool_calls", Value::Null),
        ("tool_calls", json!([])),
        ("function_call", Value::Null),
        ("reasoning_content", Value::Null),
        ("reasoning_content", json!("it is polite")),
        ("reasoning", json!("it is polite")),
        ("name", json!("sconce")),
    ] {
        let message = json!({ "role": "assistant", "content": "hello", field: value });
        assert_eq!(prompt_tokens(message), plain, "this template shows text alone: {field}");
    }
    let (param, _) = app.refused(
        CHAT,
        json!({
            "messages": [{ "role": "assistant", "content": "x", "reasoning_content": 5 }],
        }),
    );
    assert_eq!(param, "messages[0].reasoning_content");
}

#[test]
fn a_body_of_too_many_values_is_refused() {
    let app = App::new(ServerConfig::default());
    // A value more than the limit; those inside of strings are none.
    let most = 1 << 20;
    let chat = |content: &str, more: usize| {
        let values = "0,".repeat(more);
        format!(r#"{{"messages": [{{"role": "user", "content": "{content}"}}], "n": [{values}0]}}"#)
    };
    let (param, message) = app.refused(CHAT, chat("", most));
    assert_eq!(param, Value::Null);
    assert!(message.contains("more than 1048576 JSON values"), "{message}");
    let (param, _) = app.refused(CHAT, chat(r#"\"[,\\"#, most - 10));
    assert_eq!(param, "n");
    let (_, message) = app.refused(CHAT, chat(&"[,".repeat(most), 1));
    assert!(!message.contains("JSON values"), "{message}");
}
