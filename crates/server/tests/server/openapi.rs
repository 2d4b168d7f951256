//! `/openapi.json` beside what the server does.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use axum::{body::Body, http::Request};
use sconce_server::ServerConfig;
use sconce_tenants::ApiKeys;
use serde_json::{Value, json};

use crate::{app::App, reference::reference};

/// Set, tests write anew what they would compare.
const WRITE: &str = "SCONCE_WRITE_OPENAPI";

pub(crate) fn document(app: &App) -> Value {
    let request = Request::get("/openapi.json").body(Body::empty()).expect("a request");
    let (status, headers, text) = app.send(request);
    assert_eq!(
        (status.as_u16(), &headers["content-type"]),
        (200, &"application/json".parse().expect("a header"))
    );
    serde_json::from_str(&text).expect("JSON")
}

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let all = paths.iter().flat_map(|(path, operations)| {
        let operations = operations.as_object().expect("operations");
        operations
            .iter()
            .map(|(method, operation)| (path.clone(), method.clone(), operation.clone()))
    });
    all.collect()
}

/// The paths that a router has, as it shows them for debugging.
fn routed_paths(app: &App) -> BTreeSet<String> {
    let shown = format!("{:?}", app.router);
    let quoted = shown.split('"').skip(1).step_by(2).filter(|text| text.starts_with('/'));
    let paths: BTreeSet<_> = quoted.map(ToOwned::to_owned).collect();
    assert!(paths.len() > 20, "the router does not show its paths: {shown:.500}");
    paths
}

/// Other paths of operations that the document has.
const ALIASES: [&str; 3] = ["/score", "/rerank", "/v2/rerank"];

#[test]
fn the_document_has_the_routers_paths_and_methods() {
    let app = App::new(ServerConfig::default());
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, method, _) in operations(&document(&app)) {
        documented.entry(path).or_default().insert(method.to_uppercase());
    }
    let mut routed = BTreeMap::new();
    for path in routed_paths(&app) {
        // The pages' files are no API; a path may end in a slash.
        let is_file = path == "/" || path == "/docs" || path.starts_with("/page/");
        let is_file = is_file || path.contains("__private__");
        if is_file || path.ends_with('/') || ALIASES.contains(&&*path) {
            continue;
        }
        let place = path.replace("{*id}", "x").replace("{id}", "x");
        let request = Request::patch(place).body(Body::empty());
        let (status, headers, _) = app.send(request.expect("a request"));
        assert_eq!(status, 405, "{path}");
        let allowed = headers["allow"].to_str().expect("text");
        let methods = allowed.split(',').filter(|method| *method != "HEAD");
        let methods: BTreeSet<_> = methods.map(ToOwned::to_owned).collect();
        routed.insert(path.replace("{*id}", "{id}"), methods);
    }
    assert_eq!(documented, routed);
}

#[test]
fn the_document_names_the_server_below_its_prefix() {
    let root_path = "/llm/".to_owned();
    let app = App::new(ServerConfig { root_path, ..ServerConfig::default() });
    assert_eq!(document(&app)["servers"], json!([{ "url": "/llm" }]));
    let app = App::new(ServerConfig::default());
    assert_eq!(document(&app)["servers"], json!([{ "url": "/" }]));
}

#[test]
fn what_the_document_says_needs_a_key_does() {
    let api_keys = ApiKeys::new(["secret"]).expect("a key");
    let app = App::new(ServerConfig { api_keys, ..ServerConfig::default() });
    for (path, method, operation) in operations(&document(&app)) {
        let security = operation.get("security").and_then(Value::as_array);
        let is_open = security.is_some_and(|any| any.contains(&json!({})));
        let status = app.status(&method.to_uppercase(), &path.replace("{id}", "x"), &[]);
        assert_eq!(status == 401, !is_open, "{method} {path}: {status}");
    }
}

/// A value that a schema allows.
fn example(schema: &Value, document: &Value) -> Value {
    if let Some(place) = schema["$ref"].as_str() {
        let schema = document.pointer(place.trim_start_matches('#')).expect("it is there");
        return example(schema, document);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let one = any.iter().find(|one| one["type"] != "null");
        return example(one.expect("an alternative"), document);
    }
    if let Some(any) = schema["enum"].as_array() {
        return any[0].clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].as_str(),
        kind => kind.as_str(),
    };
    match kind {
        Some("array") => json!([example(&schema["items"], document)]),
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten();
            let fields = required.map(|name| {
                let name = name.as_str().expect("a name");
                (name.to_owned(), example(&schema["properties"][name], document))
            });
            Value::Object(fields.collect())
        }
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(true),
        Some("string") => json!("a"),
        _ => json!({}),
    }
}

/// The body's schema, where there is one.
fn body_of<'a>(operation: &Value, document: &'a Value) -> Option<&'a Value> {
    let place =
        operation.pointer("/requestBody/content/application~1json/schema/$ref")?.as_str()?;
    document.pointer(place.trim_start_matches('#'))
}

#[test]
fn every_field_that_is_documented_is_known_and_no_other() {
    let app = App::new(ServerConfig::default());
    let document = document(&app);
    let mut fields = 0;
    for (path, _, operation) in operations(&document) {
        let Some(schema) = body_of(&operation, &document) else { continue };
        assert_eq!(schema["additionalProperties"], false, "{path}");
        let least = example(schema, &document);
        let refusal = |name: &str, value: Value| {
            let mut body = least.clone();
            body[name] = value;
            let (status, answer) = app.post(&path, &body);
            assert_eq!(status, 400, "{path} {name}: {answer}");
            answer["error"]["message"].as_str().expect("a message").to_owned()
        };
        for name in schema["properties"].as_object().expect("fields").keys() {
            // Of no field's type, and no value that asks for nothing.
            let odd = if schema["properties"][name].get("type").is_some_and(|kind| {
                kind == "object"
                    || kind.as_array().is_some_and(|kinds| kinds.contains(&json!("object")))
            }) {
                json!("\u{1f56f}")
            } else {
                json!({ "\u{1f56f}": [] })
            };
            let message = refusal(name, odd);
            let is_known =
                !message.contains("there is no field") && !message.contains("not supported");
            assert!(is_known || message.contains("\u{1f56f}"), "{path} {name}: {message}");
            fields += 1;
        }
        let message = refusal("\u{1f56f}", json!(1));
        assert!(message.contains("there is no field \u{1f56f}"), "{path}: {message}");
    }
    assert!(fields > 100, "{fields} fields");
}

#[test]
fn what_the_document_refers_to_is_there() {
    let app = App::new(ServerConfig::default());
    let document = document(&app);
    let text = document.to_string();
    let places = text.split("\"#/").skip(1).filter_map(|rest| rest.split('"').next());
    let places: BTreeSet<_> = places.collect();
    assert!(places.len() > 50);
    for place in places {
        assert!(document.pointer(&format!("/{place}")).is_some(), "there is no {place}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares a file of the repository, or writes it.
fn hold(name: &str, text: &str) {
    let path = root().join(name);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, text).expect("it is written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{name} is not what the server says; write it anew: just openapi");
}

#[test]
fn the_documents_in_the_repository_are_the_servers() {
    let app = App::new(ServerConfig::default());
    let document = document(&app);
    let mut text = serde_json::to_string_pretty(&document).expect("JSON");
    text.push('\n');
    hold("docs/openapi.json", &text);
    hold("docs/reference.md", &reference(&document));
}
