//! Batches on a disk: what is kept, what is refused, and what a process that is killed leaves.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
};

use proptest::prelude::*;
use sconce_batches::{Answer, Batch, Counts, Input, Limits, Status, Store, StoreError};
use serde_json::{Value, json};

const ENDPOINT: &str = "/v1/completions";
const DAY: u64 = 86_400;

fn line(custom_id: &str) -> String {
    let body = json!({ "prompt": custom_id });
    json!({ "custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body }).to_string()
}

fn upload(store: &Store, tenant: &str, id: &str, text: &str) {
    let mut upload = store.upload(tenant).expect("there is room");
    upload.write_all(text.as_bytes()).expect("it is written");
    let kept = store.keep(tenant, upload, id.to_owned(), ("in.jsonl".to_owned(), "batch"), 5);
    assert_eq!(kept.expect("it is kept").bytes, text.len() as u64);
}

/// A store with a batch of so many requests, `r0`, `r1` and so on.
fn store_with(folder: &Path, requests: usize) -> Store {
    let store = Store::open(folder, Limits::default()).expect("an empty folder");
    let text: String = (0..requests).map(|i| line(&format!("r{i}")) + "\n").collect();
    upload(&store, "acme", "file-1", &text);
    let batch = Batch::new("batch_1".to_owned(), "file-1".to_owned(), ENDPOINT.to_owned(), 10, DAY);
    store.add("acme", &batch).expect("its file is there");
    store
}

fn answer(custom_id: &str, status: u16) -> Answer {
    let (id, request_id) = (format!("id-{custom_id}"), format!("req-{custom_id}"));
    let body = json!({ "text": custom_id });
    Answer { custom_id: custom_id.to_owned(), id, status, request_id, body }
}

/// The lines of a file by their `custom_id`.
fn lines(store: &Store, file: &str) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(store.content("acme", file).expect("there is one"));
    let mut found = BTreeMap::new();
    for line in text.expect("UTF-8").lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let name = line["custom_id"].as_str().expect("a string").to_owned();
        assert!(found.insert(name, line).is_none(), "each request has one line");
    }
    found
}

#[test]
fn a_batch_ends_with_its_answers_in_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store_with(folder.path(), 3);
    assert_eq!(store.unfinished(), [("acme".to_owned(), "batch_1".to_owned())]);
    let mut run = store.begin("acme", "batch_1", 4096, 11).expect("a disk").expect("it is right");
    let begun = store.batch("acme", "batch_1").expect("it is there");
    assert_eq!((begun.status, begun.in_progress_at), (Status::InProgress, Some(11)));
    let mut statuses = [200, 400, 200].into_iter();
    while let Some(line) = run.next_line().expect("a disk") {
        assert_eq!(line.body["prompt"], *line.custom_id);
        let status = statuses.next().expect("three");
        store.answer(&mut run, &answer(&line.custom_id, status)).expect("a disk");
    }
    let counts = Counts { total: 3, completed: 2, failed: 1 };
    assert_eq!(store.batch("acme", "batch_1").expect("it is there").request_counts, counts);
    let ended = store.finish(run, 12).expect("a disk");
    assert_eq!((ended.status, ended.completed_at), (Status::Completed, Some(12)));
    assert_eq!(ended.request_counts, counts);
    let output = lines(&store, ended.output_file_id.as_deref().expect("some were answered"));
    let expected = json!({
        "id": "id-r0", "custom_id": "r0", "error": null,
        "response": { "status_code": 200, "request_id": "req-r0", "body": { "text": "r0" } },
    });
    assert_eq!(output["r0"], expected);
    assert_eq!(output.keys().collect::<Vec<_>>(), ["r0", "r2"]);
    let errors = lines(&store, ended.error_file_id.as_deref().expect("one was refused"));
    assert_eq!(errors["r1"]["response"]["status_code"], 400);
    assert!(store.unfinished().is_empty());
    // Another process finds it as it is.
    let again = Store::open(folder.path(), Limits::default()).expect("it is in order");
    assert_eq!(again.batch("acme", "batch_1").expect("it is there"), ended);
    assert_eq!(again.files("acme", Some("batch_output"), (None, 9)).data.len(), 2);
}

