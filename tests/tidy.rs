//! The shape of the house: which crate may depend on which, how long a file may
//! be, where `unsafe` may stand, and what may not be left in the source.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Who may depend on whom, as ARCHITECTURE.md draws it; the root package holds
/// the facade (crates/sconce) and the binary (crates/cli).
const ARROWS: &[(&str, &[&str])] = &[
    (
        "sconce",
        &[
            "sconce-server",
            "sconce-engine",
            "sconce-text",
            "sconce-runner",
            "sconce-tenants",
            "sconce-batches",
            "sconce-ledger",
            "sconce-simulator",
            "sconce-types",
            "sconce-bench",
        ],
    ),
    (
        "sconce-server",
        &[
            "sconce-batches",
            "sconce-engine",
            "sconce-grammar",
            "sconce-tenants",
            "sconce-text",
            "sconce-types",
        ],
    ),
    ("sconce-grammar", &["sconce-text", "sconce-types"]),
    ("sconce-engine", &["sconce-scheduler", "sconce-types"]),
    ("sconce-scheduler", &["sconce-types"]),
    ("sconce-text", &["sconce-types"]),
    ("sconce-tenants", &["sconce-types"]),
    ("sconce-ledger", &["sconce-types"]),
    ("sconce-batches", &[]),
    ("sconce-simulator", &["sconce-scheduler", "sconce-types"]),
    ("sconce-runner", &["sconce-models", "sconce-kernels", "sconce-types"]),
    ("sconce-models", &["sconce-kernels"]),
    ("sconce-kernels", &[]),
    ("sconce-cuda-shim", &["sconce-kernels"]),
    (
        "sconce-gpu",
        &[
            "sconce-cuda-shim",
            "sconce-runner",
            "sconce-kernels",
            "sconce-scheduler",
            "sconce-types",
        ],
    ),
    ("sconce-types", &[]),
    ("sconce-bench", &[]),
    (
        "sconce-instructions",
        &[
            "sconce-scheduler",
            "sconce-engine",
            "sconce-text",
            "sconce-server",
            "sconce-kernels",
            "sconce-types",
        ],
    ),
];

/// The serving half builds without a tensor library or a device.
const SERVING_HALF: &[&str] = &[
    "sconce-types",
    "sconce-scheduler",
    "sconce-engine",
    "sconce-text",
    "sconce-grammar",
    "sconce-server",
];
const COMPUTING_ONLY: &[&str] = &["candle-core", "candle-nn", "cudarc"];
/// The computing half knows neither HTTP nor text (candle-core itself brings tokenizers).
const COMPUTING_HALF: &[&str] = &["sconce-runner", "sconce-models", "sconce-kernels"];
const SERVING_ONLY: &[&str] = &["axum", "tokio", "hyper", "minijinja"];
/// Spans are the server's affair: what it depends on tells times, and knows no traces.
const UNTRACED: &[&str] = &["sconce-types", "sconce-scheduler", "sconce-engine", "sconce-text"];
/// What OpenTelemetry is not to bring: another HTTP stack, another TLS.
const NOT_FOR_TRACES: &[&str] = &["tonic", "reqwest", "openssl-sys", "native-tls"];

const MAX_LINES: usize = 600;
const BANNED_STEMS: &[&str] = &["utils", "util", "common", "helpers", "misc", "manager"];

fn metadata() -> Metadata {
    // Packages for other platforms were never fetched, and need not be.
    let options = ["--locked", "--filter-platform", &host()].map(ToOwned::to_owned);
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .other_options(options.to_vec())
        .exec()
        .expect("cargo metadata reads this workspace")
}

/// The platform that this compiler builds for.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().expect("rustc tells its version");
    let text = String::from_utf8(output.stdout).expect("rustc writes UTF-8");
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.expect("rustc -vV names its host").to_owned()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file that git would commit.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(output.status.success(), "git ls-files failed");
    let listing = String::from_utf8(output.stdout).expect("file names are UTF-8");
    listing.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect()
}

