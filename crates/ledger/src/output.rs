//! Usage as text, for people, spreadsheets and programs.

use std::io::{self, Write};

use serde::Serializer as _;
use serde_json::{Map, Value};

use crate::{Usage, UsageRow};

/// The columns after a row's keys.
const SUMS: [&str; 9] = [
    "requests",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "queue_seconds",
    "device_seconds",
    "kv_block_seconds",
    "joules",
    "price",
];

/// A sum: an integer, of which so many last digits are decimals.
type Sum = (u128, usize);

impl UsageRow {
    /// In the order of [`SUMS`].
    fn sums(&self) -> [Option<Sum>; 9] {
        [
            Some((self.requests.into(), 0)),
            Some((self.prompt_tokens.into(), 0)),
            Some((self.cached_tokens.into(), 0)),
            Some((self.generated_tokens.into(), 0)),
            Some((self.queue_ns, 9)),
            Some((self.device_ns, 9)),
            Some((self.block_ns, 9)),
            self.energy_uj.map(|energy| (energy, 6)),
            self.price_nano.map(|price| (price, 9)),
        ]
    }
}

impl Usage {
    fn columns(&self) -> impl Iterator<Item = &'static str> {
        self.by.iter().map(|by| by.name()).chain(SUMS)
    }

    /// Writes a table for people: columns are aligned, times and energy have three
    /// decimals, and what would move a terminal's cursor is escaped.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write_table(&self, out: &mut impl Write) -> io::Result<()> {
        let header = self.columns().map(ToOwned::to_owned).collect::<Vec<_>>();
        let mut lines = vec![header];
        for row in &self.rows {
            let keys = row.keys.iter().map(|key| printable(key));
            let sums = SUMS.iter().zip(row.sums()).map(|(&name, sum)| match sum {
                None => "-".to_owned(),
                // Single requests cost little: a price keeps its digits.
                Some(sum) if name == "price" => decimal(sum),
                Some(sum) => decimal(rounded(sum, 3)),
            });
            lines.push(keys.chain(sums).collect());
        }
        let widths: Vec<_> = (0..lines[0].len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        for line in &lines {
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                if column < self.by.len() {
                    write!(out, "{gap}{cell:<width$}")?;
                } else {
                    write!(out, "{gap}{cell:>width$}")?;
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }

    /// Writes comma-separated values with a header. Keys are quoted and otherwise left as
    /// they are, numbers are exact, and what was not measured is empty.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write_csv(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", self.columns().collect::<Vec<_>>().join(","))?;
        for row in &self.rows {
            let keys = row.keys.iter().map(|key| format!("\"{}\"", key.replace('"', "\"\"")));
            let sums = row.sums().map(|sum| sum.map(decimal).unwrap_or_default());
            writeln!(out, "{}", keys.chain(sums).collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }

    /// Writes a JSON array with one object for each row; what was not measured is null.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        let objects = self.rows.iter().map(|row| {
            let keys = row.keys.iter().map(|key| Value::from(key.as_str()));
            let sums = row.sums().map(|sum| sum.map_or(Value::Null, number));
            let values = self.columns().zip(keys.chain(sums));
            values.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>()
        });
        serde_json::Serializer::new(&mut *out).collect_seq(objects)?;
        writeln!(out)
    }
}

fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            printable.extend(char.escape_default());
        } else {
            printable.push(char);
        }
    }
    printable
}

fn decimal((value, decimals): Sum) -> String {
    if decimals == 0 {
        return value.to_string();
    }
    let unit = 10_u128.pow(decimals as u32);
    format!("{}.{:0decimals$}", value / unit, value % unit)
}

/// With so many decimals, if it has more.
fn rounded((value, decimals): Sum, kept: usize) -> Sum {
    match decimals.checked_sub(kept) {
        None | Some(0) => (value, decimals),
        Some(dropped) => {
            let unit = 10_u128.pow(dropped as u32);
            ((value + unit / 2) / unit, kept)
        }
    }
}

/// The number of JSON next to it.
fn number((value, decimals): Sum) -> Value {
    match u64::try_from(value) {
        Ok(value) if decimals == 0 => value.into(),
        _ => (value as f64 / 10_f64.powi(decimals as i32)).into(),
    }
}
