//! `sconce usage`: what the tenants of a server used.

use std::{
    io::Write as _,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use sconce::ledger::{By, Ledger, Query, parse_since};

use crate::serve::{default_ledger, tenants_file};

/// Flags of `sconce usage`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The ledger [default: sconce-usage.db beside the tenants' file]
    #[arg(long, value_name = "FILE", env = "SCONCE_LEDGER")]
    ledger: Option<PathBuf>,
    /// What to sum by: tenant, model, day, request; several with commas
    #[arg(long, value_delimiter = ',', default_value = "tenant")]
    by: Vec<By>,
    /// Requests that arrived since: 24h, 7d, 2026-11-01, 2026-11-01T10:00:00Z
    #[arg(long)]
    since: Option<String>,
    /// Requests that arrived before
    #[arg(long)]
    until: Option<String>,
    /// This tenant only
    #[arg(long)]
    tenant: Option<String>,
    /// How it is written
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
}

/// Prints what was used.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let ledger = args.ledger.clone();
    let ledger = ledger.or_else(|| tenants_file(None).as_deref().map(default_ledger));
    let ledger =
        ledger.context("name the ledger: --ledger FILE, as the server was started with")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let now = i64::try_from(now)?;
    let moment =
        |text: &Option<String>| text.as_deref().map(|text| parse_since(text, now)).transpose();
    let query = Query {
        by: args.by.clone(),
        since_unix_ms: moment(&args.since)?,
        until_unix_ms: moment(&args.until)?,
        tenant: args.tenant.clone(),
    };
    let usage = Ledger::read(&ledger)?.usage(&query)?;
    let mut text = Vec::new();
    match args.format {
        Format::Table => usage.write_table(&mut text),
        Format::Csv => usage.write_csv(&mut text),
        Format::Json => usage.write_json(&mut text),
    }?;
    // A reader that has seen enough is no failure.
    let _ = std::io::stdout().write_all(&text);
    Ok(())
}
