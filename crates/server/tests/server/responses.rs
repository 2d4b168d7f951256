//! OpenAI's Responses API.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};

use crate::writer::Writing;

const RESPONSES: &str = "/v1/responses";
const CALL: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";

fn weather() -> Value {
    json!([{
        "type": "function", "name": "weather", "strict": false,
        "parameters": { "type": "object", "properties": { "city": { "type": "string" } } },
    }])
}

fn create(server: &Writing, body: Value) -> Value {
    let (status, answer) = server.post(RESPONSES, &body);
    assert_eq!(status, 200, "{body}: {answer}");
    answer
}

#[test]
fn a_response_repeats_what_was_asked_and_holds_items() {
    let server = Writing::new("Hello there");
    let body = json!({ "model": "writer", "input": "hi", "metadata": { "a": "b" } });
    let answer = create(&server, body);
    assert_eq!(answer["object"], "response");
    assert_eq!(answer["status"], "completed");
    assert_eq!(answer["model"], "writer");
    assert_eq!(answer["metadata"], json!({ "a": "b" }));
    assert_eq!(answer["tool_choice"], "auto");
    assert_eq!(answer["error"], Value::Null);
    let item = &answer["output"][0];
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    let part =
        json!({ "type": "output_text", "text": "Hello there", "annotations": [], "logprobs": [] });
    assert_eq!(item["content"], json!([part]));
    assert_eq!(answer["usage"]["output_tokens"], 12);
    assert_eq!(
        answer["usage"]["total_tokens"],
        12 + answer["usage"]["input_tokens"].as_u64().expect("a number")
    );
    let answer = create(&server, json!({ "input": "hi", "max_output_tokens": 5 }));
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(answer["incomplete_details"], json!({ "reason": "max_output_tokens" }));
    assert_eq!(answer["output"][0]["status"], "incomplete");
    let include = json!(["message.output_text.logprobs"]);
    let answer = create(&server, json!({ "input": "hi", "include": include, "top_logprobs": 1 }));
    let logprobs = answer["output"][0]["content"][0]["logprobs"].as_array().expect("a list");
    assert_eq!((logprobs.len(), &logprobs[0]["token"]), (12, &json!("H")));
}

