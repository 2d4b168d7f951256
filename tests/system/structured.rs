//! Structured output of a real model over HTTP: every answer that ends is what its schema
//! describes, many at once, beside answers that nothing bounds.

use serde_json::{Value, json};

use crate::process::Server;

const CLIENTS: usize = 8;

fn ask(server: &Server, seed: usize, format: Option<&Value>) -> (String, String) {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "Describe a town and its people as JSON." }],
        "max_tokens": 200, "temperature": 0.7, "seed": seed,
    });
    if let Some(schema) = format {
        body["response_format"] = json!({
            "type": "json_schema", "json_schema": { "name": "town", "schema": schema },
        });
    }
    let (status, text) = server.send("POST", "/v1/chat/completions", &body.to_string());
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).expect("the answer is JSON");
    let choice = &answer["choices"][0];
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    (text(&choice["message"]["content"]), text(&choice["finish_reason"]))
}

#[test]
fn every_answer_that_ends_is_valid() {
    let schemas = include_str!("../../crates/grammar/tests/grammar/schemas.json");
    let schemas: Vec<Value> = serde_json::from_str(schemas).expect("a list of schemas");
    assert_eq!(schemas.len(), 30);
    let server = Server::start(&["--max-model-len", "1024"]);
    let alone = ask(&server, 77, None);
    let (schemas, server) = (&schemas, &server);
    let ended: usize = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let mut ended = 0;
                    for (i, schema) in schemas.iter().enumerate().skip(client).step_by(CLIENTS) {
                        let (text, finish) = ask(server, i, Some(schema));
                        if finish == "length" {
                            continue;
                        }
                        assert_eq!(finish, "stop");
                        let value = serde_json::from_str(&text);
                        let value: Value = value.unwrap_or_else(|e| panic!("{schema}: {e} {text}"));
                        let validator = jsonschema::options().should_validate_formats(true);
                        let validator = validator.build(schema).expect("a schema");
                        assert!(validator.is_valid(&value), "{schema}: {text}");
                        ended += 1;
                    }
                    ended
                })
            })
            .collect();
        // Beside them an answer without a form has the same tokens as alone.
        assert_eq!(ask(server, 77, None), alone);
        clients.into_iter().map(|client| client.join().expect("no answer was wrong")).sum()
    });
    assert!(ended > 20, "only {ended} answers ended");
}
