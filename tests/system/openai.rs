//! The Python `openai` client drives the server.

use std::{path::Path, process::Command};

use crate::{process::Server, python};

#[test]
fn the_openai_client_works() {
    let server = Server::start(&["--served-model-name", "smollm2", "--api-key", "secret"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai/test_client.py");
    let output = Command::new(python::with("openai/requirements.txt"))
        .arg(script)
        .env("SCONCE_BASE_URL", format!("http://{}", server.address))
        .env("SCONCE_MODEL", "smollm2")
        .env("SCONCE_API_KEY", "secret")
        .output()
        .expect("Python runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("\nOK"), "unittest ran and said OK: {text}");
}
