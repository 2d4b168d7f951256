//! What was recorded is what is summed.

use sconce_ledger::{By, Ledger, Query, UsageRow};
use sconce_types::{End, MeterSink as _};
use tempfile::tempdir;

use super::{ended, ends, entry, label, sink, usage};

/// Noon of 2026-11-01, UTC.
const NOON: u64 = 1_793_534_400_000;
const DAY: u64 = 86_400_000;

#[test]
fn usage_is_summed_by_tenant_model_day_and_request() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let mut ledger = sink(&path);
    let mut batch = vec![
        entry(0, label("b", "one", NOON), 0),
        entry(1, label("a", "two", NOON), 0),
        entry(2, label("a", "two", NOON + DAY), 0),
    ];
    // Nothing measured, no prices.
    batch[0].usage.energy_uj = None;
    batch[0].price_nano = None;
    ledger.record(&mut batch);
    assert!(batch.is_empty());
    batch.extend([entry(1, None, 10), ended(entry(2, None, 5), End::Stop { token: None })]);
    ledger.record(&mut batch);
    // The last of a request's entries stands, and it stands however often it is written.
    let last = ended(entry(1, None, 12), End::Length);
    batch.extend([last.clone(), last.clone()]);
    ledger.record(&mut batch);
    batch.push(last);
    ledger.record(&mut batch);
    assert!(!ledger.health().failing());
    drop(ledger);

    let row = |keys: &[&str], requests: u64, tokens: u64| {
        let wide = u128::from(tokens);
        UsageRow {
            keys: keys.iter().map(|&key| key.to_owned()).collect(),
            requests,
            prompt_tokens: 7 * requests,
            cached_tokens: 3 * requests,
            generated_tokens: tokens,
            queue_ns: u128::from(requests) * 1_500,
            device_ns: wide * 1_000_000,
            block_ns: wide * 5_000_000,
            energy_uj: Some(wide * 20),
            price_nano: Some(wide * 11),
        }
    };
    let unmeasured = |row| UsageRow { energy_uj: None, price_nano: None, ..row };
    assert_eq!(usage(&path, &[]).rows, [row(&[], 3, 17)]);
    assert_eq!(
        usage(&path, &[By::Tenant]).rows,
        [row(&["a"], 2, 17), unmeasured(row(&["b"], 1, 0))]
    );
    assert_eq!(
        usage(&path, &[By::Day, By::Model, By::Tenant]).rows,
        [
            row(&["2026-11-01", "a-model", "a"], 1, 12),
            unmeasured(row(&["2026-11-01", "a-model", "b"], 1, 0)),
            row(&["2026-11-02", "a-model", "a"], 1, 5),
        ]
    );
    // Two requests of one name are two requests.
    assert_eq!(
        usage(&path, &[By::Request]).rows,
        [unmeasured(row(&["one"], 1, 0)), row(&["two"], 1, 12), row(&["two"], 1, 5)]
    );
    let end = |id: &str, end: Option<&str>| (id.to_owned(), end.map(ToOwned::to_owned));
    assert_eq!(
        ends(&path),
        [end("one", None), end("two", Some("length")), end("two", Some("stop"))]
    );

    let tokens = |since: Option<u64>, until: Option<u64>, tenant: Option<&str>| {
        let unix_ms = |time: u64| i64::try_from(time).expect("it fits");
        let query = Query {
            by: Vec::new(),
            since_unix_ms: since.map(unix_ms),
            until_unix_ms: until.map(unix_ms),
            tenant: tenant.map(ToOwned::to_owned),
        };
        let reader = Ledger::read(&path).expect("there is a ledger");
        let row = reader.usage(&query).expect("the ledger can be read").rows.remove(0);
        (row.requests, row.generated_tokens)
    };
    assert_eq!(tokens(Some(NOON), Some(NOON + DAY), None), (2, 12));
    assert_eq!(tokens(Some(NOON + 1), None, None), (1, 5));
    assert_eq!(tokens(None, Some(NOON), None), (0, 0));
    assert_eq!(tokens(None, None, Some("b")), (1, 0));
    assert_eq!(tokens(Some(NOON + DAY), None, Some("a")), (1, 5));
    assert_eq!(tokens(None, None, Some("c")), (0, 0));
}

