//! Tool calls of chat completions.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};

use crate::{app::CHAT, writer::Writing};

const CALL: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";

fn ask(more: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "hi" }], "tools": [{
        "type": "function",
        "function": { "name": "weather", "parameters": { "type": "object" } },
    }] });
    let Value::Object(more) = more else { panic!("further fields are an object") };
    body.as_object_mut().expect("an object").extend(more);
    body
}

#[test]
fn a_call_is_no_text() {
    let server = Writing::new(&format!("<think>hm</think>Let me see.\n{CALL}"));
    let (status, answer) = server.post(CHAT, &ask(json!({})));
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let message = &choice["message"];
    assert!(message["content"].as_str().expect("text").starts_with("Let me see."), "{answer}");
    assert_eq!(
        (&message["reasoning"], &message["reasoning_content"]),
        (&json!("hm"), &json!("hm"))
    );
    let call = &message["tool_calls"][0];
    assert!(call["id"].as_str().expect("an id").starts_with("call_"), "{answer}");
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"], json!({ "name": "weather", "arguments": "{\"city\": \"Bern\"}" }));
    assert!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() >= Some(2));
    let (_, hidden) = server.post(CHAT, &ask(json!({ "include_reasoning": false })));
    assert_eq!(hidden["choices"][0]["message"]["reasoning"], Value::Null);
    let events = server.events(CHAT, &ask(json!({})));
    let deltas: Vec<_> = events.iter().map(|(_, event)| &event["choices"][0]["delta"]).collect();
    let text = |of: &dyn Fn(&Value) -> Value| -> String {
        deltas.iter().filter_map(|delta| of(delta).as_str().map(str::to_owned)).collect()
    };
    assert_eq!(json!(text(&|delta| delta["content"].clone())), message["content"]);
    assert_eq!(text(&|delta| delta["reasoning_content"].clone()), "hm");
    assert_eq!(text(&|delta| delta["tool_calls"][0]["function"]["name"].clone()), "weather");
    let arguments = text(&|delta| delta["tool_calls"][0]["function"]["arguments"].clone());
    assert_eq!(json!(arguments), call["function"]["arguments"]);
    let last = &events.last().expect("events").1;
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn calls_may_be_limited_to_one_or_to_none() {
    let server = Writing::new(&format!("{CALL}\n{CALL}"));
    let calls = |more: Value| {
        let (status, answer) = server.post(CHAT, &ask(more));
        assert_eq!(status, 200, "{answer}");
        let choice = answer["choices"][0].clone();
        (choice["message"]["tool_calls"].as_array().map_or(0, Vec::len), choice)
    };
    let (count, choice) = calls(json!({}));
    assert_eq!(count, 2);
    let list = &choice["message"]["tool_calls"];
    assert_ne!(list[0]["id"], list[1]["id"]);
    let (count, choice) = calls(json!({ "parallel_tool_calls": false }));
    assert_eq!((count, &choice["finish_reason"]), (1, &json!("tool_calls")));
    let (count, choice) = calls(json!({ "tool_choice": "none" }));
    assert_eq!((count, &choice["finish_reason"]), (0, &json!("stop")));
    assert!(choice["message"]["content"].as_str().expect("text").contains("tool_call"));
}

#[test]
fn what_is_wrong_with_tools_is_named() {
    let server = Writing::new("ok");
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
    let assistant =
        |calls: Value| json!({ "messages": [{ "role": "assistant", "tool_calls": calls }] });
    let many: Vec<_> = (0..129).map(|i| tool(&format!("f{i}"))).collect();
    let cases = [
        (json!({ "tools": [tool("a b")] }), "tools[0]"),
        (json!({ "tools": [tool("a"), tool("a")] }), "tools[1]"),
        (json!({ "tools": many }), "tools"),
        (json!({ "tools": [{ "type": "custom" }] }), "tools[0].type"),
        (json!({ "tool_choice": "maybe" }), "tool_choice"),
        (
            json!({ "tool_choice": { "type": "function", "function": { "name": "x" } } }),
            "tool_choice",
        ),
        (json!({ "tools": [], "tool_choice": "required" }), "tool_choice"),
        (
            assistant(json!([{ "id": "1", "function": { "name": "f", "arguments": "{" } }])),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            assistant(json!([{ "function": { "name": "f", "arguments": "{}" } }])),
            "messages[0].tool_calls[0].id",
        ),
        (json!({ "messages": [{ "role": "tool", "content": "x" }] }), "messages[0].tool_call_id"),
        (
            json!({ "messages": [{ "role": "user", "content": "x", "tool_call_id": "y" }] }),
            "messages[0].tool_call_id",
        ),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] }),
            "messages[0].content[0].type",
        ),
    ];
    for (more, param) in cases {
        let (status, answer) = server.post(CHAT, &ask(more.clone()));
        assert_eq!(status, 400, "{more}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{answer}");
    }
}

