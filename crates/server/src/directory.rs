//! Who the tenants are now.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::sync_channel,
    },
    thread,
    time::Duration,
};

use sconce_engine::{EngineHandle, SubmitError};
use sconce_tenants::{Tenants, TenantsError, TenantsFile};
use sconce_types::Tenant;
use tokio::{
    sync::{Mutex, oneshot},
    time::timeout,
};

/// How long the file may take to be read: a pipe or a network mount may block for ever.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads that have blocked and still do, at most: each has a thread.
const MAX_BLOCKED: usize = 4;

/// The table of tenants that requests are looked up in, and the file it comes from.
#[derive(Debug)]
pub struct TenantDirectory {
    file: Option<Source>,
    current: RwLock<Arc<Tenants>>,
    /// One reload at a time: ids follow from the table before.
    reloading: Mutex<()>,
}

/// Why the tenants could not be read, or stay as they were.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is no file to read again.
    #[error("the server was started without --config: there is no file to read again")]
    NoFile,
    /// The file is not valid.
    #[error(transparent)]
    File(#[from] TenantsError),
    /// Reading blocks, as a pipe without a writer or a lost network mount does.
    #[error(
        "{}: not read within {} seconds; it should be a file on a disk that answers",
        path.display(),
        READ_TIMEOUT.as_secs()
    )]
    Blocked {
        /// The file.
        path: PathBuf,
    },
    /// Another reload has not ended.
    #[error("the file is being read already; try again in a few seconds")]
    Busy,
    /// The engine did not take them.
    #[error(transparent)]
    Engine(#[from] SubmitError),
}

impl TenantDirectory {
    /// One tenant, who everybody is.
    #[must_use]
    pub fn sole() -> Self {
        Self::new(None, Tenants::sole())
    }

    /// The tenants of a file.
    ///
    /// # Errors
    /// The file cannot be read in time, is not valid, or would lock everybody out.
    pub fn open(path: &Path) -> Result<Self, ReloadError> {
        let file = Source { path: path.to_owned(), blocked: Arc::default() };
        let (done, read) = sync_channel(1);
        file.read(move |result| drop(done.send(result)))?;
        let read = read.recv_timeout(READ_TIMEOUT).map_err(|_| file.is_blocked())?;
        let tenants = Tenants::resolve(&read?, None);
        Ok(Self::new(Some(file), tenants))
    }

    fn new(file: Option<Source>, tenants: Tenants) -> Self {
        let current = RwLock::new(Arc::new(tenants));
        Self { file, current, reloading: Mutex::new(()) }
    }

    /// The table as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<Tenants> {
        // It is only ever replaced whole, so a panic elsewhere leaves nothing half done.
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tenants as the engine takes them.
    #[must_use]
    pub fn tenants(&self) -> Vec<Tenant> {
        self.current().iter().map(|entry| entry.tenant.clone()).collect()
    }

    /// Reads the file again, on a thread of its own; says how many tenants there are.
    /// Requests that run are not touched. If anything is wrong, everything stays as it was.
    ///
    /// # Errors
    /// There is no file, it cannot be read in time, it is not valid, it would lock
    /// everybody out, or the engine is too busy to listen.
    pub async fn reload(&self, engine: &EngineHandle) -> Result<usize, ReloadError> {
        let file = self.file.as_ref().ok_or(ReloadError::NoFile)?;
        let one_at_a_time = timeout(READ_TIMEOUT, self.reloading.lock()).await;
        let _one_at_a_time = one_at_a_time.map_err(|_| ReloadError::Busy)?;
        let (done, read) = oneshot::channel();
        file.read(move |result| drop(done.send(result)))?;
        let read = timeout(READ_TIMEOUT, read).await.ok().and_then(Result::ok);
        let read = read.ok_or_else(|| file.is_blocked())?;
        let tenants = Tenants::resolve(&read?, Some(&self.current()));
        let named: Vec<_> = tenants.iter().map(|entry| entry.tenant.clone()).collect();
        engine.set_tenants(&named)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tenants);
        Ok(named.len())
    }
}

/// The tenants' file.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// Reads that have not ended.
    blocked: Arc<AtomicUsize>,
}

impl Source {
    /// Reads the file on a thread that nothing waits for: one of the runtime's would hold
    /// up the end of the process for as long as it blocks.
    fn read(
        &self,
        done: impl FnOnce(Result<TenantsFile, TenantsError>) + Send + 'static,
    ) -> Result<(), ReloadError> {
        if self.blocked.load(Ordering::Relaxed) >= MAX_BLOCKED {
            return Err(self.is_blocked());
        }
        self.blocked.fetch_add(1, Ordering::Relaxed);
        let (path, blocked) = (self.path.clone(), Arc::clone(&self.blocked));
        let thread = thread::Builder::new().name("sconce-config".to_owned()).spawn(move || {
            let file = TenantsFile::read(&path);
            blocked.fetch_sub(1, Ordering::Relaxed);
            done(file.and_then(|file| match file.check_usable() {
                Ok(()) => Ok(file),
                Err(reason) => Err(TenantsError::Invalid { path, reason }),
            }));
        });
        if let Err(source) = thread {
            self.blocked.fetch_sub(1, Ordering::Relaxed);
            return Err(TenantsError::Io { path: self.path.clone(), source }.into());
        }
        Ok(())
    }

    fn is_blocked(&self) -> ReloadError {
        ReloadError::Blocked { path: self.path.clone() }
    }
}
