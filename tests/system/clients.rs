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
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/test_clients.py");
    drive(&server(), Command::new(python).arg(script), "\nOK");
}

#[test]
fn langchains_standard_tests_pass() {
    let python = python::with("langchain/requirements.txt");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/langchain");
    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-rfE"]);
    drive(&server(), pytest.env("PYTHONDONTWRITEBYTECODE", "1").arg(folder), " passed");
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
