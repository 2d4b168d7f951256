//! Python packages, pinned, in virtual environments of their own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The Python of an environment with what a file of `tests` names, made once for each version
/// of that file.
pub(crate) fn with(requirements: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(requirements);
    let text = std::fs::read_to_string(&source).expect("it is there");
    let name = format!("{}-venv", requirements.split('/').next().expect("a folder"));
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let python = venv.join("bin/python");
    let installed = venv.join("installed.txt");
    if std::fs::read_to_string(&installed).is_ok_and(|known| known == text) {
        return python;
    }
    let run = |program: &Path, args: &[&str]| {
        let output = Command::new(program).args(args).output().expect("Python 3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    run(Path::new("python3"), &["-m", "venv", "--clear", &path(&venv)]);
    // Most modules of a large package are never imported.
    let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "-r"];
    run(&python, &[&pip[..], &[&path(&source)]].concat());
    std::fs::write(&installed, text).expect("it is written");
    python
}
