//! Writes batches of entries, and keeps what cannot be written.

use std::{collections::BTreeMap, fs::File, path::PathBuf, time::Duration};

use rusqlite::{CachedStatement, Connection, TransactionBehavior, params};
use sconce_types::{EndReason, MeterEntry, RequestId};

use crate::{
    Ledger, LedgerHealth,
    ledger::{BUSY_TIMEOUT, REQUEST_BITS},
};

/// Requests whose newest entry is kept while nothing can be written: some 20 MB where
/// request ids have a hundred bytes.
const MAX_HELD: usize = 65_536;

/// Kept entries that are written in one transaction, so that a try that fails is cheap.
const CHUNK: usize = 1024;

/// How long a batch waits for somebody else who writes: the engine waits as long.
const BATCH_BUSY_TIMEOUT: Duration = Duration::from_millis(10);

const ADD_TENANT: &str = "INSERT INTO tenants (name) VALUES (?1) ON CONFLICT DO NOTHING";

const INSERT: &str = "
    INSERT INTO requests (id, tenant, request_id, arrived_unix_ms, prompt_tokens, cached_tokens,
        generated_tokens, queue_ns, device_ns, block_ns, energy_uj, price_nano, end)
    VALUES (?1, (SELECT tenant FROM tenants WHERE name = ?2), ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10,
        ?11, ?12, ?13)
    ON CONFLICT (id) DO UPDATE SET prompt_tokens = excluded.prompt_tokens,
        cached_tokens = excluded.cached_tokens, generated_tokens = excluded.generated_tokens,
        queue_ns = excluded.queue_ns, device_ns = excluded.device_ns,
        block_ns = excluded.block_ns, energy_uj = excluded.energy_uj,
        price_nano = excluded.price_nano, end = coalesce(excluded.end, end)";

/// Leaves `end` alone, and so the index of what is unfinished.
const UPDATE: &str = "
    UPDATE requests SET prompt_tokens = ?2, cached_tokens = ?3, generated_tokens = ?4,
        queue_ns = ?5, device_ns = ?6, block_ns = ?7, energy_uj = ?8, price_nano = ?9
    WHERE id = ?1";

const END: &str = "UPDATE requests SET end = ?2 WHERE id = ?1";

/// The connection that writes, and what it could not write yet.
pub(crate) struct Writer {
    path: PathBuf,
    connection: Connection,
    run: i64,
    health: LedgerHealth,
    /// The newest state of requests that could not be written; usually empty.
    held: BTreeMap<RequestId, MeterEntry>,
    /// Locked as long as this writes.
    _lock: File,
}

impl Writer {
    pub(crate) fn new(ledger: Ledger) -> Self {
        let Ledger { path, connection, run, lock } = ledger;
        let health = LedgerHealth::default();
        let mut writer = Self { path, connection, run, health, held: BTreeMap::new(), _lock: lock };
        writer.set_busy_timeout(BATCH_BUSY_TIMEOUT);
        writer
    }

    pub(crate) fn health(&self) -> LedgerHealth {
        self.health.clone()
    }

    /// Writes a batch in one transaction, or keeps it; leaves `batch` empty.
    pub(crate) fn store(&mut self, batch: &mut Vec<MeterEntry>) {
        if self.held.is_empty() {
            match write(&mut self.connection, self.run, batch.iter()) {
                Ok(lost) => self.health.lose(lost),
                Err(error) => {
                    tracing::error!(
                        path = %self.path.display(),
                        %error,
                        "the ledger cannot be written; what requests use is kept in memory",
                    );
                    self.health.set_failing(true);
                    self.hold(batch);
                }
            }
        } else {
            self.hold(batch);
            self.retry();
        }
        batch.clear();
    }

    /// The last try, with more patience; then the log is copied into the file.
    pub(crate) fn finish(mut self) {
        self.set_busy_timeout(BUSY_TIMEOUT);
        if !self.held.is_empty() {
            self.retry();
            self.health.lose(self.held.len());
        }
        // The log is read as well where it cannot be copied, for instance because somebody
        // reads the ledger.
        let query = "PRAGMA wal_checkpoint(TRUNCATE)";
        if let Err(error) = self.connection.query_row(query, [], |_| Ok(())) {
            tracing::warn!(path = %self.path.display(), %error, "the ledger keeps its log");
        }
    }

