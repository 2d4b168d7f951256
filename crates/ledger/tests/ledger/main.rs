//! The ledger over real files: what goes in comes out, whoever is killed, refused or in the
//! way meanwhile.

mod killed;
mod mended;
mod obstacles;
mod opening;
mod sums;

use std::path::Path;

use sconce_ledger::{By, Ledger, LedgerSink, Query, Usage};
use sconce_types::{End, MeterEntry, MeterLabel, Metering, RequestId};

fn sink(path: &Path) -> LedgerSink {
    let ledger = Ledger::open(path, "a-model").expect("nobody else has the ledger open");
    ledger.sink().expect("a thread starts")
}

fn label(tenant: &str, request_id: &str, arrived_unix_ms: u64) -> Option<MeterLabel> {
    Some(MeterLabel { tenant: tenant.into(), request_id: request_id.into(), arrived_unix_ms })
}

/// A request that has generated so many tokens; all else follows from them.
fn entry(request: u64, label: Option<MeterLabel>, tokens: u32) -> MeterEntry {
    let usage = Metering {
        prompt_tokens: 7,
        cached_tokens: 3,
        generated_tokens: tokens,
        queue_ns: 1_500,
        device_ns: u64::from(tokens) * 1_000_000,
        block_ns: u64::from(tokens) * 5_000_000,
        energy_uj: Some(u64::from(tokens) * 20),
    };
    let price_nano = Some(u64::from(tokens) * 11);
    MeterEntry { request: RequestId(request), label, usage, price_nano, end: None }
}

fn ended(entry: MeterEntry, end: End) -> MeterEntry {
    MeterEntry { end: Some(end), ..entry }
}

fn usage(path: &Path, by: &[By]) -> Usage {
    let query = Query { by: by.to_vec(), ..Query::default() };
    let reader = Ledger::read(path).expect("there is a ledger");
    reader.usage(&query).expect("the ledger can be read")
}

/// Each request's id and end, in the order of arrival.
fn ends(path: &Path) -> Vec<(String, Option<String>)> {
    let connection = rusqlite::Connection::open(path).expect("the file opens");
    let mut statement = connection
        .prepare("SELECT request_id, end FROM requests ORDER BY id")
        .expect("the ledger has a table of requests");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.and_then(Iterator::collect).expect("requests have an id and an end")
}
