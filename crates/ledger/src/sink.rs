//! The engine's side of the writer.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use sconce_types::{MeterEntry, MeterSink};

use crate::{LedgerError, writer::Writer};

/// Hands what requests used to the thread that writes it.
///
/// At most one batch is on its way: [`record`](MeterSink::record) returns the buffer of
/// the batch before, once that is committed, and sends the new one. A call without entries
/// only waits. Where SQLite cannot write (a full disk, or somebody who holds the file
/// locked) `record` returns all the same: the newest entry of each request is kept in
/// memory, for 65,536 requests at most, and tried again with the next call. Requests beyond
/// those are lost, and counted.
///
/// Dropping it waits until all is written, and copies the write-ahead log into the file.
#[derive(Debug)]
pub struct LedgerSink {
    /// `None` once it is dropped, which ends the thread.
    batches: Option<SyncSender<Vec<MeterEntry>>>,
    /// Empty buffers of batches that were written.
    written: Receiver<Vec<MeterEntry>>,
    thread: Option<JoinHandle<()>>,
    health: LedgerHealth,
}

/// How the writing goes; its clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct LedgerHealth(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    failing: AtomicBool,
    lost: AtomicU64,
}

impl LedgerHealth {
    /// Whether there is anything that could not be written yet.
    #[must_use]
    pub fn failing(&self) -> bool {
        self.0.failing.load(Ordering::Relaxed)
    }

    /// Entries that were given up: there was no room left to keep them, or their request's
    /// first entry was given up.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn set_failing(&self, failing: bool) {
        self.0.failing.store(failing, Ordering::Relaxed);
    }

    /// Counts entries that are given up, and says so the first time.
    pub(crate) fn lose(&self, entries: usize) {
        if entries > 0 && self.0.lost.fetch_add(entries as u64, Ordering::Relaxed) == 0 {
            tracing::error!(entries, "the ledger has lost what requests used");
        }
    }
}

impl LedgerSink {
    pub(crate) fn start(writer: Writer) -> Result<Self, LedgerError> {
        let health = writer.health();
        let (batches, incoming) = sync_channel(1);
        let (outgoing, written) = sync_channel(1);
        // The first batch's buffer, so that the first call is like any other.
        outgoing.send(Vec::new()).expect("the receiver is alive and has room for one");
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || write_all(writer, &incoming, &outgoing))
            .map_err(LedgerError::Thread)?;
        Ok(Self { batches: Some(batches), written, thread: Some(thread), health })
    }

    /// A handle that tells, from any thread, how the writing goes.
    #[must_use]
    pub fn health(&self) -> LedgerHealth {
        self.health.clone()
    }
}

/// The thread: writes batches until there will be no more.
fn write_all(
    mut writer: Writer,
    incoming: &Receiver<Vec<MeterEntry>>,
    outgoing: &SyncSender<Vec<MeterEntry>>,
) {
    for mut batch in incoming {
        writer.store(&mut batch);
        if outgoing.send(batch).is_err() {
            break;
        }
    }
    writer.finish();
}

impl MeterSink for LedgerSink {
    fn is_failing(&self) -> bool {
        self.health.failing()
    }

    fn num_lost(&self) -> u64 {
        self.health.lost()
    }

    fn record(&mut self, entries: &mut Vec<MeterEntry>) {
        let sent = match (self.written.recv(), &self.batches) {
            (Ok(mut batch), Some(batches)) => {
                mem::swap(&mut batch, entries);
                batches.send(batch).map_err(|failed| failed.0.len())
            }
            _ => Err(entries.len()),
        };
        // The thread ends before the sink only if it panicked.
        if let Err(lost) = sent {
            self.health.set_failing(true);
            self.health.lose(lost);
            entries.clear();
        }
    }
}

impl Drop for LedgerSink {
    fn drop(&mut self) {
        self.batches = None;
        // A thread that panicked has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
