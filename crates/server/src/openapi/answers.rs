//! What every operation may answer beside what its handler says: errors, and what its events are.

use serde_json::{Map, Value, json};

/// What statuses mean.
const ERRORS: &[(u16, &str)] = &[
    (400, "The request is wrong; `param` names the field at fault"),
    (401, "A key is needed, or this one is not known"),
    (403, "The key may not do this"),
    (404, "There is no such model, response, file or batch"),
    (408, "The request did not come in time"),
    (409, "It is in use, or has ended"),
    (413, "The body is too large"),
    (415, "The body is not JSON, or encoded"),
    (429, "The caller has too many requests or tokens; `Retry-After` says when to come again"),
    (500, "The server's fault"),
    (503, "The server is overloaded or not ready; `Retry-After` says when to come again"),
    (504, "The request's `timeout` has passed"),
];

/// Adds errors, and turns what stands for a stream's events into their description.
pub(super) fn complete(document: &mut Value) {
    let paths = document["paths"].as_object_mut().expect("there are paths");
    for (path, operations) in paths {
        for operation in operations.as_object_mut().expect("operations").values_mut() {
            add_errors(path, operation);
            let answers = operation["responses"].as_object_mut().expect("there are answers");
            for answer in answers.values_mut() {
                if let Some(stream) = answer.pointer_mut("/content/text~1event-stream") {
                    *stream = events(&stream["itemSchema"]);
                }
            }
        }
    }
}

fn add_errors(path: &str, operation: &mut Value) {
    let statuses = statuses(path, operation);
    let schema = if path.starts_with("/v1/messages") { "MessageError" } else { "Error" };
    for (status, meaning) in ERRORS.iter().filter(|(status, _)| statuses.contains(status)) {
        let mut answer = json!({
            "description": meaning,
            "content": { "application/json": {
                "schema": { "$ref": format!("#/components/schemas/{schema}") },
            } },
        });
        if matches!(status, 429 | 503) {
            answer["headers"] = json!({ "Retry-After": {
                "description": "Seconds", "schema": { "type": "integer", "minimum": 0 },
            } });
        }
        operation["responses"][status.to_string()] = answer;
    }
}

fn statuses(path: &str, operation: &Value) -> Vec<u16> {
    let mut statuses = match path {
        "/health" | "/ping" | "/ready" | "/v1/live" => vec![503],
        "/metrics" => vec![401],
        "/v1/capacity" | "/admin/reload" => vec![400, 503],
        _ if path.starts_with("/v1/files") || path.starts_with("/v1/batches") => {
            vec![400, 404, 409]
        }
        _ => vec![],
    };
    let is_open = operation.get("security").is_some();
    if !is_open {
        statuses.extend([401, 403, 500]);
    }
    if operation.get("requestBody").is_some() {
        statuses.extend([400, 404, 408, 413, 415, 429, 503, 504]);
    }
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    if parameters.into_iter().any(|parameter| parameter["in"] == "path") {
        statuses.push(404);
    }
    statuses
}

/// Server-sent events of this schema. OpenAI's older streams end with `[DONE]`, and fail with an
/// error in the place of a chunk.
fn events(schema: &Value) -> Value {
    let name = schema["$ref"].as_str().and_then(|place| place.rsplit('/').next()).unwrap_or("");
    let of = |schema: Value| json!({ "type": "string", "contentMediaType": "application/json", "contentSchema": schema });
    let (mut event, data) = match name {
        "ChatCompletionChunk" | "CompletionChunk" => {
            let error = json!({ "$ref": "#/components/schemas/Error" });
            let done = json!({ "const": "[DONE]" });
            let chunk = of(json!({ "anyOf": [schema, error] }));
            (Map::new(), json!({ "anyOf": [done, chunk] }))
        }
        "LiveEvent" => (Map::new(), of(schema.clone())),
        _ => {
            let name = json!({ "type": "string", "description": "The data's `type`" });
            (Map::from_iter([("event".to_owned(), name)]), of(schema.clone()))
        }
    };
    event.insert("data".to_owned(), data);
    json!({ "itemSchema": { "type": "object", "required": ["data"], "properties": event } })
}
