//! Reports for people.

use std::fmt;

use crate::{Percentiles, Report, report::Counts};

/// Tenants that are shown: those that asked for most.
const TENANTS_SHOWN: usize = 12;

/// Reports side by side, each under its label.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a [(&'a str, &'a Report)]);

type Cell = fn(&Report) -> String;

const ROWS: &[(&str, Cell)] = &[
    ("goodput, requests/s", |r| number(r.goodput.requests)),
    ("goodput, tokens/s", |r| number(r.goodput.tokens)),
    ("throughput, requests/s", |r| number(r.throughput.requests)),
    ("throughput, tokens/s", |r| number(r.throughput.tokens)),
    ("requests", |r| r.counts.arrived.to_string()),
    ("  finished", |r| part(r.counts.finished, r.counts.arrived)),
    ("  that met their targets", |r| part(r.counts.met, r.counts.arrived)),
    ("  refused: too late", |r| part(r.counts.too_late, r.counts.arrived)),
    ("  refused: too slow", |r| part(r.counts.too_slow, r.counts.arrived)),
    ("  refused: queue full", |r| part(r.counts.queue_full, r.counts.arrived)),
    ("  refused: never fits", |r| part(r.counts.never_fits, r.counts.arrived)),
    ("  accepted, then late", |r| part(r.counts.late, r.counts.accepted)),
    ("  accepted, timed out", |r| part(r.counts.timed_out, r.counts.accepted)),
    ("TTFT p50", |r| time(r.ttft, |p| p.p50)),
    ("TTFT p90", |r| time(r.ttft, |p| p.p90)),
    ("TTFT p99", |r| time(r.ttft, |p| p.p99)),
    ("TPOT p50", |r| time(r.tpot, |p| p.p50)),
    ("TPOT p90", |r| time(r.tpot, |p| p.p90)),
    ("TPOT p99", |r| time(r.tpot, |p| p.p99)),
    ("Jain's index", |r| format!("{:.3}", r.jain)),
    ("  among the backlogged", |r| {
        r.jain_backlogged.map_or("-".to_owned(), |jain| format!("{jain:.3}"))
    }),
    ("predicted/actual TTFT", |r| {
        r.prediction.map_or("-".to_owned(), |p| format!("{:.2}", p.ratio_of_means))
    }),
    ("preemptions", |r| r.preemptions.to_string()),
    ("steps", |r| r.steps.to_string()),
];

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = std::iter::once(String::new());
        let mut lines = vec![head.chain(self.0.iter().map(|(label, _)| (*label).into())).collect()];
        for (name, cell) in ROWS {
            let cells = self.0.iter().map(|(_, report)| cell(report));
            lines.push(std::iter::once((*name).to_owned()).chain(cells).collect());
        }
        write_aligned(f, &lines)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Table(&[("", self)]).fmt(f)?;
        let mut tenants: Vec<_> = self.tenants.iter().collect();
        tenants.sort_by(|a, b| b.asked.total_cmp(&a.asked));
        let head = ["tenant", "weight", "share", "requests", "met", "refused", "late", "TTFT p99"];
        let mut lines = vec![head.map(ToOwned::to_owned).to_vec()];
        lines.extend(tenants.iter().take(TENANTS_SHOWN).map(|tenant| {
            let Counts { arrived, met, late, .. } = tenant.counts;
            vec![
                tenant.name.clone(),
                tenant.weight.to_string(),
                format!("{:.1} %", 100.0 * tenant.share),
                arrived.to_string(),
                met.to_string(),
                tenant.counts.refused().to_string(),
                late.to_string(),
                time(tenant.ttft, |p| p.p99),
            ]
        }));
        writeln!(f)?;
        write_aligned(f, &lines)?;
        match tenants.len().saturating_sub(TENANTS_SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "and {more} tenants more"),
        }
    }
}

/// Writes columns, the first to the left and the others to the right.
fn write_aligned(f: &mut fmt::Formatter<'_>, lines: &[Vec<String>]) -> fmt::Result {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for line in lines {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            text += &match column {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        writeln!(f, "{}", text.trim_end())?;
    }
    Ok(())
}

fn number(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn part(count: usize, of: usize) -> String {
    format!("{count} ({:.1} %)", 100.0 * count as f64 / of.max(1) as f64)
}

fn time(percentiles: Option<Percentiles>, which: fn(Percentiles) -> f64) -> String {
    percentiles.map_or("-".to_owned(), |percentiles| match which(percentiles) {
        seconds if seconds < 1.0 => format!("{:.1} ms", 1e3 * seconds),
        seconds => format!("{seconds:.2} s"),
    })
}
