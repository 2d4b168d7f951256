//! Writes batches of entries, and keeps what cannot be written.

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use rusqlite::{CachedStatement, Connection, ErrorCode, TransactionBehavior, params};
use sconce_types::{End, MeterEntry, MeterLabel, RequestId};

use crate::{
    Ledger, LedgerHealth,
    held::{Held, MAX_HELD},
    ledger::{BUSY_TIMEOUT, REQUEST_BITS, Run},
    mend::{Files, Trouble, mend, resume},
};

/// Kept entries that are written in one transaction, so that a try that fails is cheap.
const CHUNK: usize = 1024;

/// How long a batch waits for another process that writes: the engine waits as long.
const BATCH_BUSY_TIMEOUT: Duration = Duration::from_millis(10);

/// The time between tries while nothing can be written: doubled from the first to the last.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long it catches up at a time, while the engine may have another batch.
const CATCH_UP: Duration = Duration::from_millis(50);

/// How often it looks whether the file is still the one that it writes.
const LOOK_EVERY: Duration = Duration::from_millis(500);

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
    /// What is written belongs to it, also in a file that was opened again.
    run: Run,
    /// `None` while it cannot be opened again.
    ledger: Option<Ledger>,
    files: Files,
    health: LedgerHealth,
    /// What could not be written; usually empty.
    held: Held,
    /// Labels of requests that have not ended: a file that was begun anew lacks their rows.
    labels: Labels,
    /// Something was written to it, or tried to be, and it is no database.
    is_damaged: bool,
    /// The file was found in disorder, which is said and counted once.
    is_mending: bool,
    next_look: Instant,
    /// When to try again what failed; `None` where nothing did.
    next_try: Option<Instant>,
    retry_after: Duration,
}

type Labels = HashMap<RequestId, MeterLabel>;

impl Writer {
    pub(crate) fn new(ledger: Ledger) -> Self {
        let mut writer = Self {
            path: ledger.path.clone(),
            run: ledger.run.clone(),
            files: Files::of(&ledger),
            ledger: Some(ledger),
            health: LedgerHealth::default(),
            held: Held::default(),
            labels: Labels::new(),
            is_damaged: false,
            is_mending: false,
            next_look: Instant::now() + LOOK_EVERY,
            next_try: None,
            retry_after: RETRY_AFTER.0,
        };
        writer.set_busy_timeout(BATCH_BUSY_TIMEOUT);
        writer
    }

    pub(crate) fn health(&self) -> LedgerHealth {
        self.health.clone()
    }

    /// Writes a batch in one transaction, or keeps it; leaves `batch` empty.
    pub(crate) fn store(&mut self, batch: &mut Vec<MeterEntry>) {
        for entry in &*batch {
            let Some(label) = &entry.label else { continue };
            if entry.end.is_none() && self.labels.len() < MAX_HELD {
                self.labels.insert(entry.request, label.clone());
            }
        }
        // What failed is tried again when it is time, not whenever a batch comes.
        if self.next_try.is_none() {
            match self.write(batch.iter()) {
                Ok(lost) => self.health.lose(lost),
                Err(error) => self.fail(&error),
            }
        }
        if self.next_try.is_some() {
            self.health.lose(self.held.add(batch));
        }
        batch.clear();
    }

    /// Writes all that is kept, with more patience and whenever it was tried last.
    pub(crate) fn settle(&mut self) {
        self.set_busy_timeout(BUSY_TIMEOUT);
        self.look();
        while self.next_try.is_some() {
            self.try_again();
            if self.next_try.is_some_and(|next| next > Instant::now()) {
                break;
            }
        }
        self.set_busy_timeout(BATCH_BUSY_TIMEOUT);
    }

    /// How long until there is something to do without a batch.
    pub(crate) fn next_task(&self) -> Duration {
        let next = self.next_try.map_or(self.next_look, |next| next.min(self.next_look));
        next.saturating_duration_since(Instant::now())
    }

    /// Runs the periodic work that is due: checks the file, retries failed writes.
    pub(crate) fn run_due_tasks(&mut self) {
        if self.next_look <= Instant::now() {
            self.look();
        }
        if self.next_try.is_some_and(|next| next <= Instant::now()) {
            self.try_again();
        }
    }

    /// The last try, with more patience; then the log is copied into the file.
    pub(crate) fn finish(mut self) {
        self.settle();
        self.health.lose(self.held.len());
        // The log is read as well where it cannot be copied, for instance because somebody
        // reads the ledger.
        let Some(Ledger { connection, .. }) = &self.ledger else { return };
        let query = "PRAGMA wal_checkpoint(TRUNCATE)";
        if let Err(error) = connection.query_row(query, [], |_| Ok(())) {
            tracing::warn!(path = %self.path.display(), %error, "the ledger keeps its log");
        }
    }

