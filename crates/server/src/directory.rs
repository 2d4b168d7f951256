//! Who the tenants are now.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use sconce_engine::{EngineHandle, SubmitError};
use sconce_tenants::{Tenants, TenantsError, TenantsFile};
use sconce_types::Tenant;

/// The table of tenants that requests are looked up in, and the file it comes from.
#[derive(Debug)]
pub struct TenantDirectory {
    path: Option<PathBuf>,
    current: RwLock<Arc<Tenants>>,
    /// One reload at a time: ids follow from the table before.
    reloading: Mutex<()>,
}

/// Why the tenants stay as they were.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is no file to read again.
    #[error("the server was started without --config: there is no file to read again")]
    NoFile,
    /// The file is not valid.
    #[error(transparent)]
    File(#[from] TenantsError),
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
    /// The file cannot be read, or is not valid.
    pub fn open(path: &Path) -> Result<Self, TenantsError> {
        let tenants = Tenants::resolve(&TenantsFile::read(path)?, None);
        Ok(Self::new(Some(path.to_owned()), tenants))
    }

    fn new(path: Option<PathBuf>, tenants: Tenants) -> Self {
        let current = RwLock::new(Arc::new(tenants));
        Self { path, current, reloading: Mutex::new(()) }
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

    /// Reads the file again; says how many tenants there are. Requests that run are not
    /// touched. If anything is wrong, everything stays as it was.
    ///
    /// # Errors
    /// There is no file, it is not valid, or the engine is too busy to listen.
    pub fn reload(&self, engine: &EngineHandle) -> Result<usize, ReloadError> {
        let path = self.path.as_ref().ok_or(ReloadError::NoFile)?;
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let tenants = Tenants::resolve(&TenantsFile::read(path)?, Some(&self.current()));
        let named: Vec<_> = tenants.iter().map(|entry| entry.tenant.clone()).collect();
        engine.set_tenants(&named)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tenants);
        Ok(named.len())
    }
}
