//! The engine's side of the writer.

use std::{
    fmt, mem,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use sconce_types::{MeterEntry, MeterSink, SinkState};

use crate::{LedgerError, held::Held, writer::Writer};

/// How long the engine waits for the batch before, if the ledger is in order. A disk that
/// takes longer holds the engine up once, not at each step.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long a call without entries waits until all is written.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// Hands what requests used to the thread that writes it.
///
/// At most one batch is on its way: [`record`](MeterSink::record) returns the buffer of
/// the batch before, once that is committed, and sends the new one. A call without entries
/// waits until everything is written, or a few seconds. Where SQLite cannot write (a full
/// disk, or another process that holds the file locked) or takes long, `record` returns
/// all the same: the newest entry of each request is kept in memory, for 65,536 requests
/// at most, and written once that is possible; it is tried less and less often, down to
/// once a second. Requests beyond those are lost, and counted.
///
/// Dropping it waits until all is written, and copies the write-ahead log into the file.
#[derive(Debug)]
pub struct LedgerSink {
    /// `None` once it is dropped, which ends the thread.
    batches: Option<SyncSender<Vec<MeterEntry>>>,
    /// Empty buffers of batches that were written.
    written: Receiver<Vec<MeterEntry>>,
    /// The buffer, where it has been waited for already.
    spare: Option<Vec<MeterEntry>>,
    /// What comes while the thread is busy for too long.
    backlog: Held,
    thread: Option<JoinHandle<()>>,
    health: LedgerHealth,
}

/// How the writing goes; its clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct LedgerHealth(Arc<Counters>);

#[derive(Default)]
struct Counters {
    failing: AtomicBool,
    stalled: AtomicBool,
    lost: AtomicU64,
    replaced: AtomicU64,
    listener: OnceLock<Box<dyn Fn(SinkState) + Send + Sync>>,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failing, stalled, lost, replaced, listener: _ } = self;
        let mut debug = f.debug_struct("Counters");
        debug.field("failing", failing).field("stalled", stalled).field("lost", lost);
        debug.field("replaced", replaced).finish_non_exhaustive()
    }
}

impl LedgerHealth {
    /// Whether there is anything that could not be written yet.
    #[must_use]
    pub fn failing(&self) -> bool {
        self.0.failing.load(Ordering::Relaxed) || self.0.stalled.load(Ordering::Relaxed)
    }

    /// Entries that were given up: there was no room left to keep them, or their request's
    /// first entry was given up.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// How often the file was found deleted, replaced or damaged.
    #[must_use]
    pub fn replaced(&self) -> u64 {
        self.0.replaced.load(Ordering::Relaxed)
    }

    pub(crate) fn set_failing(&self, failing: bool) {
        if self.0.failing.swap(failing, Ordering::Relaxed) != failing {
            self.notify();
        }
    }

    /// Whether the thread has not answered in time.
    fn set_stalled(&self, stalled: bool) -> bool {
        let changed = self.0.stalled.swap(stalled, Ordering::Relaxed) != stalled;
        if changed {
            self.notify();
        }
        changed
    }

    /// Counts entries that are given up, and says so the first time.
    pub(crate) fn lose(&self, entries: usize) {
        if entries == 0 {
            return;
        }
        if self.0.lost.fetch_add(entries as u64, Ordering::Relaxed) == 0 {
            tracing::error!(entries, "the ledger has lost what requests used");
        }
        self.notify();
    }

    pub(crate) fn note_replaced(&self) {
        self.0.replaced.fetch_add(1, Ordering::Relaxed);
        self.notify();
    }

    fn state(&self) -> SinkState {
        SinkState { failing: self.failing(), lost: self.lost(), replaced: self.replaced() }
    }

    fn notify(&self) {
        if let Some(listener) = self.0.listener.get() {
            listener(self.state());
        }
    }
}

impl LedgerSink {
    pub(crate) fn start(writer: Writer) -> Result<Self, LedgerError> {
        let health = writer.health();
        let (batches, incoming) = sync_channel(1);
        let (outgoing, written) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || write_all(writer, &incoming, &outgoing))
            .map_err(LedgerError::Thread)?;
        // The first batch's buffer, so that the first call is like any other.
        let (spare, backlog) = (Some(Vec::new()), Held::default());
        Ok(Self { batches: Some(batches), written, spare, backlog, thread: Some(thread), health })
    }

    /// A handle that tells, from any thread, how the writing goes.
    #[must_use]
    pub fn health(&self) -> LedgerHealth {
        self.health.clone()
    }

    /// The buffer of the batch before, once that is written.
    fn buffer(&mut self, patience: Duration) -> Result<Vec<MeterEntry>, RecvTimeoutError> {
        match self.spare.take() {
            Some(spare) => Ok(spare),
            None => self.written.recv_timeout(patience),
        }
    }

    /// Sends what has come since the last batch, the backlog first.
    fn send(&mut self, mut batch: Vec<MeterEntry>, entries: &mut Vec<MeterEntry>) {
        if self.backlog.is_empty() {
            mem::swap(&mut batch, entries);
        } else {
            self.health.lose(self.backlog.add(entries));
            self.backlog.move_to(&mut batch);
        }
        let sent = self.batches.as_ref().map(|batches| batches.send(batch));
        if let Some(Err(failed)) = sent {
            self.give_up(failed.0.len());
        }
    }

    /// The thread ends before the sink only if it panicked.
    fn give_up(&self, entries: usize) {
        self.health.set_failing(true);
        self.health.lose(entries);
    }
}

