//! `response_format` and `structured_outputs`: what comes out, and what is refused before any
//! of it does.

use axum::{body::Body, http::Request};
use sconce_server::ServerConfig;
use serde_json::{Value, json};

use crate::{
    app::{App, CHAT, COMPLETIONS},
    writer::Writing,
};

fn app() -> App {
    App::new(ServerConfig::default())
}

/// A request of either endpoint, with more fields.
fn body(path: &str, more: Value) -> Value {
    let mut body = json!({ "max_tokens": 60, "temperature": 0 });
    match path {
        CHAT => body["messages"] = json!([{ "role": "user", "content": "hi" }]),
        _ => body["prompt"] = "hi".into(),
    }
    for (name, value) in more.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

/// The choices' texts and how they ended.
fn texts(path: &str, answer: &Value) -> Vec<(String, String)> {
    let choices = answer["choices"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let text = |choice: &Value| {
        let text = if path == CHAT { &choice["message"]["content"] } else { &choice["text"] };
        let finish = choice["finish_reason"].as_str().expect("a reason").to_owned();
        (text.as_str().expect("a text").to_owned(), finish)
    };
    choices.iter().map(text).collect()
}

#[track_caller]
fn answers(app: &App, path: &str, more: Value) -> Vec<(String, String)> {
    let (status, answer) = app.post(path, body(path, more));
    assert_eq!(status, 200, "{answer}");
    texts(path, &answer)
}

fn schema(schema: Value) -> Value {
    json!({ "response_format": {
        "type": "json_schema",
        "json_schema": { "name": "x", "description": "d", "strict": true, "schema": schema },
    }})
}

fn outputs(kind: &str, value: Value) -> Value {
    json!({ "structured_outputs": { kind: value } })
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let app = app();
    let tag = json!({ "type": "structural_tag", "format": {
        "type": "tag", "begin": "<a>", "content": { "type": "json_schema", "json_schema": { "const": 7 } },
        "end": "</a>",
    }});
    let cases = [
        (schema(json!({ "const": { "a": [1, "b"] } })), r#"{"a":[1,"b"]}"#),
        (outputs("json", json!({ "const": "é" })), "\"é\""),
        (outputs("json", json!("{\"const\": null}")), "null"),
        (outputs("regex", json!("a{3}b")), "aaab"),
        (outputs("choice", json!(["only"])), "only"),
        (outputs("grammar", json!("start: \"x\" y\ny: \"z\"")), "xz"),
        (outputs("structural_tag", tag.clone()), "<a>7</a>"),
        (outputs("structural_tag", json!(tag.to_string())), "<a>7</a>"),
        (json!({ "response_format": tag }), "<a>7</a>"),
    ];
    for path in [CHAT, COMPLETIONS] {
        for (more, expected) in &cases {
            let [(text, finish)] = &answers(&app, path, more.clone())[..] else { panic!("one") };
            let plain = text.replace(": ", ":").replace(", ", ",");
            assert_eq!((&*plain, &**finish), (*expected, "stop"), "{path} {more}");
        }
    }
    let text = answers(&app, CHAT, json!({ "response_format": { "type": "text" }, "seed": 1 }));
    assert!(text[0].0.chars().count() > 10, "nothing bounds it: {text:?}");
}

#[test]
fn every_choice_has_a_state_of_its_own() {
    let app = app();
    let more = json!({
        "n": 6, "seed": 3, "temperature": 1,
        "structured_outputs": { "regex": "[ -~]{6}" },
    });
    for path in [CHAT, COMPLETIONS] {
        let texts = answers(&app, path, more.clone());
        assert_eq!(texts.len(), 6);
        for (text, finish) in &texts {
            assert!(text.len() == 6 && text.bytes().all(|b| (32..127).contains(&b)), "{text:?}");
            assert_eq!(finish, "stop");
        }
        let distinct: std::collections::BTreeSet<_> = texts.iter().collect();
        assert!(distinct.len() > 2, "{texts:?}");
    }
    // A second request of the same form finds the grammar as it was.
    assert_eq!(answers(&app, CHAT, more.clone()), answers(&app, CHAT, more));
}

#[test]
fn an_answer_that_is_cut_says_length_and_one_that_is_stopped_says_stop() {
    let app = app();
    let more = |more: Value| {
        let mut fields = outputs("choice", json!(["abcdef"]));
        for (name, value) in more.as_object().expect("fields") {
            fields[name] = value.clone();
        }
        fields
    };
    let cut = answers(&app, COMPLETIONS, more(json!({ "max_tokens": 3 })));
    assert_eq!(cut, [("abc".to_owned(), "length".to_owned())]);
    let stopped = answers(&app, COMPLETIONS, more(json!({ "stop": "cd" })));
    assert_eq!(stopped, [("ab".to_owned(), "stop".to_owned())]);
    // Where only a prompt's log-probabilities are wanted nothing is given a form.
    let scored = more(json!({ "echo": true, "max_tokens": 0, "logprobs": 0 }));
    assert_eq!(answers(&app, COMPLETIONS, scored)[0].0, "hi");
}

#[test]
fn what_is_wrong_is_refused_before_anything_is_sent() {
    let app = app();
    let both = json!({ "response_format": { "type": "json_object" }, "structured_outputs": { "regex": "a" } });
    let beside = |field: &str, value: Value| {
        let mut more = outputs("regex", json!("a+"));
        more[field] = value;
        more
    };
    const SCHEMA: &str = "response_format.json_schema.schema";
    let cases = [
        (
            schema(json!({ "properties": { "a": { "nullable": true } } })),
            SCHEMA,
            "at /properties/a/nullable: ",
        ),
        (schema(json!({ "$ref": "#" })), SCHEMA, SCHEMA),
        (schema(json!({ "type": "integer", "minimum": 2, "maximum": 1 })), SCHEMA, "minimum"),
        (schema(json!("x")), SCHEMA, "at the top: a schema is an object"),
        (schema(json!({ "description": "x".repeat(70_000) })), SCHEMA, "at most 65536"),
        (
            json!({ "response_format": { "type": "json_schema" } }),
            "response_format.json_schema",
            "must be an object",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x" } } }),
            SCHEMA,
            "is missing",
        ),
        (
            json!({ "response_format": { "type": "xml" } }),
            "response_format.type",
            "must be one of text, json_object",
        ),
        (
            json!({ "response_format": { "type": "json_object", "schema": {} } }),
            "response_format.schema",
            "no field here",
        ),
        (json!({ "response_format": "json" }), "response_format", "must be an object"),
        (json!({ "response_format": {} }), "response_format.type", "must be a string"),
        (
            json!({ "structured_outputs": { "regex": "a", "choice": ["b"] } }),
            "structured_outputs",
            "exactly one of",
        ),
        (json!({ "structured_outputs": {} }), "structured_outputs", "exactly one of"),
        (
            json!({ "structured_outputs": { "regexp": "a" } }),
            "structured_outputs.regexp",
            "no field here",
        ),
        (outputs("regex", json!("(")), "structured_outputs.regex", "structured_outputs.regex: "),
        (outputs("regex", json!(3)), "structured_outputs.regex", "must be a string"),
        (outputs("choice", json!([1])), "structured_outputs.choice", "a list of strings"),
        (outputs("choice", json!([])), "structured_outputs.choice", "between 1 and"),
        (outputs("json", json!("{")), "structured_outputs.json", "not JSON"),
        (outputs("grammar", json!("root ::= x")), "structured_outputs.grammar", "Lark's syntax"),
        (both, "structured_outputs", "give one of them"),
        (beside("ignore_eos", json!(true)), "ignore_eos", "must end"),
        (beside("min_tokens", json!(2)), "min_tokens", "may be whole before"),
    ];
    for (more, param, words) in cases {
        for path in [CHAT, COMPLETIONS] {
            for stream in [false, true] {
                let mut body = body(path, more.clone());
                body["stream"] = stream.into();
                let (at, message) = app.refused(path, &body);
                assert_eq!(at, param, "{message}");
                assert!(message.contains(words), "{message:?} lacks {words:?}");
            }
        }
    }
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let (status, answer) = Writing::new("").post(CHAT, &body(CHAT, beside("tools", tools)));
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("tools")), "{answer}");
    let message = answer["error"]["message"].as_str().expect("a message");
    assert!(message.contains("structured_outputs.regex: only JSON"), "{message}");
    // Nothing of them remains in the engine.
    while app.engine.unfinished() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn streamed_pieces_make_the_same_answer() {
    let app = app();
    let mut more = outputs("json", json!({ "enum": [["a", { "b": false }]] }));
    more["seed"] = 5.into();
    let whole = answers(&app, CHAT, more.clone()).remove(0).0;
    assert!(serde_json::from_str::<Value>(&whole).is_ok(), "{whole}");
    more["stream"] = true.into();
    let request = Request::post(CHAT).body(Body::from(body(CHAT, more).to_string()));
    let (status, _, text) = app.send(request.expect("a request"));
    assert_eq!(status, 200, "{text}");
    let pieces = text.lines().filter_map(|line| line.strip_prefix("data: {"));
    let pieces = pieces.map(|piece| {
        let chunk: Value = serde_json::from_str(&format!("{{{piece}")).expect("JSON");
        chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
    });
    assert_eq!(pieces.collect::<String>(), whole);
}

#[test]
fn the_responses_api_has_its_own_names() {
    let app = app();
    let ask = |format: Value| {
        let body = json!({
            "input": "hi", "max_output_tokens": 40, "temperature": 0,
            "text": { "format": format },
        });
        app.post("/v1/responses", body)
    };
    let format = json!({ "type": "json_schema", "name": "x", "schema": { "const": 12 } });
    let (status, answer) = ask(format.clone());
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["output"][0]["content"][0]["text"], "12");
    assert_eq!(answer["text"]["format"], format);
    let (status, answer) =
        ask(json!({ "type": "json_schema", "name": "x", "schema": { "not": {} } }));
    assert_eq!(
        (status, &answer["error"]["param"]),
        (400, &json!("text.format.schema")),
        "{answer}"
    );
}

#[test]
fn the_messages_api_has_its_own_names() {
    let server = Writing::new("{\"city\": \"Bern\"} and more");
    let schema = json!({
        "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "schema": schema });
    let ask = |more: Value| {
        let mut body = json!({
            "model": "writer", "max_tokens": 60,
            "messages": [{ "role": "user", "content": "hi" }],
        });
        body.as_object_mut().expect("fields").extend(more.as_object().expect("fields").clone());
        body
    };
    let asks = [
        json!({ "output_config": { "format": format, "effort": "low" } }),
        json!({ "output_config": { "format": format }, "output_format": null }),
        json!({ "output_format": format }),
    ];
    for more in asks {
        let (status, answer) = server.post("/v1/messages", &ask(more.clone()));
        assert_eq!(status, 200, "{answer}");
        let said = json!([{ "type": "text", "text": "{\"city\": \"Bern\"}" }]);
        assert_eq!((&answer["content"], &answer["stop_reason"]), (&said, &json!("end_turn")));
        let events = server.events("/v1/messages", &ask(more.clone()));
        let deltas = events.iter().filter_map(|(_, event)| event["delta"]["text"].as_str());
        assert_eq!(deltas.collect::<String>(), "{\"city\": \"Bern\"}");
        let mut count = ask(more);
        count.as_object_mut().expect("fields").shift_remove("max_tokens");
        assert_eq!(server.post("/v1/messages/count_tokens", &count).0, 200);
    }
    let cases = [
        (
            json!({ "output_config": { "format": format }, "output_format": format }),
            "output_format is the older name of output_config.format",
        ),
        (json!({ "output_format": "json" }), "output_format must be an object"),
        (json!({ "output_format": {} }), "output_format.type must be a string"),
        (
            json!({ "output_config": { "format": { "type": "json_object" } } }),
            "output_config.format.type is \"json_object\", but must be json_schema",
        ),
        (
            json!({ "output_config": { "format": { "type": "json_schema" } } }),
            "output_config.format.schema is missing",
        ),
        (
            json!({ "output_format": { "type": "json_schema", "schema": {}, "name": "x" } }),
            "output_format.name is no field here",
        ),
        (
            json!({ "output_format": { "type": "json_schema", "schema": { "not": {} } } }),
            "output_format.schema: at /not",
        ),
        (json!({ "output_config": { "formats": {} } }), "there is no field formats"),
        (json!({ "output_config": { "effort": "huge" } }), "output_config.effort is \"huge\""),
    ];
    for (more, words) in cases {
        for stream in [false, true] {
            let mut body = ask(more.clone());
            body["stream"] = stream.into();
            let (status, answer) = server.post("/v1/messages", &body);
            assert_eq!(status, 400, "{more}: {answer}");
            let message = answer["error"]["message"].as_str().expect("a message");
            assert!(message.contains(words), "{more}: {message:?} lacks {words:?}");
        }
    }
}

/// What a prompt has opened for the model to think comes before the form.
#[test]
fn a_thought_that_the_prompt_has_opened_is_free() {
    let server = Writing::new("so \"no\"?</think>\n\"maybe\"");
    let body = json!({
        "messages": [{ "role": "user", "content": "well <think>" }], "max_tokens": 60,
        "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": { "enum": ["yes"] } } },
    });
    let (status, answer) = server.post(CHAT, &body);
    assert_eq!(status, 200, "{answer}");
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "\"yes\"", "{answer}");
    assert_eq!(message["reasoning_content"], "so \"no\"?", "{answer}");
}

