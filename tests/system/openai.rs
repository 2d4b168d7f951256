//! The Python `openai` client drives the server.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{embeddings, process::Server};

/// A virtual environment with the pinned client, made once for each version of
/// its requirements.
fn python() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai");
    let requirements =
        std::fs::read_to_string(source.join("requirements.txt")).expect("it is there");
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-venv");
    let python = venv.join("bin/python");
    let installed = venv.join("installed.txt");
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == requirements) {
        return python;
    }
    let run = |program: &Path, args: &[&str]| {
        let output = Command::new(program).args(args).output().expect("Python 3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    run(Path::new("python3"), &["-m", "venv", "--clear", &path(&venv)]);
    let list = path(&source.join("requirements.txt"));
    run(&python, &["-m", "pip", "install", "--quiet", "--no-deps", "-r", &list]);
    std::fs::write(&installed, requirements).expect("it is written");
    python
}

/// Each script in turn: they share the environment.
#[test]
fn the_openai_client_works() {
    let args = ["--served-model-name", "served", "--api-key", "secret"];
    drive("test_embeddings.py", &embeddings::serve(&args));
    drive("test_client.py", &Server::start(&args));
}

/// Runs a script of unittest against a server.
fn drive(script: &str, server: &Server) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai").join(script);
    let output = Command::new(python())
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
