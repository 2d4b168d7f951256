//! `/v1/files` and `/v1/batches`: what goes in as a file of requests comes out as files of answers.

use std::{fmt::Write as _, path::Path, sync::Arc};

use axum::{body::Body, http::Request};
use sconce_batches::Limits;
use sconce_server::{Batches, ServerConfig, TenantDirectory};
use serde_json::{Value, json};

use crate::app::{App, CHAT, COMPLETIONS};

const FILES: &str = "/v1/files";
const BATCHES: &str = "/v1/batches";
const BOUNDARY: &str = "XbatchesX";

/// A server that keeps files in a folder, and runs batches if `runs`.
pub(crate) fn app(folder: &Path, limits: Limits, runs: bool) -> App {
    let batches = Arc::new(Batches::open(folder, limits).expect("the folder can be used"));
    let config = ServerConfig { batches: Some(Arc::clone(&batches)), ..ServerConfig::default() };
    let app = App::new(config);
    if runs {
        let _runtime = app.runtime.enter();
        let tenants = Arc::new(TenantDirectory::sole());
        batches.start(app.router.clone(), app.engine.clone(), tenants, 4096);
    }
    app
}

impl App {
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder().method(method).uri(path).body(body);
        let (status, _, text) = self.send(request.expect("a request"));
        (status.as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// A form of fields and a file.
    fn upload(&self, fields: &[(&str, &str)], file: Option<&str>) -> (u16, Value) {
        let mut form = String::new();
        for (name, value) in fields {
            write!(
                form,
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            )
            .expect("a string takes it");
        }
        if let Some(text) = file {
            write!(
                form,
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; \
                 filename=\"in.jsonl\"\r\n\r\n{text}\r\n"
            )
            .expect("a string takes it");
        }
        write!(form, "--{BOUNDARY}--\r\n").expect("a string takes it");
        let request = Request::post(FILES)
            .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(Body::from(form));
        let (status, _, text) = self.send(request.expect("a request"));
        (status.as_u16(), serde_json::from_str(&text).expect("JSON"))
    }

    #[track_caller]
    pub(crate) fn file(&self, text: &str) -> String {
        let (status, file) = self.upload(&[("purpose", "batch")], Some(text));
        assert_eq!((status, &file["bytes"]), (200, &json!(text.len())), "{file}");
        file["id"].as_str().expect("an id").to_owned()
    }

    #[track_caller]
    pub(crate) fn batch(&self, file: &str, endpoint: &str) -> String {
        let body = json!({
            "input_file_id": file, "endpoint": endpoint, "completion_window": "24h",
            "metadata": { "run": "7" },
        });
        let (status, batch) = self.ask("POST", BATCHES, &body);
        assert_eq!((status, &batch["object"]), (200, &json!("batch")), "{batch}");
        batch["id"].as_str().expect("an id").to_owned()
    }

    /// Waits until a batch has ended; other requests go on meanwhile.
    pub(crate) fn ended(&self, id: &str) -> Value {
        loop {
            let (status, batch) = self.ask("GET", &format!("{BATCHES}/{id}"), &Value::Null);
            assert_eq!(status, 200, "{batch}");
            let state = batch["status"].as_str().expect("a status");
            if ["completed", "failed", "cancelled", "expired"].contains(&state) {
                return batch;
            }
            // The requests run on this runtime, the files on a thread of their own.
            self.runtime.block_on(tokio::task::yield_now());
        }
    }

    fn lines(&self, file: &Value) -> Vec<Value> {
        let id = file.as_str().expect("there is a file");
        let path = format!("{FILES}/{id}/content");
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let (status, _, text) = self.send(request);
        assert_eq!(status.as_u16(), 200, "{text}");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

fn line(custom_id: &str, url: &str, body: &Value) -> String {
    let line = json!({ "custom_id": custom_id, "method": "POST", "url": url, "body": body });
    line.to_string() + "\n"
}

#[test]
fn a_batch_is_answered_as_its_requests_would_be_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = app(folder.path(), Limits::default(), true);
    let body =
        |seed: u32| json!({ "prompt": "x", "max_tokens": 5, "seed": seed, "ignore_eos": true });
    let mut text: String =
        (0..40).map(|seed| line(&format!("r{seed}"), COMPLETIONS, &body(seed))).collect();
    text += &line("wrong", COMPLETIONS, &json!({ "prompt": "x", "max_tokens": 0 }));
    let id = app.batch(&app.file(&text), COMPLETIONS);
    let batch = app.ended(&id);
    assert_eq!((&batch["status"], &batch["metadata"]["run"]), (&json!("completed"), &json!("7")));
    assert_eq!(batch["request_counts"], json!({ "total": 41, "completed": 40, "failed": 1 }));
    let answers = app.lines(&batch["output_file_id"]);
    assert_eq!(answers.len(), 40);
    for answer in answers {
        let seed = answer["custom_id"].as_str().expect("a name")[1..].parse().expect("a number");
        let (_, alone) = app.post(COMPLETIONS, body(seed));
        let response = &answer["response"];
        assert_eq!(response["status_code"], 200);
        assert_eq!(response["body"]["choices"], alone["choices"], "seed {seed}");
        assert!(response["request_id"].as_str().is_some_and(|id| !id.is_empty()));
    }
    let errors = app.lines(&batch["error_file_id"]);
    assert_eq!(errors[0]["custom_id"], "wrong");
    assert_eq!(errors[0]["response"]["body"]["error"]["param"], "max_tokens");
    let (_, list) = app.ask("GET", &format!("{BATCHES}?limit=1"), &Value::Null);
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&json!(id), &json!(false)));
    let (_, files) = app.ask("GET", &format!("{FILES}?purpose=batch_output"), &Value::Null);
    assert_eq!(files["data"].as_array().map(Vec::len), Some(2));
    let path = format!("{FILES}/{}", batch["output_file_id"].as_str().expect("a file"));
    assert_eq!(app.ask("DELETE", &path, &Value::Null).1["deleted"], true);
    assert_eq!(app.ask("GET", &path, &Value::Null).0, 404);
}