fn sources(extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let sources: Vec<_> = files()
        .into_iter()
        .filter(|path| {
            path.extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x)))
        })
        .map(|path| {
            let text = std::fs::read_to_string(&path).expect("a source file is UTF-8");
            (path, text)
        })
        .collect();
    assert!(sources.len() > 5, "only {} source files found: is this the root?", sources.len());
    sources
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let metadata = metadata();
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ARROWS.iter().map(|&(from, to)| (from, to.iter().copied().collect())).collect();
    let members = metadata.workspace_packages();
    let names: BTreeSet<_> = members.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(names, allowed.keys().copied().collect(), "a crate without a place in the house");
    for package in members {
        for dependency in &package.dependencies {
            if names.contains(dependency.name.as_str())
                && dependency.kind != DependencyKind::Development
            {
                assert!(
                    allowed[package.name.as_str()].contains(dependency.name.as_str()),
                    "{} -> {} is not an arrow of ARCHITECTURE.md",
                    package.name,
                    dependency.name
                );
            }
        }
    }
}

/// The names of everything a package needs to build, itself excluded.
fn closure(metadata: &Metadata, package: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves the graph");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let start = metadata
        .packages
        .iter()
        .find(|p| p.name.as_str() == package)
        .unwrap_or_else(|| panic!("{package} is a workspace member"));
    let mut seen = BTreeSet::new();
    let mut stack = vec![&start.id];
    while let Some(id) = stack.pop() {
        for dependency in &nodes[id].deps {
            let builds = dependency.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal);
            if builds && seen.insert(&dependency.pkg) {
                stack.push(&dependency.pkg);
            }
        }
    }
    seen.into_iter().map(|id| names[id].to_owned()).collect()
}

#[test]
fn the_two_halves_do_not_know_each_other() {
    let metadata = metadata();
    for (half, strangers) in [(SERVING_HALF, COMPUTING_ONLY), (COMPUTING_HALF, SERVING_ONLY)] {
        for package in half {
            let closure = closure(&metadata, package);
            for stranger in strangers {
                assert!(!closure.contains(*stranger), "{package} must build without {stranger}");
            }
        }
    }
    // The check can see what it looks for.
    assert!(closure(&metadata, "sconce-kernels").contains("candle-core"));
    let server = closure(&metadata, "sconce-server");
    assert!(server.contains("axum") && server.contains("opentelemetry"));
    for package in UNTRACED {
        let closure = closure(&metadata, package);
        assert!(!closure.contains("opentelemetry"), "{package} must build without opentelemetry");
    }
    for stranger in NOT_FOR_TRACES {
        assert!(!server.contains(*stranger), "sconce-server must build without {stranger}");
    }
}

#[test]
fn without_the_feature_nothing_of_cuda_is_built() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none"])
        .current_dir(root())
        .output()
        .expect("cargo tree runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("crate names are UTF-8");
    assert!(tree.contains("candle-core"), "cargo tree shows the computing half");
    for package in ["cudarc", "candle-kernels", "cudaforge"] {
        assert!(!tree.contains(package), "{package} is built without the feature `cuda`");
    }
}

#[test]
fn files_are_one_room_each() {
    for (path, text) in sources(&["rs", "cu", "cuh", "cpp", "hpp", "py", "sh"]) {
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines, over {MAX_LINES}", path.display());
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        assert!(!BANNED_STEMS.contains(&stem), "{} names no room", path.display());
    }
}

#[test]
fn unsafe_code_lives_in_kernels() {
    let word = concat!("uns", "afe");
    for (path, text) in sources(&["rs"]) {
        if path.starts_with(root().join("kernels")) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let is_block = [" {", " fn", " impl", " extern"]
                .iter()
                .any(|after| code.contains(&format!("{word}{after}")));
            assert!(!is_block, "{}:{} has {word} code", path.display(), number + 1);
        }
    }
}

/// A family is a config.json's fields, weights and a forward pass: what its layers run on,
/// and what a step holds, are other rooms' business.
#[test]
fn model_families_know_neither_devices_nor_batches() {
    const MAX_FAMILY_LINES: usize = 200;
    let rooms = ["config", "families", "layers", "registry", "source"];
    let at_the_root =
        ["Buf", "Encoder", "EncoderBackend", "Model", "ModelError", "Pass", "RopeParams"];
    let families = root().join("models/src/families");
    let mut found = 0;
    for (path, text) in sources(&["rs"]).iter().filter(|(path, _)| path.starts_with(&families)) {
        found += 1;
        let shown = path.display();
        let lines = text.lines().count();
        assert!(lines <= MAX_FAMILY_LINES, "{shown} has {lines} lines, over {MAX_FAMILY_LINES}");
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let code: String = code.flat_map(|line| [line, "\n"]).collect();
        for crate_name in ["candle", "serde", "std::", "half::"] {
            assert!(!code.contains(crate_name), "{shown} names {crate_name}");
        }
        for kernels in code.split("sconce_kernels").skip(1) {
            let allowed = ["::{Backend, KernelError};", "::KernelError;"];
            let is_allowed = allowed.iter().any(|allowed| kernels.starts_with(allowed));
            assert!(is_allowed, "{shown} takes more of sconce_kernels than Backend and its error");
        }
        for word in ["p.ops", "p.step", "p.cache", "p.rows"] {
            assert!(!code.contains(word), "{shown} reaches into a pass: {word}");
        }
        for tail in code.split("crate::").skip(1) {
            let tail: String =
                tail.split(';').next().unwrap_or_default().split_whitespace().collect();
            for name in first_names(&tail) {
                let is_known = rooms.contains(&name) || at_the_root.contains(&name);
                assert!(is_known, "{shown} names crate::{name}");
            }
        }
    }
    assert!(found >= 2, "only {found} families found");
    assert_eq!(first_names("{Buf,layers::{Linear,mlp::X},Pass}"), ["Buf", "layers", "Pass"]);
}