fn enumerated(said: &str, content: &str, more: &Value) -> Value {
    let mut body = json!({
        "messages": [{ "role": "user", "content": content }], "max_tokens": 60,
        "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": { "enum": ["yes"] } } },
    });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
    let (status, answer) = Writing::new(said).post(CHAT, &body);
    assert_eq!(status, 200, "{answer}");
    answer["choices"][0]["message"].clone()
}

/// The form begins behind the thought, or at once.
#[test]
fn a_thought_that_the_model_opens_is_free() {
    for (said, thought) in [
        ("<think>so \"no\"?</think>\"maybe\"", Some("so \"no\"?")),
        ("<think>\nso?\n</think>\n\n\"maybe\"", Some("so?")),
        // One line break is not what stands behind a thought: the second is made up for.
        ("<think>so?</think>\n\"maybe\"", Some("so?")),
        ("<think><think></think>\"yes\"", None),
        ("\"maybe\"", None),
    ] {
        let message = enumerated(said, "well?", &json!({}));
        assert_eq!(message["content"], "\"yes\"", "{said}: {message}");
        if thought.is_some() {
            assert_eq!(message["reasoning_content"].as_str(), thought, "{said}: {message}");
        }
    }
    // What the prompt has ended is not begun again.
    let message = enumerated("<think>so?", "well <think>\n\n</think>\n\n", &json!({}));
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("\"yes\""), &Value::Null)
    );
    // It has its budget.
    let more = json!({ "thinking_token_budget": 3 });
    let message = enumerated("<think>so, so, so", "well?", &more);
    assert_eq!(message["content"], "\"yes\"", "{message}");
    assert_eq!(message["reasoning_content"], "so,", "{message}");
}