    fn hold(&mut self, batch: &mut Vec<MeterEntry>) {
        let mut lost = 0;
        for entry in batch.drain(..) {
            if let Some(held) = self.held.get_mut(&entry.request) {
                held.label = held.label.take().or(entry.label);
                held.usage = entry.usage;
                held.price_nano = entry.price_nano;
                held.end = entry.end.or(held.end);
            } else if self.held.len() < MAX_HELD {
                self.held.insert(entry.request, entry);
            } else {
                lost += 1;
            }
        }
        self.health.lose(lost);
    }

    /// Writes what is kept, as far as that goes.
    fn retry(&mut self) {
        while !self.held.is_empty() {
            let chunk = self.held.values().take(CHUNK);
            let Ok(lost) = write(&mut self.connection, self.run, chunk) else { return };
            self.health.lose(lost);
            for _ in 0..CHUNK {
                self.held.pop_first();
            }
        }
        tracing::info!(path = %self.path.display(), "the ledger can be written again");
        self.health.set_failing(false);
    }

    fn set_busy_timeout(&mut self, timeout: Duration) {
        // It only sets a field of the connection.
        self.connection.busy_timeout(timeout).expect("an open connection takes a timeout");
    }
}

/// Writes entries in one transaction, and returns how many there was no row for.
fn write<'a>(
    connection: &mut Connection,
    run: i64,
    entries: impl Iterator<Item = &'a MeterEntry>,
) -> rusqlite::Result<usize> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut statements = Statements::of(&transaction)?;
    let mut lost = 0;
    for entry in entries {
        lost += usize::from(!statements.apply(run, entry)?);
    }
    drop(statements);
    transaction.commit()?;
    Ok(lost)
}

struct Statements<'c> {
    add_tenant: CachedStatement<'c>,
    insert: CachedStatement<'c>,
    update: CachedStatement<'c>,
    end: CachedStatement<'c>,
}

impl<'c> Statements<'c> {
    fn of(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            add_tenant: connection.prepare_cached(ADD_TENANT)?,
            insert: connection.prepare_cached(INSERT)?,
            update: connection.prepare_cached(UPDATE)?,
            end: connection.prepare_cached(END)?,
        })
    }

    /// Whether there is a row that says so now.
    fn apply(&mut self, run: i64, entry: &MeterEntry) -> rusqlite::Result<bool> {
        let Some(id) = row_id(run, entry.request) else { return Ok(false) };
        let usage = &entry.usage;
        let (queue, device) = (integer(usage.queue_ns), integer(usage.device_ns));
        let (block, energy) = (integer(usage.block_ns), usage.energy_uj.map(integer));
        let price = entry.price_nano.map(integer);
        let end = entry.end.map(end_name);
        if let Some(label) = &entry.label {
            let arrived = integer(label.arrived_unix_ms);
            self.add_tenant.execute([&label.tenant])?;
            self.insert.execute(params![
                id,
                label.tenant,
                label.request_id,
                arrived,
                usage.prompt_tokens,
                usage.cached_tokens,
                usage.generated_tokens,
                queue,
                device,
                block,
                energy,
                price,
                end,
            ])?;
            return Ok(true);
        }
        let rows = self.update.execute(params![
            id,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.generated_tokens,
            queue,
            device,
            block,
            energy,
            price,
        ])?;
        if end.is_some() {
            self.end.execute(params![id, end])?;
        }
        Ok(rows > 0)
    }
}

/// The key of a request's row; `None` for a number that no engine gets to.
fn row_id(run: i64, request: RequestId) -> Option<i64> {
    let request = i64::try_from(request.0).ok().filter(|&id| id < 1 << REQUEST_BITS)?;
    Some(run << REQUEST_BITS | request)
}