#[test]
fn sums_have_more_bits_than_the_files_integers() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let mut ledger = sink(&path);
    let mut batch: Vec<_> = (0..3).map(|id| entry(id, label("a", "id", NOON), 1)).collect();
    for entry in &mut batch {
        entry.usage.block_ns = i64::MAX.unsigned_abs() - 1;
    }
    ledger.record(&mut batch);
    drop(ledger);
    assert_eq!(usage(&path, &[By::Tenant]).rows[0].block_ns, 3 * (i64::MAX as u128 - 1));
}

#[test]
fn texts_say_what_the_rows_hold_whatever_names_hold() {
    let directory = tempdir().expect("a temporary directory");
    let path = directory.path().join("ledger.db");
    let mut ledger = sink(&path);
    let names = ["=1+1", "a\"b,c", "nul\0here", "two\nlines", "'); DROP TABLE requests; --"];
    let mut batch: Vec<_> = (0_u32..)
        .zip(names)
        .map(|(id, name)| entry(u64::from(id), label(name, name, NOON), id * 1_001))
        .collect();
    batch[0].usage.energy_uj = None;
    batch[0].price_nano = None;
    ledger.record(&mut batch);
    drop(ledger);

    let usage = usage(&path, &[By::Request, By::Tenant]);
    let keys: Vec<_> = usage.rows.iter().map(|row| row.keys.clone()).collect();
    assert_eq!(keys, names.map(|name| vec![name.to_owned(); 2]));

    let mut csv = Vec::new();
    usage.write_csv(&mut csv).expect("a vector takes all");
    assert_eq!(
        String::from_utf8(csv).expect("names are UTF-8"),
        "request,tenant,requests,prompt_tokens,cached_tokens,generated_tokens,queue_seconds,\
         device_seconds,kv_block_seconds,joules,price\n\
         \"=1+1\",\"=1+1\",1,7,3,0,0.000001500,0.000000000,0.000000000,,\n\
         \"a\"\"b,c\",\"a\"\"b,c\",1,7,3,1001,0.000001500,1.001000000,5.005000000,0.020020,\
         0.000011011\n\
         \"nul\0here\",\"nul\0here\",1,7,3,2002,0.000001500,2.002000000,10.010000000,0.040040,\
         0.000022022\n\
         \"two\nlines\",\"two\nlines\",1,7,3,3003,0.000001500,3.003000000,15.015000000,0.060060,\
         0.000033033\n\
         \"'); DROP TABLE requests; --\",\"'); DROP TABLE requests; --\",1,7,3,4004,0.000001500,\
         4.004000000,20.020000000,0.080080,0.000044044\n"
    );

    let mut json = Vec::new();
    usage.write_json(&mut json).expect("a vector takes all");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("it is JSON");
    let rows = json.as_array().expect("it is an array");
    assert_eq!(rows.len(), names.len());
    assert_eq!(
        rows[0],
        serde_json::json!({
            "request": "=1+1", "tenant": "=1+1", "requests": 1, "prompt_tokens": 7,
            "cached_tokens": 3, "generated_tokens": 0, "queue_seconds": 0.0000015,
            "device_seconds": 0.0, "kv_block_seconds": 0.0, "joules": null, "price": null,
        })
    );
    assert_eq!(rows[3]["tenant"], "two\nlines");
    assert_eq!(rows[3]["kv_block_seconds"], 15.015);
    assert_eq!(rows[3]["price"], 0.000_033_033);

    let mut table = Vec::new();
    usage.write_table(&mut table).expect("a vector takes all");
    let table = String::from_utf8(table).expect("names are UTF-8");
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 1 + names.len());
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{table}");
    let cells: Vec<_> = lines[4].split_whitespace().collect();
    assert_eq!(
        cells,
        ["two\\nlines", "two\\nlines"]
            .into_iter()
            .chain(["1", "7", "3", "3003", "0.000", "3.003", "15.015", "0.060", "0.000033033"])
            .collect::<Vec<_>>()
    );
    let cells: Vec<_> = lines[1].split_whitespace().rev().take(3).collect();
    assert_eq!(cells, ["-", "-", "0.000"]);
}