#[test]
fn a_batch_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let ask = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 3 });
    let first = app(folder.path(), Limits::default(), false);
    let text: String = (0..5).map(|i| line(&i.to_string(), CHAT, &ask)).collect();
    let id = first.batch(&first.file(&text), CHAT);
    let (_, batch) = first.ask("GET", &format!("{BATCHES}/{id}"), &Value::Null);
    assert_eq!(batch["status"], "validating", "nothing runs it here");
    drop(first);
    let second = app(folder.path(), Limits::default(), true);
    let batch = second.ended(&id);
    assert_eq!(batch["request_counts"]["completed"], 5, "{batch}");
}

#[test]
fn a_batch_with_a_wrong_file_fails_and_one_that_is_given_up_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let app = app(folder.path(), Limits::default(), true);
    let id = app.batch(&app.file("{}\n"), COMPLETIONS);
    let failed = app.ended(&id);
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["errors"]["data"][0]["line"], 1);
    let (status, error) = app.ask("POST", &format!("{BATCHES}/{id}/cancel"), &Value::Null);
    assert_eq!(status, 409, "{error}");
    let slow = json!({ "prompt": "x", "max_tokens": 100, "ignore_eos": true });
    let text: String = (0..500).map(|i| line(&i.to_string(), COMPLETIONS, &slow)).collect();
    let id = app.batch(&app.file(&text), COMPLETIONS);
    let (status, batch) = app.ask("POST", &format!("{BATCHES}/{id}/cancel"), &Value::Null);
    assert_eq!((status, &batch["status"]), (200, &json!("cancelling")), "{batch}");
    let ended = app.ended(&id);
    assert_eq!((&ended["status"], &ended["error_file_id"]), (&json!("cancelled"), &Value::Null));
    assert!(ended["request_counts"]["completed"].as_u64() < Some(500), "{ended}");
}

#[test]
fn what_is_wrong_is_refused_by_name_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = Limits { max_file_bytes: 300, max_bytes: 500, max_entries: 3 };
    let app = app(folder.path(), limits, false);
    let long = "x".repeat(301);
    for (fields, file, status, param) in [
        (&[][..], Some("x"), 400, json!("purpose")),
        (&[("purpose", "assistants")], Some("x"), 400, json!("purpose")),
        (&[("purpose", "batch")], None, 400, json!("file")),
        (&[("purpose", "batch"), ("color", "red")], Some("x"), 400, json!("color")),
        (&[("purpose", "batch")], Some(&*long), 413, json!("file")),
    ] {
        let (got, error) = app.upload(fields, file);
        assert_eq!((got, &error["error"]["param"]), (status, &param), "{error}");
    }
    let (status, error) = app.ask("POST", FILES, &json!({ "purpose": "batch" }));
    assert_eq!(status, 400, "{error}");
    let left = std::fs::read_dir(folder.path().join("tenant-64656661756c74"));
    assert_eq!(left.expect("it was made").count(), 0, "what was refused is gone");
    let file = app.file("x");
    let good = json!({
        "input_file_id": file, "endpoint": COMPLETIONS, "completion_window": "24h",
    });
    for (field, value, status) in [
        ("input_file_id", json!("file-0"), 404),
        ("input_file_id", json!("../../etc/passwd"), 404),
        ("input_file_id", json!(5), 400),
        ("endpoint", json!("/v1/files"), 400),
        ("completion_window", json!("1h"), 400),
        ("metadata", json!({ "a": 1 }), 400),
        ("output_expires_after", json!({ "seconds": 1 }), 400),
        ("colour", json!(1), 400),
    ] {
        let mut body = good.clone();
        body[field] = value;
        let (got, error) = app.ask("POST", BATCHES, &body);
        assert_eq!((got, &error["error"]["param"]), (status, &json!(field)), "{error}");
    }
    for (path, status) in [
        ("/v1/files/file-0", 404),
        ("/v1/files/file-0/content", 404),
        ("/v1/files/..%2F..%2Fetc", 404),
        ("/v1/batches/batch_0", 404),
        ("/v1/files?limit=0", 400),
        ("/v1/files?colour=red", 400),
        ("/v1/batches?order=asc", 400),
    ] {
        assert_eq!(app.ask("GET", path, &Value::Null).0, status, "{path}");
    }
    // A page of another site may not fill the disk.
    let request = Request::post(FILES)
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
        .header("host", "localhost:8000")
        .header("origin", "https://other.example")
        .body(Body::empty());
    assert_eq!(app.send(request.expect("a request")).0.as_u16(), 403);
    let without = App::new(ServerConfig::default());
    let (status, error) = without.ask("GET", FILES, &Value::Null);
    assert_eq!(status, 404);
    assert!(error.to_string().contains("--batch-dir"), "{error}");
}
