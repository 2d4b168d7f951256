//! Anthropic's Messages API.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};

use crate::writer::Writing;

const MESSAGES: &str = "/v1/messages";

fn ask(more: Value) -> Value {
    let mut body = json!({
        "model": "writer", "max_tokens": 200,
        "messages": [{ "role": "user", "content": "hi" }],
    });
    let Value::Object(more) = more else { panic!("further fields are an object") };
    body.as_object_mut().expect("an object").extend(more);
    body
}

fn weather() -> Value {
    json!([{
        "name": "weather", "description": "of a city",
        "input_schema": { "type": "object", "properties": { "city": { "type": "string" } } },
    }])
}

const CALL: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";

#[test]
fn a_message_is_its_blocks() {
    let server = Writing::new("Hello there");
    let (status, answer) = server.post(MESSAGES, &ask(json!({ "system": "Be kind." })));
    assert_eq!(status, 200, "{answer}");
    assert!(answer["id"].as_str().expect("an id").starts_with("msg_"), "{answer}");
    assert_eq!(answer["type"], "message");
    assert_eq!(answer["role"], "assistant");
    assert_eq!(answer["content"], json!([{ "type": "text", "text": "Hello there" }]));
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("end_turn"), &Value::Null)
    );
    assert_eq!(answer["usage"]["output_tokens"], 12);
    let input = answer["usage"]["input_tokens"].clone();
    let counted = json!({
        "model": "writer", "system": "Be kind.", "messages": [{ "role": "user", "content": "hi" }],
    });
    let (_, counted) = server.post("/v1/messages/count_tokens", &counted);
    assert_eq!(counted, json!({ "input_tokens": input }));
    let (_, answer) = server.post(MESSAGES, &ask(json!({ "stop_sequences": ["th", "zz"] })));
    assert_eq!(answer["content"][0]["text"], "Hello ");
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!("th"))
    );
    let (_, answer) = server.post(MESSAGES, &ask(json!({ "max_tokens": 5 })));
    assert_eq!(
        (&answer["content"][0]["text"], &answer["stop_reason"]),
        (&json!("Hello"), &json!("max_tokens"))
    );
    // More than the context has is as much as it has.
    let (status, answer) = server.post(MESSAGES, &ask(json!({ "max_tokens": 1_000_000 })));
    assert_eq!((status, &answer["stop_reason"]), (200, &json!("end_turn")), "{answer}");
}

#[test]
fn thoughts_and_calls_are_blocks_of_their_own() {
    let server = Writing::new(&format!("<think>hm</think>Let me see.\n{CALL}"));
    let body = ask(json!({ "tools": weather() }));
    let (status, answer) = server.post(MESSAGES, &body);
    assert_eq!(status, 200, "{answer}");
    let content = answer["content"].as_array().expect("blocks");
    assert_eq!(content[0], json!({ "type": "thinking", "thinking": "hm", "signature": "" }));
    assert!(content[1]["text"].as_str().expect("text").starts_with("Let me see."), "{answer}");
    assert_eq!(content[2]["type"], "tool_use");
    assert_eq!(content[2]["name"], "weather");
    assert_eq!(content[2]["input"], json!({ "city": "Bern" }));
    assert_eq!(answer["stop_reason"], "tool_use");
    let events = server.events(MESSAGES, &body);
    for (name, event) in &events {
        assert_eq!(event["type"], json!(name));
    }
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names[0], names[names.len() - 2]), ("message_start", "message_delta"));
    assert_eq!(names.last(), Some(&"message_stop"));
    let starts = events.iter().filter(|(name, _)| name == "content_block_start");
    let kinds: Vec<_> = starts.map(|(_, event)| event["content_block"]["type"].clone()).collect();
    assert_eq!(kinds, [json!("thinking"), json!("text"), json!("tool_use")]);
    let said = |kind: &str, field: &str| -> String {
        let deltas = events.iter().map(|(_, event)| &event["delta"]);
        let deltas = deltas.filter(|delta| delta["type"] == json!(kind));
        deltas.map(|delta| delta[field].as_str().expect("text")).collect()
    };
    assert_eq!(said("thinking_delta", "thinking"), "hm");
    assert_eq!(json!(said("text_delta", "text")), content[1]["text"]);
    let input: Value =
        serde_json::from_str(&said("input_json_delta", "partial_json")).expect("JSON");
    assert_eq!(input, content[2]["input"]);
    let last = &events[events.len() - 2].1;
    assert_eq!(last["delta"]["stop_reason"], "tool_use");
    assert_eq!(last["usage"], answer["usage"]);
    // Every block that begins ends, one at a time.
    let mut open = None;
    for (name, event) in &events {
        match name.as_str() {
            "content_block_start" => assert_eq!(open.replace(event["index"].clone()), None),
            "content_block_delta" => assert_eq!(open.as_ref(), Some(&event["index"])),
            "content_block_stop" => assert_eq!(open.take().as_ref(), Some(&event["index"])),
            _ => assert_eq!(open, None, "{name} within a block"),
        }
    }
}

