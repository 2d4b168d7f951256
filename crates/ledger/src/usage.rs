//! What was used: sums over requests, by tenant, model, day or request.

use std::{
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, Row, params};
use thiserror::Error;

use crate::{
    LedgerError,
    error::{io_at, sqlite_at},
    ledger::{BUSY_TIMEOUT, Contents, check, check_is_file},
};

/// What usage is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// The tenant's name.
    Tenant,
    /// The model that the server served.
    Model,
    /// The day of arrival, in UTC.
    Day,
    /// Each request by itself, in the order of their arrival; named by the id that its
    /// client knows, which two may share.
    Request,
}

/// A text that names nothing to sum by.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("usage is not summed by {0:?}, but by tenant, model, day or request")]
pub struct InvalidBy(String);

impl By {
    /// Its name: `tenant`, `model`, `day` or `request`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Model => "model",
            Self::Day => "day",
            Self::Request => "request",
        }
    }

    /// What a row shows.
    fn shown(self) -> &'static str {
        match self {
            Self::Request => "requests.request_id",
            _ => self.grouped(),
        }
    }

    /// What tells one row from another.
    fn grouped(self) -> &'static str {
        match self {
            Self::Tenant => "tenants.name",
            Self::Model => "runs.model",
            Self::Day => "coalesce(date(requests.arrived_unix_ms / 1000, 'unixepoch'), '')",
            Self::Request => "requests.id",
        }
    }
}

impl FromStr for By {
    type Err = InvalidBy;

    fn from_str(text: &str) -> Result<Self, InvalidBy> {
        [Self::Tenant, Self::Model, Self::Day, Self::Request]
            .into_iter()
            .find(|by| by.name() == text)
            .ok_or_else(|| InvalidBy(text.to_owned()))
    }
}

/// Which requests to sum, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// One row for each combination of these, sorted by them; one row in all without.
    pub by: Vec<By>,
    /// Only requests that arrived then or later, in milliseconds of Unix time.
    pub since_unix_ms: Option<i64>,
    /// Only requests that arrived before, in milliseconds of Unix time.
    pub until_unix_ms: Option<i64>,
    /// Only the tenant of this name.
    pub tenant: Option<String>,
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// As asked: what each row's keys are.
    pub by: Vec<By>,
    /// The sums.
    pub rows: Vec<UsageRow>,
}

/// Sums over some requests, among them those that still run, with what they have used so
/// far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageRow {
    /// One for each of [`Usage::by`].
    pub keys: Vec<String>,
    /// How many they are.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Of those, tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// From arrival to the first step, in nanoseconds.
    pub queue_ns: u128,
    /// Their share of the device's time, in nanoseconds.
    pub device_ns: u128,
    /// Blocks of the KV cache held, times how long: block-nanoseconds.
    pub block_ns: u128,
    /// Energy in microjoules; `None` where none was measured.
    pub energy_uj: Option<u128>,
    /// Billionths of the currency; `None` without prices.
    pub price_nano: Option<u128>,
}

/// Reads a ledger, also while a server writes it.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    connection: Connection,
}

impl crate::Ledger {
    /// Opens a ledger to read it, which changes nothing in it. While no server has it
    /// open, SQLite makes two files beside it (`-wal` and `-shm`), and must be allowed to.
    ///
    /// # Errors
    /// If it is not there, is no ledger, is a later version's, or cannot be read.
    pub fn read(path: &Path) -> Result<Reader, LedgerError> {
        // SQLite does not say why it cannot open a file.
        let path = fs::canonicalize(path).map_err(io_at(path))?;
        check_is_file(&path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&path, flags).map_err(sqlite_at(&path))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite_at(&path))?;
        match check(&connection, &path).map_err(named_if_read_only)? {
            Contents::Ledger => Ok(Reader { path, connection }),
            Contents::Nothing => Err(LedgerError::Foreign { path }),
        }
    }
}

