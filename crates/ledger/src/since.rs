//! Times as people write them.

use rusqlite::Connection;
use thiserror::Error;

/// A text that is no time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no time: it must be a day (2026-11-01), a moment (2026-11-01T10:00:00Z), or how \
     long ago (30m, 24h, 7d)"
)]
pub struct InvalidTime(String);

/// The time that a text names, in milliseconds of Unix time. Days begin and moments are in
/// UTC, unless a moment ends with an offset as in `+02:00`.
///
/// # Errors
/// If the text is no time.
pub fn parse_since(text: &str, now_unix_ms: i64) -> Result<i64, InvalidTime> {
    age_ms(text)
        .and_then(|age| now_unix_ms.checked_sub(age))
        .or_else(|| moment_unix_ms(text))
        .ok_or_else(|| InvalidTime(text.to_owned()))
}

fn age_ms(text: &str) -> Option<i64> {
    let units = [("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let (count, unit) = units.iter().find_map(|(name, ms)| Some((text.strip_suffix(name)?, ms)))?;
    let digits = count.bytes().all(|byte| byte.is_ascii_digit());
    count.parse::<i64>().ok().filter(|_| digits)?.checked_mul(*unit)
}

/// SQLite knows the calendar. It also takes other texts for times, as `now`, and 31 days in
/// each month: so a day must read the same as it was written.
fn moment_unix_ms(text: &str) -> Option<i64> {
    let query = "SELECT CAST(round(unixepoch(?1, 'subsec') * 1000) AS INTEGER)
                 WHERE date(substr(?1, 1, 10)) = substr(?1, 1, 10)";
    let connection = Connection::open_in_memory().ok()?;
    connection.query_row(query, [text], |row| row.get(0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, unix_ms) in [
            ("1970-01-01", 0),
            ("1969-12-31T23:59:59Z", -1_000),
            ("2000-02-29", 951_782_400_000),
            ("2026-11-01", 1_793_491_200_000),
            ("2026-11-01T10:00:00Z", 1_793_527_200_000),
            ("2026-11-01T10:00:00+02:00", 1_793_520_000_000),
            ("2026-11-01 10:00:00.125", 1_793_527_200_125),
            ("30m", NOW - 1_800_000),
            ("24h", NOW - 86_400_000),
            ("7d", NOW - 7 * 86_400_000),
        ] {
            assert_eq!(parse_since(text, NOW), Ok(unix_ms), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_by_name() {
        for text in [
            "",
            "d",
            "now",
            "yesterday",
            "12:00",
            "2461346",
            "-7d",
            "+7d",
            "1.5h",
            "7w",
            "７d",
            "2026-02-29",
            "2026-11-31",
            "2026-13-01",
            "2026-1-1",
            "2026-11-01x",
            "2026-11-01T25:00:00Z",
            "99999999999999999999d",
            "9999999999999999d",
            "\0",
            "'",
        ] {
            let error = parse_since(text, NOW).expect_err(text);
            assert!(error.to_string().starts_with(&format!("{text:?} is no time")), "{error}");
        }
    }
}