/// SQLite's integers have a sign; what does not fit (292 years in nanoseconds) is the
/// largest.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn end_name(end: EndReason) -> &'static str {
    match end {
        EndReason::Stop => "stop",
        EndReason::Length => "length",
        EndReason::Abort => "abort",
        EndReason::Deadline => "deadline",
        EndReason::Error => "error",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sconce_types::{MeterLabel, Metering};

    use super::*;

    fn writer(directory: &tempfile::TempDir) -> Writer {
        let path = directory.path().join("ledger.db");
        Writer::new(Ledger::open(&path, "model").expect("a new ledger opens"))
    }

    fn entry(request: u64, labelled: bool, generated_tokens: u32) -> MeterEntry {
        let label = labelled.then(|| MeterLabel {
            tenant: "tenant".into(),
            request_id: Arc::from("x".repeat(64)),
            arrived_unix_ms: 0,
        });
        let usage = Metering { generated_tokens, ..Metering::default() };
        MeterEntry { request: RequestId(request), label, usage, price_nano: None, end: None }
    }

    /// Requests and generated tokens in the file.
    fn totals(writer: &Writer) -> (i64, i64) {
        let query = "SELECT count(*), coalesce(sum(generated_tokens), 0) FROM requests";
        let totals = writer.connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)));
        totals.expect("the ledger can be read")
    }

    fn set_max_pages(writer: &Writer, pages: i64) {
        writer
            .connection
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .expect("SQLite takes a page limit");
    }

    #[test]
    fn what_a_full_disk_refused_is_written_later() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut writer = writer(&directory);
        let health = writer.health();
        writer.store(&mut (0..10).map(|id| entry(id, true, 1)).collect());
        assert_eq!(totals(&writer), (10, 10));

        // SQLite takes no limit below what the file has.
        set_max_pages(&writer, 1);
        let mut batch: Vec<_> = (10..3_000).map(|id| entry(id, true, 1)).collect();
        batch.extend((0..10).map(|id| entry(id, false, 2)));
        writer.store(&mut batch);
        assert!(batch.is_empty() && health.failing());
        assert_eq!(totals(&writer), (10, 10), "a refused batch leaves no part of itself");
        writer.store(&mut (10..3_000).map(|id| entry(id, false, 3)).collect());
        assert!(health.failing());

        set_max_pages(&writer, i64::from(u32::MAX - 1));
        writer.store(&mut vec![entry(5, false, 7)]);
        assert!(!health.failing());
        assert_eq!(totals(&writer), (3_000, 9 * 2 + 7 + 2_990 * 3));
        assert_eq!(health.lost(), 0);
    }

    #[test]
    fn what_is_kept_in_memory_is_bounded_and_losses_are_counted() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut writer = writer(&directory);
        let health = writer.health();
        set_max_pages(&writer, 1);
        let ids = MAX_HELD as u64 + 3;
        writer.store(&mut (0..ids).map(|id| entry(id, true, 1)).collect());
        assert_eq!((writer.held.len(), health.lost()), (MAX_HELD, 3));

        set_max_pages(&writer, i64::from(u32::MAX - 1));
        writer.store(&mut vec![entry(0, false, 2), entry(ids - 1, false, 2)]);
        assert_eq!(health.lost(), 4, "a request whose first entry is lost has no row");
        assert_eq!(totals(&writer).0, i64::try_from(MAX_HELD).expect("it is small"));
        assert!(!health.failing() && writer.held.is_empty());
    }

    #[test]
    fn numbers_that_no_row_can_hold_do_no_harm() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut writer = writer(&directory);
        let mut largest = entry((1 << REQUEST_BITS) - 1, true, u32::MAX);
        largest.usage.block_ns = u64::MAX;
        largest.price_nano = Some(u64::MAX);
        writer.store(&mut vec![
            entry(1 << REQUEST_BITS, true, 1),
            entry(u64::MAX, true, 1),
            largest,
        ]);
        assert_eq!(totals(&writer), (1, i64::from(u32::MAX)));
        assert_eq!(writer.health().lost(), 2);
        assert!(!writer.health().failing());
    }
}