#[test]
fn a_response_goes_on_from_one_before() {
    let server = Writing::new(&format!("<think>hm</think>{CALL}"));
    let first = create(&server, json!({ "input": "Bern?", "tools": weather() }));
    let kinds: Vec<_> = first["output"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["type"].clone())
        .collect();
    assert_eq!(kinds, [json!("reasoning"), json!("function_call")]);
    let call = &first["output"][1];
    assert_eq!(call["name"], "weather");
    assert_eq!(call["arguments"], "{\"city\": \"Bern\"}");
    let result =
        json!([{ "type": "function_call_output", "call_id": call["call_id"], "output": "rain" }]);
    let next = create(&server, json!({ "input": result, "previous_response_id": first["id"] }));
    // The same said by the client itself.
    let mut input = vec![json!({ "role": "user", "content": "Bern?" })];
    input.extend(first["output"].as_array().expect("items").iter().cloned());
    input.extend(result.as_array().expect("items").iter().cloned());
    let whole = create(&server, json!({ "input": input }));
    assert_eq!(next["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    assert!(next["usage"]["input_tokens"].as_u64() > first["usage"]["output_tokens"].as_u64());
    let at = |id: &Value| format!("{RESPONSES}/{}", id.as_str().expect("an id"));
    let get = |path: String| {
        let (status, text) =
            server.send(Request::get(path).body(Body::empty()).expect("a request"));
        (status.as_u16(), serde_json::from_str::<Value>(&text).expect("JSON"))
    };
    assert_eq!(get(at(&first["id"])), (200, first.clone()));
    let request = Request::delete(at(&first["id"])).body(Body::empty()).expect("a request");
    assert_eq!(server.send(request).0, 200);
    assert_eq!(get(at(&first["id"])).0, 404);
    let gone = json!({ "input": "x", "previous_response_id": first["id"] });
    let (status, error) = server.post(RESPONSES, &gone);
    assert_eq!((status, &error["error"]["param"]), (404, &json!("previous_response_id")));
    let unstored = create(&server, json!({ "input": "x", "store": false }));
    assert_eq!(get(at(&unstored["id"])).0, 404);
}

#[test]
fn a_stream_tells_of_the_same_response() {
    let server = Writing::new(&format!("<think>hm</think>Let me see.\n{CALL}"));
    let body = json!({ "input": "Bern?", "tools": weather() });
    let whole = create(&server, body.clone());
    let events = server.events(RESPONSES, &body);
    for (index, (name, event)) in events.iter().enumerate() {
        assert_eq!(event["type"], json!(name));
        assert_eq!(event["sequence_number"], json!(index));
    }
    assert_eq!(events[0].0, "response.created");
    assert_eq!(events[1].0, "response.in_progress");
    let (name, last) = events.last().expect("events");
    assert_eq!(name, "response.completed");
    let bare = |items: &Value| {
        let mut items = items.clone();
        for item in items.as_array_mut().expect("items") {
            item["id"] = Value::Null;
            item["call_id"] = Value::Null;
        }
        items
    };
    assert_eq!(bare(&last["response"]["output"]), bare(&whole["output"]));
    let done: Vec<_> =
        events.iter().filter(|(name, _)| name == "response.output_item.done").collect();
    let items: Vec<_> = done.iter().map(|(_, event)| event["item"].clone()).collect();
    assert_eq!(json!(items), last["response"]["output"]);
    for (delta, end, field) in [
        ("response.output_text.delta", "response.output_text.done", "text"),
        ("response.reasoning_text.delta", "response.reasoning_text.done", "text"),
        (
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "arguments",
        ),
    ] {
        let deltas = events.iter().filter(|(name, _)| name == delta);
        let text: String =
            deltas.map(|(_, event)| event["delta"].as_str().expect("text")).collect();
        let ends: Vec<_> = events.iter().filter(|(name, _)| name == end).collect();
        assert_eq!(ends.len(), 1);
        assert_eq!(ends[0].1[field], json!(text), "{end}");
        assert!(!text.is_empty());
    }
}

#[test]
fn what_is_wrong_is_named() {
    let server = Writing::new("ok");
    let cases = [
        (json!({}), "input", "input is missing"),
        (json!({ "input": [{ "type": "image" }] }), "input[0].type", "function_call_output"),
        (json!({ "input": [{ "role": "user" }] }), "input[0].content", "is missing"),
        (
            json!({ "input": [{ "role": "user", "content": "x", "name": "y" }] }),
            "input[0].name",
            "not a field",
        ),
        (
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_image" }] }] }),
            "input[0].content[0].type",
            "reads text",
        ),
        (
            json!({ "input": [{ "type": "function_call", "call_id": "c", "name": "f", "arguments": "[" }] }),
            "input[0].arguments",
            "no JSON",
        ),
        (
            json!({ "input": [{ "type": "function_call", "call_id": "c", "name": "f", "arguments": "[]" }] }),
            "input[0].arguments",
            "no object",
        ),
        (
            json!({ "input": "x", "tools": [{ "type": "web_search" }] }),
            "tools[0].type",
            "runs no tools",
        ),
        (json!({ "input": "x", "include": ["all"] }), "include[0]", "must be one of"),
        (json!({ "input": "x", "background": true }), "background", "not supported"),
        (json!({ "input": "x", "metadata": { "a": 1 } }), "metadata", "pairs of strings"),
        (json!({ "input": "x", "inputt": "x" }), "inputt", "did you mean input?"),
        (json!({ "input": "x", "max_output_tokens": 0 }), "max_output_tokens", "max_output_tokens"),
        (json!({ "input": "x", "truncation": "auto" }), "truncation: auto", "not supported"),
        (
            json!({ "input": "x", "text": { "format": { "type": "grammar" } } }),
            "text.format.type",
            "must be one of",
        ),
    ];
    for (body, param, words) in cases {
        let (status, answer) = server.post(RESPONSES, &body);
        assert_eq!(status, 400, "{body}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
        let message = answer["error"]["message"].as_str().expect("a message");
        assert!(message.contains(words), "{body}: {message:?} lacks {words:?}");
    }
}

#[test]
fn log_probabilities_are_those_of_the_text_whole_and_streamed() {
    let server = Writing::new("<think>hm, é</think>Aé!");
    let include = json!(["message.output_text.logprobs"]);
    let body = json!({ "input": "x", "include": include, "temperature": 0.7, "top_p": 0.9 });
    let whole = create(&server, body.clone());
    assert_eq!((&whole["temperature"], &whole["top_p"]), (&json!(0.7), &json!(0.9)));
    let of = |item: &Value| item["content"][0]["logprobs"].clone();
    let bytes: Vec<_> = of(&whole["output"][1])
        .as_array()
        .expect("a list")
        .iter()
        .flat_map(|at| at["bytes"].as_array().expect("bytes").clone())
        .collect();
    let text: Vec<_> = "Aé!".bytes().map(|byte| json!(byte)).collect();
    // The end token's come last.
    assert!(bytes.starts_with(&text), "{bytes:?}");
    let events = server.events(RESPONSES, &body);
    let last = &events.last().expect("events").1["response"];
    assert_eq!(of(&last["output"][1]), of(&whole["output"][1]));
}

#[test]
fn one_form_is_asked_for_and_no_field_is_ignored() {
    let server = Writing::new("ok");
    for (more, param) in [
        (
            json!({ "text": { "format": { "type": "json_object" } },
                 "structured_outputs": { "regex": "a+" } }),
            "structured_outputs",
        ),
        (json!({ "include_metering": true }), "include_metering"),
        (json!({ "add_special_tokens": true }), "add_special_tokens"),
    ] {
        let mut body = json!({ "input": "x" });
        body.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        let (status, answer) = server.post(RESPONSES, &body);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    }
}
