//! The server beside descriptions of its API: its own, which schemathesis makes thousands of
//! requests from, and OpenAI's and Anthropic's of theirs.

use std::{path::Path, process::Command};

use crate::{
    embeddings,
    process::{Server, sconce},
    python,
};

/// Runs a script of `tests/openapi`, which says at its end that all is well.
#[track_caller]
fn run(script: &str, variables: &[(&str, &str)], says: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi").join(script);
    let output = Command::new(python::with("openapi/requirements.txt"))
        .arg(script)
        .envs(variables.iter().copied())
        .output()
        .expect("Python runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains(says), "{text}");
}

/// A server of the null model, which writes at once what a grammar asks for.
fn null(args: &[&str]) -> Server {
    let mut command = sconce();
    command.args(["serve", "null", "--port", "0", "--tool-call-parser", "hermes"]);
    command.arg("--disable-access-log").args(args);
    Server::spawn(command)
}

/// Both in turn: they share the environment.
#[test]
fn answers_are_as_the_server_and_the_makers_of_the_apis_describe_them() {
    const THINKS: [&str; 2] = ["--reasoning-parser", "qwen3"];
    let server = null(&[&THINKS[..], &["--api-key", "secret", "--max-model-len", "512"]].concat());
    let base = format!("http://{}", server.address);
    let variables = [("SCONCE_BASE_URL", &*base), ("SCONCE_API_KEY", "secret")];
    run("fuzz.py", &variables, "every answer is as the document says");
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let servers = [null(&["--batch-dir", folder]), null(&THINKS), embeddings::serve(&[])];
    let [base, thinking, embedding] =
        servers.each_ref().map(|server| format!("http://{}", server.address));
    let variables = [
        ("SCONCE_BASE_URL", &*base),
        ("SCONCE_THINKING_URL", &*thinking),
        ("SCONCE_EMBEDDING_URL", &*embedding),
    ];
    run("descriptions.py", &variables, "every answer is as described");
}