    /// Looks whether the file is still there and the same, and mends what is not.
    fn look(&mut self) {
        self.next_look = Instant::now() + LOOK_EVERY;
        let damaged = self.is_damaged.then_some(Trouble::Damaged);
        let Some(trouble) = damaged.or_else(|| self.files.look(&self.path)) else {
            if std::mem::take(&mut self.is_mending) {
                // The file is back where it was.
                self.next_try = Some(Instant::now());
            }
            return;
        };
        if self.ledger.is_none() {
            return;
        }
        if !std::mem::replace(&mut self.is_mending, true) {
            self.health.note_replaced();
            tracing::error!(path = %self.path.display(), ?trouble, "the ledger is not what it was");
        }
        self.health.set_failing(true);
        match mend(&mut self.ledger, trouble, &self.files) {
            Ok(done) => {
                tracing::warn!(path = %self.path.display(), "the ledger is mended: {done}");
                self.adopt_reopened();
                self.next_try = Some(Instant::now());
            }
            Err(error) => {
                tracing::error!(%error, "the ledger cannot be mended yet; it will be tried again");
                self.set_busy_timeout(BATCH_BUSY_TIMEOUT);
                self.back_off();
            }
        }
    }

    /// Takes over the state of a ledger that was reopened.
    fn adopt_reopened(&mut self) {
        if let Some(ledger) = &self.ledger {
            self.files = Files::of(ledger);
            self.run = ledger.run.clone();
        }
        (self.is_mending, self.is_damaged) = (false, false);
        self.set_busy_timeout(BATCH_BUSY_TIMEOUT);
    }

    /// Writes what is kept, for a while, or as far as that goes.
    fn try_again(&mut self) {
        if self.is_mending && self.ledger.is_some() {
            // What is written now would go into a file that is no longer at this path.
            return self.look();
        }
        if self.ledger.is_none() {
            match resume(&self.path, &self.run) {
                Ok(ledger) => self.ledger = Some(ledger),
                Err(_) => return self.back_off(),
            }
            self.adopt_reopened();
        }
        let started = Instant::now();
        while !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let written = self.write(held.first(CHUNK));
            self.held = held;
            match written {
                Ok(lost) => self.health.lose(lost),
                Err(error) => return self.fail(&error),
            }
            self.held.forget(CHUNK);
            if started.elapsed() > CATCH_UP {
                self.next_try = Some(Instant::now());
                return;
            }
        }
        self.next_try = None;
        self.retry_after = RETRY_AFTER.0;
        tracing::info!(path = %self.path.display(), "the ledger can be written again");
        self.health.set_failing(false);
    }

    /// Notes that something could not be written; says so the first time.
    fn fail(&mut self, error: &rusqlite::Error) {
        if self.next_try.is_none() {
            tracing::error!(
                path = %self.path.display(),
                %error,
                "the ledger cannot be written; what requests use is kept in memory",
            );
        }
        let code = error.sqlite_error_code();
        if matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)) {
            self.is_damaged = true;
            self.next_look = Instant::now();
        }
        self.health.set_failing(true);
        self.back_off();
    }

    fn back_off(&mut self) {
        self.next_try = Some(Instant::now() + self.retry_after);
        self.retry_after = (self.retry_after * 2).min(RETRY_AFTER.1);
    }

    /// Writes entries in one transaction, and returns how many there was no row for.
    fn write<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a MeterEntry> + Clone,
    ) -> rusqlite::Result<usize> {
        let Some(Ledger { connection, run, .. }) = &mut self.ledger else {
            return Err(rusqlite::Error::InvalidQuery);
        };
        let lost = write(connection, run.number, entries.clone(), &self.labels)?;
        for entry in entries.filter(|entry| entry.end.is_some()) {
            self.labels.remove(&entry.request);
        }
        Ok(lost)
    }

    fn set_busy_timeout(&mut self, timeout: Duration) {
        if let Some(Ledger { connection, .. }) = &self.ledger {
            // It only sets a field of the connection.
            connection.busy_timeout(timeout).expect("an open connection takes a timeout");
        }
    }
}

/// Writes entries in one transaction, and returns how many there was no row for.
fn write<'a>(
    connection: &mut Connection,
    run: i64,
    entries: impl Iterator<Item = &'a MeterEntry>,
    labels: &Labels,
) -> rusqlite::Result<usize> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut statements = Statements::of(&transaction)?;
    let mut lost = 0;
    for entry in entries {
        let label = entry.label.as_ref();
        if statements.apply(run, entry, label)? {
            continue;
        }
        // A file that was begun anew has no row of a request that began before.
        let known = labels.get(&entry.request).filter(|_| label.is_none());
        lost += usize::from(known.is_none() || !statements.apply(run, entry, known)?);
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
    fn apply(
        &mut self,
        run: i64,
        entry: &MeterEntry,
        label: Option<&MeterLabel>,
    ) -> rusqlite::Result<bool> {
        let Some(id) = row_id(run, entry.request) else { return Ok(false) };
        let usage = &entry.usage;
        let (queue, device) = (integer(usage.queue_ns), integer(usage.device_ns));
        let (block, energy) = (integer(usage.block_ns), usage.energy_uj.map(integer));
        let price = entry.price_nano.map(integer);
        let end = entry.end.map(End::name);
        if let Some(label) = label {
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
        let connection = &writer.ledger.as_ref().expect("it is open").connection;
        let totals = connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)));
        totals.expect("the ledger can be read")
    }

    fn set_max_pages(writer: &Writer, pages: i64) {
        let connection = &writer.ledger.as_ref().expect("it is open").connection;
        connection
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
        assert_eq!(totals(&writer), (10, 10), "not tried again for each batch");
        assert!(health.failing());
        writer.settle();
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
        writer.settle();
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
