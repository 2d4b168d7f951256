//! `sconce.toml`: who the tenants of a server are.
//!
//! [`TenantsFile`] is the file, valid whole or refused whole. [`Tenants`] is what the
//! server looks callers up in: built from a file and from the table before it, so that a
//! tenant keeps its id over reloads. [`add`], [`rotate`] and [`add_admin_key`] edit the
//! file and keep its comments. The file holds digests of keys, never a key.

mod edit;
mod error;
mod fields;
mod file;
mod key;
mod replace;
mod table;

pub use edit::{NewTenant, add, add_admin_key, rotate};
pub use error::{InvalidTenants, TenantsError};
pub use file::{Limits, MAX_FILE_BYTES, MAX_KEYS, MAX_TENANTS, TenantsFile};
pub use key::{ApiKey, ApiKeys, InvalidApiKey, key_digest};
pub use table::{Principal, TenantEntry, Tenants};
