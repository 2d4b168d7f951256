//! With the feature `cuda`: compiles the kernels into fatbins that the binary carries,
//! and makes what it links against.
//!
//! A binary with CUDA in it should start where there is no driver, and say so. So it
//! is not linked with NVIDIA's libraries but with small archives of the same names, in
//! which every function opens the real library when it is first called
//! (`stubs/trampolines.c`). Their functions' names are taken from cudarc's sources.

use std::{
    collections::BTreeSet,
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// cudarc's module of each library, the library, the names the real one may have, and
/// what a function returns where it is missing.
const LIBRARIES: &[(&str, &str, &[&str], u32)] = &[
    // CUDA_ERROR_STUB_LIBRARY
    ("driver", "cuda", &["libcuda.so.1"], 34),
    // *_STATUS_NOT_INITIALIZED
    ("cublas", "cublas", &["libcublas.so.13", "libcublas.so.12"], 1),
    ("cublaslt", "cublasLt", &["libcublasLt.so.13", "libcublasLt.so.12"], 1),
    // CURAND_STATUS_INITIALIZATION_FAILED
    ("curand", "curand", &["libcurand.so.10"], 203),
    // NVRTC_ERROR_INTERNAL_ERROR
    ("nvrtc", "nvrtc", &["libnvrtc.so.13", "libnvrtc.so.12"], 11),
];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-env-changed=SCONCE_CUDA_ARCHS");
    for input in ["cuda", "stubs"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fatbins(&here, &out)?;
    if env::var_os("CARGO_FEATURE_NVTX").is_some() {
        let include = toolkit(&here)?.join("include");
        cc::Build::new().file(here.join("stubs/nvtx.c")).include(include).compile("sconce_nvtx");
    }
    if env::var("CARGO_CFG_TARGET_OS")? == "linux" && env::var("CARGO_CFG_TARGET_ARCH")? == "x86_64"
    {
        stubs(&here, &out)?;
        println!("cargo::rustc-link-search=native={}", out.display());
    }
    Ok(())
}

/// Compiles every kernel, and lists the results in `fatbins.rs`.
fn fatbins(here: &Path, out: &Path) -> Result<()> {
    let folder = PathBuf::from(run(&mut Command::new(here.join("cuda/compile")))?);
    let mut paths: Vec<_> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    let mut list = String::from("[\n");
    for path in paths {
        let stem = path.file_stem().ok_or("a fatbin has a name")?.display();
        writeln!(list, "    (\"{stem}\", include_bytes!({path:?})),")?;
    }
    list.push_str("]\n");
    fs::write(out.join("fatbins.rs"), list)?;
    Ok(())
}

/// Makes the archives that stand in for NVIDIA's libraries.
fn stubs(here: &Path, out: &Path) -> Result<()> {
    let cudarc = cudarc_sources()?;
    for (module, library, names, missing) in LIBRARIES {
        let source = fs::read_to_string(cudarc.join(module).join("sys/mod.rs"))?;
        let mut list = String::new();
        for (index, symbol) in functions(&source).iter().enumerate() {
            writeln!(list, "SYMBOL({index}, {symbol})")?;
        }
        if list.is_empty() {
            return Err(format!("cudarc names no function of {library}").into());
        }
        let symbols = out.join(format!("{library}.inc"));
        fs::write(&symbols, list)?;
        let names: String = names.iter().map(|name| format!("\"{name}\",")).collect();
        cc::Build::new()
            .file(here.join("stubs/trampolines.c"))
            .define("LIBRARY", *library)
            .define("NAMES", &*names)
            .define("MISSING", &*missing.to_string())
            .define("SYMBOLS", &*format!("{:?}", symbols.display().to_string()))
            .cargo_metadata(false)
            .compile(library);
    }
    // candle links the runtime by its shared name; what is linked is its static form.
    let home = toolkit(here)?;
    let folders = ["lib", "lib64", "targets/x86_64-linux/lib"];
    let archives = folders.map(|folder| home.join(folder).join("libcudart_static.a"));
    let archive = archives.iter().find(|path| path.is_file());
    let archive = archive.ok_or_else(|| format!("no libcudart_static.a in {}", home.display()))?;
    fs::copy(archive, out.join("libcudart.a"))?;
    Ok(())
}

fn toolkit(here: &Path) -> Result<PathBuf> {
    Ok(PathBuf::from(run(&mut Command::new(here.join("cuda/toolkit")))?))
}

/// The functions that bindings declare.
fn functions(source: &str) -> BTreeSet<&str> {
    source
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("pub unsafe fn "))
        .filter_map(|line| line.split_once('(').map(|(name, _)| name))
        // cudarc's own functions have other names.
        .filter(|name| {
            let of_driver = |rest: &str| rest.starts_with(|first: char| first.is_ascii_uppercase());
            ["cublas", "curand", "nvrtc"].iter().any(|prefix| name.starts_with(prefix))
                || name.strip_prefix("cu").is_some_and(of_driver)
        })
        .collect()
}

/// Where the cudarc that is locked lies: in cargo's registry, or wherever cargo says.
fn cudarc_sources() -> Result<PathBuf> {
    let lock =
        fs::read_to_string(Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../Cargo.lock"))?;
    let version = lock
        .split_once("name = \"cudarc\"\nversion = \"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .ok_or("Cargo.lock names no cudarc")?
        .0;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let registries = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    let found = registries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join(format!("cudarc-{version}/src"))))
        .find(|path| path.is_dir());
    match found {
        Some(path) => Ok(path),
        None => ask_cargo(version),
    }
}

/// The same, for vendored sources and the like.
fn ask_cargo(version: &str) -> Result<PathBuf> {
    let metadata = run(Command::new(env::var("CARGO")?)
        .args(["metadata", "--format-version", "1", "--locked", "--features", "cuda"])
        .args(["--filter-platform", &env::var("TARGET")?]))?;
    // A path's end in JSON; no path of a registry has a quote in it.
    let folders = [format!("/cudarc-{version}/Cargo.toml\""), "/cudarc/Cargo.toml\"".to_owned()];
    let found = folders.iter().find_map(|folder| {
        let end = metadata.find(folder.as_str())? + folder.len() - "/Cargo.toml\"".len();
        let start = metadata[..end].rfind('"')? + 1;
        Some(PathBuf::from(&metadata[start..end]).join("src"))
    });
    Ok(found.ok_or("cargo metadata knows no cudarc")?)
}

/// Runs a command and gives what it printed.
fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout)?.trim_end().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}\n{said}", output.status).into())
}
