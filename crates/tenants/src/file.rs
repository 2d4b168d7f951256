//! The file `sconce.toml`.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read as _},
    ops::Range,
    path::Path,
    time::Duration,
};

use serde::Deserialize;

use crate::{
    error::{InvalidTenants, TenantsError},
    fields::{self, TenantName},
    key::KeyDigest,
};

/// The largest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 16 << 20;
/// The most tenants that a file may name.
pub const MAX_TENANTS: usize = 100_000;
/// The most keys that one tenant, or those who run the server, may have.
pub const MAX_KEYS: usize = 1_000;

/// What shares may add up to beyond 1, because decimal fractions are not exact.
const SHARE_TOLERANCE: f64 = 1e-9;

/// A file that says who the tenants are, checked: everything in it can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantsFile {
    pub(crate) fields: FileFields,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileFields {
    #[serde(default, deserialize_with = "fields::keys")]
    pub(crate) admin_keys: Vec<KeyDigest>,
    #[serde(default, deserialize_with = "fields::tenants")]
    pub(crate) tenants: BTreeMap<TenantName, TenantFields>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantFields {
    #[serde(default = "default_weight", deserialize_with = "fields::weight")]
    pub(crate) weight: u32,
    #[serde(default, deserialize_with = "fields::share")]
    pub(crate) min_share: f64,
    #[serde(default, deserialize_with = "fields::keys")]
    pub(crate) keys: Vec<KeyDigest>,
    pub(crate) models: Option<Vec<String>>,
    #[serde(default, deserialize_with = "fields::table")]
    pub(crate) limits: Limits,
    #[serde(default, deserialize_with = "fields::table")]
    pub(crate) priorities: BTreeMap<String, i32>,
    #[serde(default, deserialize_with = "fields::table")]
    pub(crate) slo: SloFields,
    #[serde(default, deserialize_with = "fields::optional_table")]
    pub(crate) prices: Option<PriceFields>,
}

fn default_weight() -> u32 {
    1
}

/// What a tenant may use at once and over time; `None` is no limit, the least limit is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Sequences that run at once.
    #[serde(default, deserialize_with = "fields::limit")]
    pub max_running: Option<usize>,
    /// Requests that wait.
    #[serde(default, deserialize_with = "fields::limit")]
    pub max_queued: Option<usize>,
    /// KV-cache blocks held.
    #[serde(default, deserialize_with = "fields::limit")]
    pub max_kv_blocks: Option<usize>,
    /// Tokens a minute, prompt and `max_tokens`; unused ones are given back.
    #[serde(default, deserialize_with = "fields::limit")]
    pub tokens_per_minute: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SloFields {
    #[serde(default, rename = "ttft_ms", deserialize_with = "fields::target")]
    pub(crate) ttft: Option<Duration>,
    #[serde(default, rename = "tpot_ms", deserialize_with = "fields::target")]
    pub(crate) tpot: Option<Duration>,
}

/// Prices as [`sconce_types::Prices`] has them; what is left out costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PriceFields {
    #[serde(default, deserialize_with = "fields::price")]
    pub(crate) prompt: u64,
    #[serde(default, deserialize_with = "fields::price")]
    pub(crate) cached: u64,
    #[serde(default, deserialize_with = "fields::price")]
    pub(crate) generated: u64,
    #[serde(default, deserialize_with = "fields::device_price")]
    pub(crate) device_seconds: u64,
}

impl TenantsFile {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The first thing that is not accepted.
    pub fn parse(text: &str) -> Result<Self, InvalidTenants> {
        if text.len() > MAX_FILE_BYTES {
            return Err(InvalidTenants::TooLarge);
        }
        let deserializer = toml::Deserializer::parse(text).map_err(|error| {
            let (line, column) = position(text, error.span());
            InvalidTenants::Syntax { line, column, reason: error.message().to_owned() }
        })?;
        let fields: FileFields =
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                let (line, column) = position(text, error.inner().span());
                let (field, reason) = (error.path().to_string(), error.inner().message());
                InvalidTenants::Field { line, column, field, reason: reason.to_owned() }
            })?;
        fields.check_keys()?;
        fields.check_shares()?;
        Ok(Self { fields })
    }

    /// Checks that a server of this file could serve a request: an empty file is a valid
    /// one to add tenants to, but a server that takes it up locks everybody out.
    ///
    /// # Errors
    /// If no tenant has a key, or none of those with one may use a model.
    pub fn check_usable(&self) -> Result<(), InvalidTenants> {
        let is_usable = |tenant: &TenantFields| {
            !tenant.keys.is_empty() && tenant.models.as_ref().is_none_or(|names| !names.is_empty())
        };
        let mut tenants = self.fields.tenants.values();
        if tenants.any(is_usable) { Ok(()) } else { Err(InvalidTenants::NoUsableTenant) }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or is not accepted; the error names it.
    pub fn read(path: &Path) -> Result<Self, TenantsError> {
        let text = read_text(path).map_err(|source| TenantsError::Io { path: path.into(), source });
        Self::parse(&text?).map_err(|reason| TenantsError::Invalid { path: path.into(), reason })
    }
}

/// A file's text; of one that is too large, enough to be refused for that.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl FileFields {
    /// A key speaks for one tenant, or for those who run the server.
    fn check_keys(&self) -> Result<(), InvalidTenants> {
        let path = |tenant: Option<&TenantName>| match tenant {
            None => "admin_keys".to_owned(),
            Some(name) => format!("tenants.{}.keys", name.0),
        };
        let mut holders = HashMap::new();
        let admin = self.admin_keys.iter().map(|digest| (None, digest));
        let tenants = self.tenants.iter();
        let tenants =
            tenants.flat_map(|(name, fields)| fields.keys.iter().map(move |d| (Some(name), d)));
        for (holder, digest) in admin.chain(tenants) {
            if let Some(first) = holders.insert(digest, holder) {
                let (digest, first) = (digest.to_string(), path(first));
                return Err(InvalidTenants::SharedKey { digest, first, second: path(holder) });
            }
        }
        Ok(())
    }

    fn check_shares(&self) -> Result<(), InvalidTenants> {
        let sum: f64 = self.tenants.values().map(|tenant| tenant.min_share).sum();
        if sum > 1.0 + SHARE_TOLERANCE {
            return Err(InvalidTenants::MinShares { sum });
        }
        Ok(())
    }
}

/// The line and column, from 1, that an error points at.
pub(crate) fn position(text: &str, span: Option<Range<usize>>) -> (usize, usize) {
    let start = span.map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..start];
    let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    (line, 1 + String::from_utf8_lossy(&before[line_start..]).chars().count())
}