/// SQLite's own words for a folder that it may not write are "attempt to write a readonly
/// database", to somebody who only reads.
fn named_if_read_only(error: LedgerError) -> LedgerError {
    match error {
        LedgerError::Sqlite { path, source }
            if source.sqlite_error_code() == Some(ErrorCode::ReadOnly) =>
        {
            LedgerError::ReadOnlyFolder { path }
        }
        other => other,
    }
}

impl Reader {
    /// Sums what was used, as of one moment. Sums are exact.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn usage(&self, query: &Query) -> Result<Usage, LedgerError> {
        let rows = self.rows(query).map_err(sqlite_at(&self.path))?;
        Ok(Usage { by: query.by.clone(), rows })
    }

    fn rows(&self, query: &Query) -> rusqlite::Result<Vec<UsageRow>> {
        let mut statement = self.connection.prepare(&sql(query))?;
        let since = query.since_unix_ms.unwrap_or(i64::MIN);
        let until = query.until_unix_ms.unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![since, until, query.tenant], |row| usage_row(row, query.by.len()))?;
        rows.collect()
    }
}

/// The statement; only what [`By`] says goes into its text.
fn sql(query: &Query) -> String {
    let keys: String = query.by.iter().map(|by| format!("{}, ", by.shown())).collect();
    // The outer loop: tenants where the index of their arrivals is of use; otherwise
    // requests as they lie in the file.
    let limited =
        query.since_unix_ms.is_some() || query.until_unix_ms.is_some() || query.tenant.is_some();
    let (outer, inner) = if limited { ("tenants", "requests") } else { ("requests", "tenants") };
    let mut sql = format!(
        "SELECT {keys}count(*), sum(prompt_tokens), sum(cached_tokens), sum(generated_tokens),
            {}, {}, {}, {}, {}
         FROM {outer} CROSS JOIN {inner} USING (tenant) JOIN runs USING (run)
         WHERE arrived_unix_ms >= ?1 AND arrived_unix_ms < ?2
            AND (?3 IS NULL OR tenants.name = ?3)",
        halves("queue_ns"),
        halves("device_ns"),
        halves("block_ns"),
        halves("energy_uj"),
        halves("price_nano"),
    );
    if !query.by.is_empty() {
        let groups: Vec<_> = query.by.iter().map(|by| by.grouped()).collect();
        let groups = groups.join(", ");
        sql += &format!(" GROUP BY {groups} ORDER BY {groups}");
    }
    sql
}

/// Sums of a column's upper and lower 32 bits: block-nanoseconds of a large device do not
/// fit SQLite's 63 bits for more than days.
fn halves(column: &str) -> String {
    format!("sum({column} >> 32), sum({column} & 0xffffffff)")
}

fn usage_row(row: &Row<'_>, num_keys: usize) -> rusqlite::Result<UsageRow> {
    let keys = (0..num_keys).map(|index| row.get(index)).collect::<Result<_, _>>()?;
    // NULL is the sum of nothing.
    let count = |index| {
        let sum: Option<i64> = row.get(num_keys + index)?;
        Ok::<_, rusqlite::Error>(sum.unwrap_or(0).max(0).unsigned_abs())
    };
    let wide = |index| {
        let upper: Option<i64> = row.get(num_keys + index)?;
        let lower: Option<i64> = row.get(num_keys + index + 1)?;
        let sum = upper.zip(lower).map(|(upper, lower)| {
            let sum = (i128::from(upper) << 32) + i128::from(lower);
            sum.max(0).unsigned_abs()
        });
        Ok::<_, rusqlite::Error>(sum)
    };
    Ok(UsageRow {
        keys,
        requests: count(0)?,
        prompt_tokens: count(1)?,
        cached_tokens: count(2)?,
        generated_tokens: count(3)?,
        queue_ns: wide(4)?.unwrap_or(0),
        device_ns: wide(6)?.unwrap_or(0),
        block_ns: wide(8)?.unwrap_or(0),
        energy_uj: wide(10)?,
        price_nano: wide(12)?,
    })
}
