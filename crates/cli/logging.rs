//! Where log lines go, and how they look.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// The target of the lines that requests have.
const ACCESS: &str = "sconce::access";

/// Lines that may wait to be written; more are dropped, and counted.
const QUEUE: usize = 16_384;

/// How long the end of the process waits for those.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// A JSON object a line
    Json,
}

/// The log's end; flush it before the process ends.
pub(crate) struct Log(SyncSender<Item>);

enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Sends log lines to standard error, in colour only if that is a terminal and `NO_COLOR`
/// is not set.
pub(crate) fn start(format: LogFormat) -> io::Result<Log> {
    let (queue, items) = sync_channel(QUEUE);
    thread::Builder::new().name("sconce-log".to_owned()).spawn(move || {
        for item in items {
            match item {
                // There is nowhere left to report that standard error cannot be written.
                Item::Line(line) => drop(io::stderr().write_all(&line)),
                Item::Flush(done) => done.send(()).unwrap_or_default(),
            }
        }
    })?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(format == LogFormat::Text && io::stderr().is_terminal() && !no_color)
        .with_writer(Output { queue: queue.clone(), dropped: AtomicU64::new(0) });
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    Ok(Log(queue))
}

impl Log {
    /// Waits until what was logged is written.
    pub(crate) fn flush(&self) {
        let (done, flushed) = sync_channel(1);
        if self.0.try_send(Item::Flush(done)).is_ok() {
            // A reader that has stopped does not hold the end up for long.
            let _ = flushed.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Standard error: directly, but through a queue where each request has a line, so that a
/// reader that has stopped holds up no request.
struct Output {
    queue: SyncSender<Item>,
    dropped: AtomicU64,
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter::Direct
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> LineWriter<'a> {
        if meta.target() == ACCESS { LineWriter::Queued(self) } else { LineWriter::Direct }
    }
}

enum LineWriter<'a> {
    Direct,
    Queued(&'a Output),
}

impl Write for LineWriter<'_> {
    /// Takes a whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Self::Queued(output) = self else {
            return io::stderr().write_all(line).map(|()| line.len());
        };
        if output.queue.try_send(Item::Line(line.to_vec())).is_err() {
            let dropped = output.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "lines of the access log are dropped: its reader is slow");
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