/// A form that begins as the marker does is told from it where they part.
#[test]
fn a_form_that_begins_as_a_thought_does_is_still_one() {
    let by = |regex: &str, said: &str| {
        let more = json!({ "response_format": null, "structured_outputs": { "regex": regex } });
        enumerated(said, "well?", &more)
    };
    // One that has a thought in it bounds that too.
    let message = by("<think>[a-z]{3}</think>[a-z]{4}", "<think>abcdef</think>text");
    assert_eq!(message["reasoning_content"], "abc", "{message}");
    assert_eq!(message["content"].as_str().map(str::len), Some(4), "{message}");
    let things = |said: &str| by("<th[a-z]{4}>", said);
    assert_eq!(things("<things>")["content"], "<things>");
    let message = things("<think>things</think><things>");
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("<things>"), &json!("things"))
    );
}

/// A string may hold what marks a thought elsewhere.
#[test]
fn all_of_an_answer_that_has_a_form_is_its_text() {
    let said = r#"{"a": "<think>x</think> <tool_call>"}"#;
    let server = Writing::new(said);
    let mut body = body(CHAT, schema(json!({ "properties": { "a": { "type": "string" } } })));
    let (_, answer) = server.post(CHAT, &body);
    assert_eq!(answer["choices"][0]["message"]["content"], said, "{answer}");
    body["stream"] = true.into();
    let deltas = server.events(CHAT, &body);
    let deltas = deltas.iter().map(|(_, event)| &event["choices"][0]["delta"]["content"]);
    assert_eq!(deltas.filter_map(Value::as_str).collect::<String>(), said);
}
