//! The ledger: what each request of each tenant used, in one SQLite file.
//!
//! A server opens it with [`Ledger::open`] and writes through a [`LedgerSink`]; whoever
//! wants to know what was used asks a [`Reader`], also from another process and while the
//! server writes.
//!
//! What [`LedgerSink::record`](sconce_types::MeterSink::record) was given is kept exactly
//! once: a batch is one transaction, at most one batch is on its way, and entries say all
//! that a request has used so far, so that writing one again changes nothing. A process
//! that is killed loses at most the last batch, and never a part of one. A power cut or a
//! crash of the operating system may take the last moments too (what was written since the
//! last checkpoint), but leaves a ledger that is whole as of some batch: waiting for the
//! disk at each step would cost more than those are worth. While the file cannot be written
//! what was given is kept in memory, and only that is lost with the process. A file that is
//! deleted, replaced or damaged under a server is noticed within a second and mended.
//!
//! The file must lie on a local disk: SQLite's write-ahead log needs shared memory.

mod error;
mod held;
mod ledger;
mod mend;
mod output;
mod since;
mod sink;
mod usage;
mod writer;

pub use error::LedgerError;
pub use ledger::Ledger;
pub use since::{InvalidTime, parse_since};
pub use sink::{LedgerHealth, LedgerSink};
pub use usage::{By, InvalidBy, Query, Reader, Usage, UsageRow};
