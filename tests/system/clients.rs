//! Clients and frameworks that people use drive the server: Anthropic's and OpenAI's for Python
//! and TypeScript, litellm, LangChain with its standard tests, instructor, pydantic-ai,
//! openai-agents.

use std::{path::Path, process::Command};

use crate::{process::Server, python};

fn server() -> Server {
    Server::start(&["--served-model-name", "smollm2", "--max-model-len", "2048"])
}

/// Runs a command that drives the server; it prints `says` at its end.
#[track_caller]
fn drive(server: &Server, command: &mut Command, says: &str) {
    let output = command
        .env("SCONCE_BASE_URL", format!("http://{}", server.address))
        .env("SCONCE_MODEL", "smollm2")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains(says), "{text}");
}

#[test]
fn pythons_clients_work() {
    let python = python::with("clients/requirements.txt");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let server = server();
    drive(&server, Command::new(&python).arg(tests.join("clients/test_clients.py")), "\nOK");
    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rfE"]);
    pytest.env("PYTHONDONTWRITEBYTECODE", "1").arg(tests.join("langchain"));
    drive(&server, &mut pytest, " passed");
}

#[test]
fn typescripts_clients_work() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients-node");
    std::fs::create_dir_all(&folder).expect("it can be made");
    for name in ["package.json", "package-lock.json", "clients.test.mjs"] {
        std::fs::copy(source.join(name), folder.join(name)).expect("it can be copied");
    }
    let npm = Command::new("npm")
        .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(&folder)
        .output()
        .expect("npm runs");
    assert!(npm.status.success(), "{}", String::from_utf8_lossy(&npm.stderr));
    let mut node = Command::new("node");
    node.arg("--test").arg("clients.test.mjs").current_dir(&folder);
    drive(&server(), &mut node, "# fail 0");
}
