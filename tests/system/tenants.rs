//! Tenants of a running server, and of simulated ones.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::Command,
};

use serde_json::{Value, json};

use crate::process::{Server, sconce};

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

fn tenant(file: &Path, arguments: &[&str]) -> String {
    run(sconce().arg("tenant").args(arguments).arg("--config").arg(file))
}

#[test]
fn sighup_takes_the_file_up_and_drops_no_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sconce.toml");
    let acme = tenant(&file, &["add", "acme"]);
    let mut command = sconce();
    command.args(["serve", "null:5ms", "--port", "0", "--config"]).arg(&file);
    let server = Server::spawn(command);
    assert!(server.banner.contains("tenants   1 from"), "{}", server.banner);
    let open = |key: &str, max_tokens: u32| {
        let headers = format!("Authorization: Bearer {key}\r\n");
        let body = json!({ "prompt": "x", "max_tokens": max_tokens, "stream": true });
        let stream = server.try_open("POST", "/v1/completions", &headers, &body.to_string());
        BufReader::new(stream.expect("the server listens")).lines().map(|line| line.expect("UTF-8"))
    };
    let mut stream = open(&acme, 2_000);
    assert!(stream.any(|line| line.contains("\"text\"")), "it has begun");
    let beta = tenant(&file, &["add", "beta", "--weight", "3"]);
    let refused = open(&beta, 1).next().expect("a status");
    assert!(refused.contains("401"), "{refused}");
    server.signal("HUP");
    // The signal is taken up a moment later.
    while open(&beta, 1).next().is_none_or(|status| !status.contains("200")) {}
    // A new key for one whose stream runs; the old one opens nothing more.
    let newer = tenant(&file, &["rotate", "acme"]);
    server.signal("HUP");
    while open(&acme, 1).next().is_none_or(|status| !status.contains("401")) {}
    assert!(open(&newer, 1).next().expect("a status").contains("200"));
    // A file that is not valid changes nothing.
    std::fs::write(&file, "[tenants.acme]\nweight = -1\n").expect("it can be written");
    server.signal("HUP");
    assert!(open(&newer, 1).next().expect("a status").contains("200"));
    assert!(open(&beta, 1).next().expect("a status").contains("200"));
    let letters: usize = stream
        .filter_map(|line| line.strip_prefix("data: {").map(|rest| format!("{{{rest}")))
        .map(|chunk| serde_json::from_str::<Value>(&chunk).expect("a chunk is JSON"))
        .map(|chunk| chunk["choices"][0]["text"].as_str().expect("a text").len())
        .sum();
    assert!(letters > 1_900, "the stream went on to its end: {letters}");
}

#[test]
fn policies_are_compared_on_a_trace_before_they_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let (picture, reports) = (folder.path().join("a.svg"), folder.path().join("a.json"));
    let table = run(sconce()
        .args(["simulate", "poisson:rate=30,seconds=30,tenants=10,prompt=200,output=40,flood=30"])
        .args(["--policy", "fcfs,fair+admission", "--ttft-ms", "2000", "--plot"])
        .arg(&picture)
        .arg("--json")
        .arg(&reports));
    for word in ["goodput", "TTFT p50", "Jain", "fcfs", "fair+admission"] {
        assert!(table.contains(word), "no {word:?} in\n{table}");
    }
    assert!(std::fs::read_to_string(picture).expect("it is drawn").starts_with("<svg"));
    let reports = std::fs::read_to_string(reports).expect("it is written");
    let reports: Value = serde_json::from_str(&reports).expect("JSON");
    let goodput = |index: usize| reports[index][1]["goodput"]["requests"].as_f64();
    assert!(goodput(1) > goodput(0), "{table}");
    let output = sconce().args(["simulate", "poisson:rate=-1"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("rate"));
}