#[test]
fn requests_without_an_answer_expire_unless_the_batch_was_given_up() {
    for is_cancelled in [false, true] {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store_with(folder.path(), 3);
        let mut run = store.begin("acme", "batch_1", 4096, 11).expect("a disk").expect("right");
        let first = run.next_line().expect("a disk").expect("three");
        if is_cancelled {
            let (_, is_new) =
                store.change("acme", "batch_1", |batch| batch.cancel(12)).expect("a disk");
            assert!(is_new);
        }
        store.answer(&mut run, &answer(&first.custom_id, 200)).expect("a disk");
        run.stop();
        assert_eq!(run.next_line().expect("a disk"), None);
        let ended = store.finish(run, 13).expect("a disk");
        let output = ended.output_file_id.as_deref().expect("one was answered");
        assert_eq!(lines(&store, output).len(), 1);
        if is_cancelled {
            assert_eq!((ended.status, ended.cancelled_at), (Status::Cancelled, Some(13)));
            assert_eq!(ended.error_file_id, None);
        } else {
            assert_eq!((ended.status, ended.expired_at), (Status::Expired, Some(13)));
            let errors = lines(&store, ended.error_file_id.as_deref().expect("two expired"));
            assert_eq!(errors["r2"]["error"]["code"], "batch_expired");
        }
        let (_, is_new) = store.change("acme", "batch_1", |batch| batch.cancel(14)).expect("disk");
        assert!(!is_new, "it has ended");
    }
}

#[test]
fn a_batch_that_is_given_up_before_it_began_has_no_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = store_with(folder.path(), 3);
    store.change("acme", "batch_1", |batch| batch.cancel(12)).expect("a disk");
    assert!(store.begin("acme", "batch_1", 4096, 13).expect("a disk").is_none());
    let ended = store.batch("acme", "batch_1").expect("it is there");
    assert_eq!((ended.status, ended.cancelled_at), (Status::Cancelled, Some(13)));
    assert_eq!((ended.output_file_id, ended.error_file_id), (None, None));
}

#[test]
fn every_wrong_line_is_told_with_its_number_and_nothing_is_run() {
    let with = |change: fn(&mut Value)| {
        let mut line: Value = serde_json::from_str(&line("x")).expect("JSON");
        change(&mut line);
        line.to_string()
    };
    let cases = [
        ("{".to_owned(), "invalid_json_line", None),
        ("[]".to_owned(), "invalid_json_line", None),
        (with(|line| line["custom_id"] = 5.into()), "invalid_request", Some("custom_id")),
        (with(|line| line["custom_id"] = "".into()), "invalid_custom_id", Some("custom_id")),
        (with(|line| line["method"] = "GET".into()), "invalid_method", Some("method")),
        (with(|line| line["url"] = "/v1/embeddings".into()), "invalid_url", Some("url")),
        (with(|line| line["body"] = "x".into()), "invalid_request", Some("body")),
        (with(|line| line["body"]["stream"] = true.into()), "invalid_request", Some("body.stream")),
        (with(|line| line["extra"] = 1.into()), "unknown_parameter", Some("extra")),
        (line("good"), "duplicate_custom_id", Some("custom_id")),
        (line(&"y".repeat(600)), "invalid_custom_id", Some("custom_id")),
        (with(|line| line["body"]["prompt"] = "z".repeat(5000).into()), "line_too_long", None),
    ];
    let mut text = line("good") + "\n\n";
    text.extend(cases.iter().map(|(line, ..)| line.clone() + "\n"));
    let folder = tempfile::tempdir().expect("a folder");
    let store = Store::open(folder.path(), Limits::default()).expect("an empty folder");
    upload(&store, "acme", "file-1", &text);
    let batch = Batch::new("batch_1".to_owned(), "file-1".to_owned(), ENDPOINT.to_owned(), 10, DAY);
    store.add("acme", &batch).expect("its file is there");
    assert!(store.begin("acme", "batch_1", 4096, 11).expect("a disk").is_none());
    let failed = store.batch("acme", "batch_1").expect("it is there");
    assert_eq!((failed.status, failed.failed_at), (Status::Failed, Some(11)));
    let errors = failed.errors.expect("some").data;
    assert_eq!(errors.len(), cases.len());
    for ((at, (_, code, param)), error) in cases.iter().enumerate().zip(errors) {
        assert_eq!((&*error.code, error.param.as_deref()), (*code, *param), "{error}");
        assert_eq!(error.line, Some(at + 3), "{error}");
    }
}

#[test]
fn files_without_requests_and_with_too_many_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("in.jsonl");
    let code = |text: &str| {
        fs::write(&path, text).expect("it is written");
        let read = Input::read(&path, ENDPOINT, 4096).expect("a disk");
        read.map(|input| input.len()).map_err(|errors| errors[0].code.clone())
    };
    assert_eq!(code(""), Err("empty_file".to_owned()));
    assert_eq!(code("\n\n"), Err("empty_file".to_owned()));
    // The last line may end without a line break.
    assert_eq!(code(&line("a")), Ok(1));
    let text: String = (0..=50_000).map(|i| line(&i.to_string()) + "\n").collect();
    assert_eq!(code(&text), Err("too_many_requests".to_owned()));
}