/// The first names of a path, or of all paths in braces.
fn first_names(path: &str) -> Vec<&str> {
    let Some(list) = path.strip_prefix('{') else {
        return path.split(|c: char| !c.is_alphanumeric() && c != '_').take(1).collect();
    };
    let mut depth = 0;
    let at_top = |c: char| {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        depth == 0 && c == ','
    };
    let paths = list.split(at_top).filter(|path| !path.is_empty());
    paths.filter_map(|path| path.split([':', '}']).next()).filter(|name| !name.is_empty()).collect()
}

#[test]
fn nothing_is_left_open_or_left_out() {
    let markers =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("#[igno", "re")];
    for (path, text) in sources(&["rs", "cu", "cuh", "cpp", "hpp", "py", "sh", "toml"]) {
        for marker in markers {
            assert!(!text.contains(marker), "{} holds {marker}", path.display());
        }
    }
}

#[test]
fn every_version_is_the_workspaces() {
    for (path, text) in sources(&["toml"]) {
        if path.file_name().is_none_or(|name| name != "Cargo.toml")
            || path == root().join("Cargo.toml")
        {
            continue;
        }
        let mut in_dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies && line.contains('=') {
                assert!(line.contains("workspace = true"), "{}: {line}", path.display());
            }
        }
    }
}

#[test]
fn documents_a_reader_expects_are_there() {
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"] {
        assert!(Path::new(&root()).join(name).is_file(), "{name} is missing");
    }
}

/// Links between documents, and to what is in the repository, lead somewhere.
#[test]
fn links_in_documents_lead_somewhere() {
    let mut documents: Vec<_> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root().join(name)).into();
    let docs = std::fs::read_dir(root().join("docs")).expect("there are documents");
    let docs = docs.map(|entry| entry.expect("it can be listed").path());
    documents.extend(docs.filter(|path| path.extension().is_some_and(|ext| ext == "md")));
    let anchor = |line: &str| {
        let title = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase();
        let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        Some(title.chars().filter(is_kept).collect::<String>().replace(' ', "-"))
    };
    for path in &documents {
        let text = std::fs::read_to_string(path).expect("it can be read");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            let folder = path.parent().expect("it is in a folder");
            let target = if file.is_empty() { path.clone() } else { folder.join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if !place.is_empty() {
                let text = std::fs::read_to_string(&target).expect("a document");
                let is_there = text.lines().filter_map(anchor).any(|title| title == place);
                assert!(is_there, "{}: there is no {link}", path.display());
            }
        }
    }
}

/// Every metric is on its page, and the page names no other.
#[test]
fn the_page_of_metrics_names_all_of_them() {
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).expect("it can be read");
    let is_name = |word: &&str| {
        let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
        let bare = word.strip_prefix("vllm:").or_else(|| word.strip_prefix("sconce:"));
        bare.map_or(word.starts_with("http_request"), |bare| bare.contains('_'))
            && word.trim_start_matches("vllm:").trim_start_matches("sconce:").chars().all(is_part)
    };
    let named = |text: &str, quote: char| -> BTreeSet<String> {
        text.split(quote).filter(is_name).map(str::to_owned).collect()
    };
    let mut defined = BTreeSet::new();
    for file in ["metrics.rs", "tenant_metrics.rs"] {
        let path = root().join("crates/engine/src").join(file);
        defined.extend(named(&std::fs::read_to_string(path).expect("it can be read"), '"'));
    }
    assert!(defined.len() > 40, "{defined:?}");
    assert_eq!(named(&page, '`'), defined);
}
