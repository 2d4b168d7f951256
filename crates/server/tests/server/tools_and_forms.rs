//! Tools beside a form of the answer: it calls, or has the form.

use serde_json::{Value, json};

use crate::{app::CHAT, writer::Writing};

const CALL: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
const FORMED: &str = r#"{"answer": "use <tool_call> or <think>", "sure": true}"#;

fn form() -> Value {
    json!({
        "type": "object", "required": ["answer", "sure"], "additionalProperties": false,
        "properties": { "answer": { "type": "string" }, "sure": { "type": "boolean" } },
    })
}

fn parameters() -> Value {
    json!({
        "type": "object", "required": ["city"], "additionalProperties": false,
        "properties": { "city": { "enum": ["Bern", "Rome"] } },
    })
}

fn extended(mut body: Value, more: &Value) -> Value {
    let more = more.as_object().expect("further fields are an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// A chat with a tool and a form.
fn chat(more: &Value) -> Value {
    let tool = json!({ "name": "weather", "parameters": parameters() });
    let body = json!({
        "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 300,
        "tools": [{ "type": "function", "function": tool }],
        "response_format": {
            "type": "json_schema", "json_schema": { "name": "x", "schema": form() },
        },
    });
    extended(body, more)
}

#[track_caller]
fn answered(text: &str, more: &Value) -> Value {
    answered_by(&Writing::new(text), more)
}

#[track_caller]
fn answered_by(server: &Writing, more: &Value) -> Value {
    let (status, answer) = server.post(CHAT, &chat(more));
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0].clone()
}

fn is_formed(text: &Value) -> bool {
    let value: Value = serde_json::from_str(text.as_str().expect("text")).expect("JSON");
    value["answer"].is_string() && value["sure"].is_boolean()
}

fn city(choice: &Value) -> Value {
    let arguments = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str();
    let arguments: Value = serde_json::from_str(arguments.expect("a call")).expect("JSON");
    arguments["city"].clone()
}

#[test]
fn an_answer_calls_or_has_the_form() {
    for thought in ["", "<think>It is {\"a\": <tool_call>.</think>\n\n"] {
        let told = answered(&format!("{thought}{FORMED} and more"), &json!({}));
        assert_eq!(told["message"]["content"], FORMED, "{told}");
        assert_eq!(told["finish_reason"], "stop");
        let called = answered(&format!("{thought}{CALL}\n{CALL}"), &json!({}));
        assert_eq!(called["message"]["tool_calls"].as_array().map(Vec::len), Some(2), "{called}");
        assert_eq!(city(&called), "Bern");
        assert_eq!(
            (&called["message"]["content"], &called["finish_reason"]),
            (&Value::Null, &json!("tool_calls"))
        );
        let expected = (!thought.is_empty()).then_some("It is {\"a\": <tool_call>.");
        for choice in [told, called] {
            assert_eq!(choice["message"]["reasoning"].as_str(), expected, "{choice}");
        }
    }
    let one = answered(&format!("{CALL}\n{CALL}"), &json!({ "parallel_tool_calls": false }));
    assert_eq!(one["message"]["tool_calls"].as_array().map(Vec::len), Some(1), "{one}");
    // Neither arguments nor text are what the model would rather write.
    let held = answered(&CALL.replace("Bern", "Oslo"), &json!({}));
    assert!(["Bern", "Rome"].map(Value::from).contains(&city(&held)), "{held}");
    let held = answered(&FORMED.replace("true", "maybe"), &json!({}));
    assert!(is_formed(&held["message"]["content"]), "{held}");
    let any = json!({ "response_format": { "type": "json_object" } });
    assert_eq!(answered("{\"x\": [1]}", &any)["message"]["content"], "{\"x\": [1]}");
    let outputs = json!({ "response_format": null, "structured_outputs": { "json": form() } });
    assert_eq!(answered(FORMED, &outputs)["message"]["content"], FORMED);
    assert_eq!(city(&answered(CALL, &outputs)), "Bern");
}

#[test]
fn streams_tell_the_same() {
    for text in [FORMED, CALL] {
        let server = Writing::new(text);
        let (_, whole) = server.post(CHAT, &chat(&json!({})));
        let message = &whole["choices"][0]["message"];
        let events = server.events(CHAT, &chat(&json!({})));
        let pieces = |pointer: &str| -> String {
            let deltas = events.iter().filter_map(|(_, event)| {
                event.pointer(&format!("/choices/0/delta/{pointer}"))?.as_str()
            });
            deltas.collect()
        };
        assert_eq!(pieces("content"), message["content"].as_str().unwrap_or_default());
        let arguments = message["tool_calls"][0]["function"]["arguments"].as_str();
        assert_eq!(pieces("tool_calls/0/function/arguments"), arguments.unwrap_or_default());
    }
}

#[test]
fn the_choice_of_tools_says_which_of_them_there_may_be() {
    // A call that is asked for leaves no room for the form.
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for choice in [json!("required"), named] {
        let thinking = format!("<think>hm</think>{FORMED}");
        let called = answered(&thinking, &json!({ "tool_choice": choice }));
        assert_eq!(called["message"]["reasoning"], "hm", "{called}");
        let server = Writing::thoughtless(FORMED);
        let called = answered_by(&server, &json!({ "tool_choice": choice }));
        assert!(["Bern", "Rome"].map(Value::from).contains(&city(&called)), "{called}");
        assert_eq!(called["message"]["content"], Value::Null, "{called}");
    }
    let told = answered(CALL, &json!({ "tool_choice": "none", "max_tokens": 40 }));
    assert!(told["message"].get("tool_calls").is_none(), "{told}");
    let told = answered(FORMED, &json!({ "tool_choice": "none" }));
    assert_eq!(told["message"]["content"], FORMED);
}

#[test]
fn a_thought_before_either_has_its_budget() {
    let text = format!("<think>on and on and on</think>{FORMED}");
    let more = json!({ "thinking_token_budget": 9 });
    let held = answered(&text, &more);
    assert_eq!(held["message"]["reasoning"], "on and on", "{held}");
    let free = answered(&text, &json!({ "thinking_token_budget": 90 }));
    assert_eq!(free["message"]["reasoning"], "on and on and on", "{free}");
    assert_eq!(free["message"]["content"], FORMED, "{free}");
}

#[test]
fn the_other_wires_have_the_same() {
    let format = json!({ "type": "json_schema", "name": "x", "schema": form() });
    let tool = json!({ "type": "function", "name": "weather", "parameters": parameters() });
    let responses = json!({
        "input": "hi", "max_output_tokens": 300, "tools": [tool], "text": { "format": format },
    });
    let tool = json!({ "name": "weather", "input_schema": parameters() });
    let format = json!({ "type": "json_schema", "schema": form() });
    let messages = json!({
        "model": "writer", "max_tokens": 300, "messages": [{ "role": "user", "content": "hi" }],
        "tools": [tool], "output_config": { "format": format },
    });
    let (told, called) = (Writing::new(FORMED), Writing::new(CALL));
    let post = |server: &Writing, path: &str, body: &Value| {
        let (status, answer) = server.post(path, body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let answer = post(&told, "/v1/responses", &responses);
    assert_eq!(answer["output"][0]["content"][0]["text"], FORMED, "{answer}");
    let answer = post(&called, "/v1/responses", &responses);
    assert_eq!(answer["output"][0]["arguments"], "{\"city\": \"Bern\"}", "{answer}");
    let answer = post(&told, "/v1/messages", &messages);
    assert_eq!(answer["content"], json!([{ "type": "text", "text": FORMED }]), "{answer}");
    let answer = post(&called, "/v1/messages", &messages);
    assert_eq!(answer["content"][0]["input"], json!({ "city": "Bern" }), "{answer}");
    assert_eq!(answer["stop_reason"], "tool_use");
    let strict = extended(messages, &json!({ "tool_choice": { "type": "any" } }));
    let answer = post(&Writing::thoughtless(FORMED), "/v1/messages", &strict);
    assert_eq!(answer["content"][0]["type"], "tool_use", "{answer}");
}

#[test]
fn what_cannot_be_told_from_calls_is_refused() {
    let server = Writing::new(FORMED);
    let no_format =
        |outputs: Value| json!({ "response_format": null, "structured_outputs": outputs });
    for more in [
        no_format(json!({ "regex": "a+" })),
        no_format(json!({ "choice": ["a", "b"] })),
        no_format(json!({ "grammar": "start: \"a\"" })),
    ] {
        let (status, answer) = server.post(CHAT, &chat(&more));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("tools")), "{answer}");
        let message = answer["error"]["message"].as_str().expect("a message");
        assert!(message.contains("only JSON can be told from calls"), "{message}");
        let none = extended(chat(&more), &json!({ "tool_choice": "none" }));
        assert_eq!(server.post(CHAT, &none).0, 200);
        let required = extended(chat(&more), &json!({ "tool_choice": "required" }));
        assert_eq!(server.post(CHAT, &required).0, 200);
    }
    // A schema is checked whatever becomes of it.
    let wrong = json!({ "response_format": {
        "type": "json_schema", "json_schema": { "name": "x", "schema": { "not": {} } },
    } });
    for choice in ["auto", "none", "required"] {
        let body = extended(chat(&wrong), &json!({ "tool_choice": choice }));
        let (status, answer) = server.post(CHAT, &body);
        let field = json!("response_format.json_schema.schema");
        assert_eq!((status, &answer["error"]["param"]), (400, &field), "{choice}: {answer}");
    }
    let (llama, gemma) = (Writing::of("llama3_json", FORMED), Writing::of("gemma3", FORMED));
    let any = json!({ "response_format": { "type": "json_object" } });
    for (server, more, words) in [
        (&llama, &any, "begins with \"name\" and \"parameters\""),
        (&gemma, &json!({}), "cannot be bounded by a grammar"),
    ] {
        let (status, answer) = server.post(CHAT, &chat(more));
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("tools")), "{answer}");
        let message = answer["error"]["message"].as_str().expect("a message");
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
    let (status, answer) = llama.post(CHAT, &chat(&json!({})));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["content"], FORMED);
}