fn unit_tools() -> Value {
    let tool = |name: &str, units: Value| {
        json!({ "type": "function", "function": { "name": name, "parameters": {
            "type": "object", "properties": { "unit": { "enum": units } },
            "required": ["unit"], "additionalProperties": false,
        } } })
    };
    json!([tool("weather", json!(["C", "F"])), tool("length", json!(["m", "ft"]))])
}

/// Names and arguments of an answer's calls.
fn calls_of(answer: &Value) -> Vec<(String, Value)> {
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array();
    let call = |call: &Value| {
        let arguments = call["function"]["arguments"].as_str().expect("arguments");
        let name = call["function"]["name"].as_str().expect("a name").to_owned();
        (name, serde_json::from_str(arguments).expect("JSON"))
    };
    calls.unwrap_or_else(|| panic!("{answer}")).iter().map(call).collect()
}

#[test]
fn a_model_that_would_rather_not_calls_what_it_must() {
    let server = Writing::thoughtless("I would rather not.");
    let ask = |more: Value| {
        let mut body = ask(more);
        body["tools"] = unit_tools();
        let (status, answer) = server.post(CHAT, &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    assert_eq!(ask(json!({}))["choices"][0]["message"]["content"], "I would rather not.");
    let answer = ask(json!({ "tool_choice": "required", "max_tokens": 300 }));
    assert!(!calls_of(&answer).is_empty());
    for (name, units) in [("weather", ["C", "F"]), ("length", ["m", "ft"])] {
        let choice = json!({ "type": "function", "function": { "name": name } });
        let answer = ask(json!({ "tool_choice": choice }));
        let calls = calls_of(&answer);
        assert_eq!((calls.len(), &*calls[0].0), (1, name), "{answer}");
        assert!(units.map(|unit| json!({ "unit": unit })).contains(&calls[0].1), "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    }
    // The same over the other wires.
    let choice = json!({ "type": "function", "name": "length" });
    let tools: Vec<_> = unit_tools()
        .as_array()
        .expect("tools")
        .iter()
        .map(|tool| {
            let mut function = tool["function"].clone();
            function["type"] = "function".into();
            function
        })
        .collect();
    let body = json!({ "input": "hi", "tools": tools, "tool_choice": choice });
    let (status, answer) = server.post("/v1/responses", &body);
    assert_eq!((status, &answer["output"][0]["name"]), (200, &json!("length")), "{answer}");
    let tools: Vec<_> = unit_tools()
        .as_array()
        .expect("tools")
        .iter()
        .map(|tool| {
            let function = &tool["function"];
            json!({ "name": function["name"], "input_schema": function["parameters"] })
        })
        .collect();
    let body = json!({
        "model": "writer", "max_tokens": 300, "messages": [{ "role": "user", "content": "hi" }],
        "tools": tools, "tool_choice": { "type": "tool", "name": "length" },
    });
    let (status, answer) = server.post("/v1/messages", &body);
    assert_eq!((status, &answer["content"][0]["name"]), (200, &json!("length")), "{answer}");
    assert_eq!(answer["stop_reason"], "tool_use");
}

#[test]
fn strict_tools_are_held_to_their_schemas() {
    let call =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"unit\": \"K\"}}\n</tool_call>";
    let server = Writing::new(&format!("Well. {call}"));
    let ask = |strict: bool| {
        let mut body = ask(json!({ "max_tokens": 200 }));
        body["tools"] = unit_tools();
        body["tools"][0]["function"]["strict"] = strict.into();
        server.post(CHAT, &body).1
    };
    assert_eq!(calls_of(&ask(false))[0].1, json!({ "unit": "K" }));
    let answer = ask(true);
    let unit = &calls_of(&answer)[0].1["unit"];
    assert!([json!("C"), json!("F")].contains(unit), "{answer}");
    assert!(
        answer["choices"][0]["message"]["content"].as_str().expect("text").starts_with("Well.")
    );
    let mut body = ask_with_schema(json!({ "not": {} }));
    let (status, answer) = server.post(CHAT, &body);
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("tools")), "{answer}");
    assert!(answer["error"]["message"].as_str().expect("a message").contains("/not"), "{answer}");
    // What need not be enforced does not stand in the way of a call that must be made.
    body["tools"][0]["function"]["strict"] = false.into();
    body["tool_choice"] = "required".into();
    assert_eq!(server.post(CHAT, &body).0, 200);
}

fn ask_with_schema(parameters: Value) -> Value {
    let mut body = ask(json!({ "max_tokens": 50 }));
    body["tools"] = json!([{ "type": "function", "function": {
        "name": "f", "strict": true, "parameters": parameters,
    } }]);
    body
}

#[test]
fn a_thought_is_closed_when_it_has_had_its_tokens() {
    let server = Writing::new("<think>on and on and on and on, and so on, and at last</think>Yes.");
    let thought = |answer: &Value| {
        let message = &answer["choices"][0]["message"];
        let text = |field: &str| message[field].as_str().unwrap_or_default().to_owned();
        (text("reasoning"), text("content"))
    };
    let user = json!([{ "role": "user", "content": "hi" }]);
    let ask = |more: Value| {
        let mut body = json!({ "messages": user, "max_tokens": 100 });
        body.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        let (status, answer) = server.post(CHAT, &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let free = thought(&ask(json!({})));
    assert_eq!(free.1, "Yes.");
    let held = ask(json!({ "thinking_token_budget": 9 }));
    // What comes after the closing marker is what the model would have written there.
    assert_eq!(thought(&held).0, "on and on");
    assert!(thought(&held).1.ends_with("Yes."), "{held}");
    let enough = ask(json!({ "thinking_token_budget": 60 }));
    assert_eq!(thought(&enough), free);
    let body = json!({
        "model": "writer", "max_tokens": 100, "messages": user,
        "thinking": { "type": "enabled", "budget_tokens": 9 },
    });
    let (_, answer) = server.post("/v1/messages", &body);
    assert_eq!(answer["content"][0]["thinking"], "on and on", "{answer}");
}

#[test]
fn a_schema_that_cannot_be_enforced_leaves_a_forced_call_its_arguments() {
    let call =
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"tags\": [\"a\", \"a\"]}}\n</tool_call>";
    let server = Writing::new(call);
    let mut body = ask_with_schema(json!({
        "type": "object", "required": ["tags"],
        "properties": { "tags": { "type": "array", "items": {}, "uniqueItems": true } },
    }));
    body["max_tokens"] = 200.into();
    body["tool_choice"] = "required".into();
    assert_eq!(server.post(CHAT, &body).0, 400, "it is strict");
    body["tools"][0]["function"]["strict"] = false.into();
    let (status, answer) = server.post(CHAT, &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(calls_of(&answer)[0].1, json!({ "tags": ["a", "a"] }));
    // What stands in a description is no syntax of ours.
    body["tools"][0]["function"]["parameters"] =
        json!({ "type": "object", "description": "a ::= b, ((((", "properties": { "tags": {} } });
    assert_eq!(server.post(CHAT, &body).0, 200);
}

#[test]
fn an_answer_that_ends_with_its_first_call_was_not_aborted() {
    let server = Writing::new(&format!("{CALL} and much more that nobody wants to read"));
    let (status, answer) = server.post(CHAT, &ask(json!({ "parallel_tool_calls": false })));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let request = Request::get("/metrics").body(Body::empty()).expect("a request");
    let metrics = server.send(request).1;
    let count = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    let generated = answer["usage"]["completion_tokens"].as_f64();
    assert_eq!(count("vllm:generation_tokens_total"), generated, "nothing beyond what is told");
    assert!(!metrics.contains("finished_reason=\"abort\""), "{metrics}");
}