#[test]
fn tenants_see_their_own_and_lists_come_in_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = Limits { max_file_bytes: 50, max_bytes: 100, max_entries: 3 };
    let store = Store::open(folder.path(), limits).expect("an empty folder");
    for (tenant, id) in [("a/../b", "file-1"), ("a/../b", "file-2"), ("other", "file-3")] {
        upload(&store, tenant, id, "0123456789");
    }
    let ids = |page: sconce_batches::Page<sconce_batches::StoredFile>| {
        (page.data.into_iter().map(|file| file.id).collect::<Vec<_>>(), page.has_more)
    };
    let list = |after, limit| ids(store.files("a/../b", None, (after, limit)));
    assert_eq!(list(None, 1), (vec!["file-2".to_owned()], true));
    assert_eq!(list(Some("file-2"), 1), (vec!["file-1".to_owned()], false));
    assert_eq!(list(Some("file-9"), 1), (vec![], false));
    assert!(matches!(store.file("a/../b", "file-3"), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.delete("other", "file-1"), Err(StoreError::NotFound { .. })));
    let begun = store.upload("a/../b").expect("there is room");
    assert_eq!(store.room("a/../b", &begun), 50);
    upload(&store, "a/../b", "file-4", &"x".repeat(50));
    assert_eq!(store.room("a/../b", &begun), 30);
    assert!(matches!(store.upload("a/../b"), Err(StoreError::Full { most: 3, .. })));
    // An upload that is given up leaves nothing.
    drop(begun);
    let again = Store::open(folder.path(), limits).expect("it is in order");
    assert_eq!(again.files("a/../b", None, (None, 9)), store.files("a/../b", None, (None, 9)));
    let batch = Batch::new("batch_1".to_owned(), "file-1".to_owned(), ENDPOINT.to_owned(), 1, DAY);
    assert!(matches!(store.add("other", &batch), Err(StoreError::NotFound { .. })));
    store.add("a/../b", &batch).expect("its file is there");
    assert!(matches!(store.delete("a/../b", "file-1"), Err(StoreError::InUse { .. })));
    store.begin("a/../b", "batch_1", 4096, 2).expect("a disk");
    store.delete("a/../b", "file-1").expect("the batch has failed");
    assert!(matches!(store.content("a/../b", "file-1"), Err(StoreError::NotFound { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A process is killed again and again, at any byte of what it writes last: each request is
    /// answered once, and no answer that was written whole is lost or asked for again.
    #[test]
    fn batches_go_on_where_a_killed_process_left_them(
        requests in 1_usize..12,
        kills in prop::collection::vec((0_usize..6, 0_usize..200), 0..6),
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        drop(store_with(folder.path(), requests));
        let mut answered = Vec::new();
        for (answers, cut) in kills {
            let store = Store::open(folder.path(), Limits::default()).expect("it is in order");
            let run = store.begin("acme", "batch_1", 4096, 11).expect("a disk");
            let mut run = run.expect("its input is right");
            for _ in 0..answers {
                let Some(line) = run.next_line().expect("a disk") else { break };
                prop_assert!(!answered.contains(&line.custom_id));
                store.answer(&mut run, &answer(&line.custom_id, 200)).expect("a disk");
                answered.push(line.custom_id);
            }
            if let Some(line) = run.next_line().expect("a disk") {
                // What was under way when it was killed.
                let whole = json!({
                    "custom_id": line.custom_id, "response": { "status_code": 200 },
                    "padding": "x".repeat(200),
                });
                let text = whole.to_string();
                let path = folder.path().join("tenant-61636d65/batch_1.answers.jsonl");
                let file = OpenOptions::new().append(true).open(path);
                file.expect("it is there").write_all(&text.as_bytes()[..cut]).expect("a disk");
            }
        }
        let store = Store::open(folder.path(), Limits::default()).expect("it is in order");
        let mut run = store.begin("acme", "batch_1", 4096, 11).expect("a disk").expect("right");
        while let Some(line) = run.next_line().expect("a disk") {
            prop_assert!(!answered.contains(&line.custom_id));
            store.answer(&mut run, &answer(&line.custom_id, 200)).expect("a disk");
        }
        let ended = store.finish(run, 12).expect("a disk");
        prop_assert_eq!(ended.status, Status::Completed);
        let output = lines(&store, ended.output_file_id.as_deref().expect("there are some"));
        prop_assert_eq!(output.len(), requests);
    }
}
