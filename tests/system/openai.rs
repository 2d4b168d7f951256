//! The Python `openai` client drives the server.

use std::{path::Path, process::Command};

use crate::{embeddings, process::Server, python};

/// Each script in turn: they share the environment.
#[test]
fn the_openai_client_works() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().to_str().expect("UTF-8");
    let shared = ["--served-model-name", "served", "--api-key", "secret"];
    drive("test_embeddings.py", &embeddings::serve(&shared));
    // Fewer slots than the batch that is given up has requests.
    let own = ["--batch-dir", folder, "--max-num-seqs", "64"];
    drive("test_client.py", &Server::start(&[&shared[..], &own].concat()));
}

/// Runs a script of unittest against a server.
fn drive(script: &str, server: &Server) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai").join(script);
    let output = Command::new(python::with("openai/requirements.txt"))
        .arg(script)
        .env("SCONCE_BASE_URL", format!("http://{}", server.address))
        .env("SCONCE_MODEL", "served")
        .env("SCONCE_API_KEY", "secret")
        .output()
        .expect("Python runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("\nOK"), "unittest ran and said OK: {text}");
}