#[test]
fn a_history_of_calls_and_results_is_told_to_the_model() {
    let server = Writing::new("ok");
    let history = json!([
        { "role": "user", "content": "weather in Bern?" },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": "I shall ask.", "signature": "abc" },
            { "type": "text", "text": "Asking." },
            { "type": "tool_use", "id": "t1", "name": "weather", "input": { "city": "Bern" } },
        ] },
        { "role": "user", "content": [
            { "type": "tool_result", "tool_use_id": "t1", "content": [{ "type": "text", "text": "rain" }] },
            { "type": "text", "text": "And?", "cache_control": { "type": "ephemeral" } },
        ] },
    ]);
    let count = |messages: &Value, tools: Value| {
        let body = json!({ "model": "writer", "messages": messages, "tools": tools });
        let (status, answer) = server.post("/v1/messages/count_tokens", &body);
        assert_eq!(status, 200, "{answer}");
        answer["input_tokens"].as_u64().expect("a number")
    };
    let whole = count(&history, weather());
    for text in ["sking.", "rain", "And?", "Bern?"] {
        let without = serde_json::from_str(&history.to_string().replace(text, "")).expect("JSON");
        assert_eq!(
            whole - count(&without, weather()),
            text.len() as u64,
            "{text} is in the prompt"
        );
    }
    assert!(whole > count(&history, json!([])) + 50, "tools are");
    // An assistant's last message is gone on from.
    let begun =
        json!([{ "role": "user", "content": "x" }, { "role": "assistant", "content": "Sure" }]);
    assert_eq!(count(&begun, json!([])), "user: x\nassistant: Sure".len() as u64);
    // What it begins with may stand in the template as well.
    let begun =
        json!([{ "role": "user", "content": "x" }, { "role": "assistant", "content": ": " }]);
    assert_eq!(count(&begun, json!([])), "user: x\nassistant: : ".len() as u64);
}

#[test]
fn what_is_wrong_is_said_in_the_apis_shape() {
    let server = Writing::new("ok");
    let cases = [
        (json!({ "max_tokens": 0 }), "max_tokens"),
        (json!({ "top_kk": 1 }), "did you mean top_k?"),
        (json!({ "messages": [] }), "messages is empty"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image", "source": {} }] }] }),
            "messages[0].content[0].type is \"image\", but must be text, or tool_result",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text" }] }] }),
            "messages[0].content[0].text is missing",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "x", "id": "y" }] }] }),
            "messages[0].content[0].id is not a field of a block of the type text",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "texd": "x" }] }] }),
            "did you mean text?",
        ),
        (json!({ "messages": [{ "role": "robot", "content": "x" }] }), "messages[0].role"),
        (json!({ "tools": [{ "name": "a b", "input_schema": {} }] }), "tools[0]"),
        (json!({ "tools": [{ "name": "a" }] }), "tools[0].input_schema is missing"),
        (json!({ "tools": [{ "type": "web_search_20250305", "name": "a" }] }), "tools[0].type"),
        (json!({ "tool_choice": { "type": "tool", "name": "x" } }), "tool_choice"),
        (json!({ "tool_choice": { "type": "any" } }), "tool_choice"),
        (json!({ "thinking": { "type": "enabled" } }), "thinking.budget_tokens is missing"),
        (
            json!({ "thinking": { "type": "enabled", "budget_tokens": 200 } }),
            "less than max_tokens",
        ),
        (json!({ "mcp_servers": [{}] }), "mcp_servers is not supported"),
        (json!({ "context_management": { "edits": [{ "type": "compact" }] } }), "edits[0]"),
    ];
    for (more, words) in cases {
        let (status, answer) = server.post(MESSAGES, &ask(more.clone()));
        assert_eq!(status, 400, "{more}: {answer}");
        assert_eq!(answer["type"], "error");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        let message = answer["error"]["message"].as_str().expect("a message");
        assert!(message.contains(words), "{more}: {message:?} lacks {words:?}");
        assert!(answer["request_id"].as_str().expect("an id").starts_with("req-"), "{answer}");
    }
    let (status, answer) = server.post(MESSAGES, &ask(json!({ "model": "claude" })));
    assert_eq!((status, &answer["error"]["type"]), (404, &json!("not_found_error")), "{answer}");
    let request = Request::get(MESSAGES).body(Body::empty()).expect("a request");
    assert_eq!(server.send(request).0, 405);
    let (_, answer) = server.post("/v1/completions", &json!({}));
    assert_eq!(answer["error"]["param"], "prompt", "other APIs keep their shape: {answer}");
}

#[test]
fn a_call_that_was_cut_is_text_and_no_reason_to_stop() {
    let server = Writing::new(CALL);
    let body = ask(json!({ "tools": weather(), "max_tokens": 60 }));
    let (_, answer) = server.post(MESSAGES, &body);
    assert_eq!(answer["stop_reason"], "max_tokens", "{answer}");
    assert_eq!(
        answer["content"],
        json!([{ "type": "text", "text": "{\"city\": \"Bern\"" }]),
        "{answer}"
    );
}