/// The thread: writes batches until there will be no more.
fn write_all(
    mut writer: Writer,
    incoming: &Receiver<Vec<MeterEntry>>,
    outgoing: &SyncSender<Vec<MeterEntry>>,
) {
    loop {
        match incoming.recv_timeout(writer.next_task()) {
            Ok(mut batch) => {
                if batch.is_empty() {
                    writer.settle();
                } else {
                    writer.store(&mut batch);
                }
                if outgoing.send(batch).is_err() {
                    break;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        writer.run_due_tasks();
    }
    writer.finish();
}

impl MeterSink for LedgerSink {
    fn state(&self) -> SinkState {
        self.health.state()
    }

    fn on_change(&mut self, listener: Box<dyn Fn(SinkState) + Send + Sync>) {
        // The first listener stays.
        let _ = self.health.0.listener.set(listener);
        self.health.notify();
    }

    fn record(&mut self, entries: &mut Vec<MeterEntry>) {
        let settles = entries.is_empty();
        let is_stalled = self.health.0.stalled.load(Ordering::Relaxed);
        let patience = match (settles, is_stalled) {
            (true, _) => SETTLE_PATIENCE,
            (false, true) => Duration::ZERO,
            (false, false) => PATIENCE,
        };
        match self.buffer(patience) {
            Ok(batch) => {
                if self.health.set_stalled(false) {
                    tracing::info!("the ledger answers again");
                }
                let has_backlog = !self.backlog.is_empty();
                self.send(batch, entries);
                if settles && has_backlog {
                    // The first batch carried the backlog; an empty one asks for a settle.
                    self.spare = self.buffer(SETTLE_PATIENCE).ok();
                    if let Some(batch) = self.spare.take() {
                        self.send(batch, entries);
                    }
                }
                if settles {
                    self.spare = self.buffer(SETTLE_PATIENCE).ok();
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if self.health.set_stalled(true) {
                    tracing::error!(
                        "the ledger takes long to be written; what requests use is kept in memory"
                    );
                }
                self.health.lose(self.backlog.add(entries));
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.give_up(entries.len() + self.backlog.len());
                self.backlog = Held::default();
                entries.clear();
            }
        }
    }
}

impl Drop for LedgerSink {
    fn drop(&mut self) {
        if !self.backlog.is_empty() {
            match self.buffer(SETTLE_PATIENCE) {
                Ok(batch) => self.send(batch, &mut Vec::new()),
                Err(_) => self.give_up(self.backlog.len()),
            }
        }
        self.batches = None;
        // A thread that panicked has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use sconce_types::{Metering, RequestId};

    use super::*;

    fn entry(request: u64, generated_tokens: u32) -> MeterEntry {
        let usage = Metering { generated_tokens, ..Metering::default() };
        MeterEntry { request: RequestId(request), label: None, usage, price_nano: None, end: None }
    }

    #[test]
    fn a_thread_that_does_not_answer_is_waited_for_once_and_gets_all_later() {
        let (batches, incoming) = sync_channel(1);
        let (outgoing, written) = sync_channel(1);
        let (spare, backlog) = (Some(Vec::new()), Held::default());
        let health = LedgerHealth::default();
        let mut sink =
            LedgerSink { batches: Some(batches), written, spare, backlog, thread: None, health };
        let (told, states) = std::sync::mpsc::channel();
        sink.on_change(Box::new(move |state| told.send(state.failing).unwrap_or_default()));
        sink.record(&mut vec![entry(0, 1)]);
        // Were each of these waited for, it would take minutes.
        for tokens in 2..1_000 {
            let mut entries = vec![entry(0, tokens), entry(1, tokens)];
            sink.record(&mut entries);
            assert!(entries.is_empty() && sink.health().failing());
        }
        let mut first = incoming.recv().expect("it was sent");
        assert_eq!(first, [entry(0, 1)]);
        first.clear();
        outgoing.send(first).expect("the sink is there");
        sink.record(&mut vec![entry(2, 1)]);
        let rest = incoming.recv().expect("it was sent");
        assert_eq!(rest, [entry(0, 999), entry(1, 999), entry(2, 1)]);
        assert_eq!((sink.health().failing(), sink.health().lost()), (false, 0));
        assert_eq!(states.try_iter().collect::<Vec<_>>(), [false, true, false]);
        // A thread that is gone: what it was not given is lost, and counted.
        drop((incoming, outgoing));
        sink.record(&mut vec![entry(0, 1_000), entry(2, 2)]);
        assert_eq!((sink.health().failing(), sink.health().lost()), (true, 2));
    }
}
