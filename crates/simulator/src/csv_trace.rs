//! Traces from CSV files, public ones and our own.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use csv::{ReaderBuilder, StringRecord};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::trace::{
    Arrival, MAX_REQUESTS, MAX_TENANTS, MAX_TOKENS, Tenancy, Trace, TraceError, numbered_tenants,
};

/// Bytes that a line may have.
const MAX_LINE: usize = 1 << 16;
/// Bytes that a tenant's name may have.
const MAX_NAME: usize = 256;
/// Seconds that a trace may last, or count from.
const MAX_SECONDS: f64 = 1e10;
const FORMATS: &str = "TIMESTAMP, ContextTokens and GeneratedTokens (Azure), or Timestamp, \
     Request tokens and Response tokens (BurstGPT), or at, tenant, prompt_tokens and output_tokens";

/// Which column is what.
struct Columns {
    at: usize,
    /// Whether times are dates.
    is_dated: bool,
    prompt: usize,
    output: usize,
    tenant: Option<usize>,
    /// Whether rows without tokens are failures that were recorded.
    is_public: bool,
}

impl Columns {
    fn find(header: &StringRecord, tenancy: Tenancy) -> Option<Self> {
        let column = |name: &str| header.iter().position(|column| column == name);
        let three = |at, prompt, output| Some((column(at)?, column(prompt)?, column(output)?));
        let by_model = tenancy == Tenancy::ByModel;
        if let Some((at, prompt, output)) = three("TIMESTAMP", "ContextTokens", "GeneratedTokens") {
            let columns =
                Self { at, is_dated: true, prompt, output, tenant: None, is_public: true };
            return (!by_model).then_some(columns);
        }
        if let Some((at, prompt, output)) = three("Timestamp", "Request tokens", "Response tokens")
        {
            let tenant = if by_model { Some(column("Model")?) } else { None };
            return Some(Self { at, is_dated: false, prompt, output, tenant, is_public: true });
        }
        let (at, prompt, output) = three("at", "prompt_tokens", "output_tokens")?;
        let tenant = Some(column("tenant")?);
        Some(Self { at, is_dated: false, prompt, output, tenant, is_public: false })
    }
}

/// Reads a trace.
pub(crate) fn open(path: &Path, tenancy: Tenancy, seed: u64) -> Result<Trace, TraceError> {
    let io_error = |source| TraceError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    // Without quotes a record ends with its line, however the file goes on.
    let mut reader = ReaderBuilder::new()
        .quoting(false)
        .trim(csv::Trim::All)
        .from_reader(BoundedLines { inner: file, line: 0 });
    let malformed = |error: csv::Error| TraceError::Malformed {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let header = reader.headers().map_err(malformed)?.clone();
    let Some(columns) = Columns::find(&header, tenancy) else {
        let found = header.iter().collect::<Vec<_>>().join(",");
        let accepted = match tenancy {
            Tenancy::ByModel => {
                "Timestamp, Model, Request tokens and Response tokens (BurstGPT), \
                 where the tenant is the model"
            }
            Tenancy::Spread(_) => FORMATS,
        };
        return Err(TraceError::Header { path: path.to_owned(), found: shown(&found), accepted });
    };
    let mut tenants = Tenants::new(&columns, tenancy, seed)?;
    let (mut arrivals, mut left_out) = (Vec::new(), 0);
    let mut record = StringRecord::new();
    let mut day = None;
    while reader.read_record(&mut record).map_err(malformed)? {
        let line = record.position().map_or(0, csv::Position::line);
        let value_error = |column: usize, accepted: String| TraceError::Value {
            path: path.to_owned(),
            line,
            column: header[column].to_owned(),
            value: shown(&record[column]),
            accepted,
        };
        if arrivals.len() + left_out == MAX_REQUESTS {
            return Err(TraceError::TooManyRequests(path.display().to_string()));
        }
        let text = &record[columns.at];
        let at = if columns.is_dated {
            // Seconds from the first row's, so that their fractions keep their digits.
            let moment = nanoseconds(text).ok_or_else(|| {
                value_error(columns.at, "a time such as 2023-11-16 18:15:46.6805900".to_owned())
            })?;
            (moment - *day.get_or_insert(moment)) as f64 * 1e-9
        } else {
            let seconds = text.parse().ok().filter(|at| (0.0..=MAX_SECONDS).contains(at));
            seconds.ok_or_else(|| {
                value_error(columns.at, format!("seconds from 0 to {MAX_SECONDS:.0}"))
            })?
        };
        let least = u32::from(!columns.is_public);
        let tokens = |column: usize| {
            let number = record[column].parse::<u32>().ok();
            number.filter(|number| (least..=MAX_TOKENS).contains(number)).ok_or_else(|| {
                value_error(column, format!("a whole number from {least} to {MAX_TOKENS}"))
            })
        };
        let (prompt_len, output_len) = (tokens(columns.prompt)?, tokens(columns.output)?);
        if prompt_len == 0 || output_len == 0 {
            left_out += 1;
            continue;
        }
        let tenant = match columns.tenant {
            None => tenants.draw(),
            Some(column) => {
                tenants.named(&record[column]).map_err(|accepted| value_error(column, accepted))?
            }
        };
        arrivals.push(Arrival { at, tenant, prompt_len, output_len });
    }
    let source = path.display().to_string();
    Trace { arrivals, tenant_names: tenants.names, left_out }.settle(&source)
}

/// Whose a row is.
struct Tenants {
    names: Vec<String>,
    by_name: HashMap<String, u32>,
    /// For tenants that are drawn: the sums of their weights.
    sums: Vec<f64>,
    rng: StdRng,
}

impl Tenants {
    fn new(columns: &Columns, tenancy: Tenancy, seed: u64) -> Result<Self, TraceError> {
        let (mut names, mut sums) = (Vec::new(), Vec::new());
        if let (None, Tenancy::Spread(count)) = (columns.tenant, tenancy) {
            if !(1..=MAX_TENANTS).contains(&count) {
                return Err(TraceError::Tenants(count));
            }
            names = numbered_tenants(count);
            let mut sum = 0.0;
            sums.extend((1..=count).map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            }));
        }
        Ok(Self { names, by_name: HashMap::new(), sums, rng: StdRng::seed_from_u64(seed) })
    }

    fn draw(&mut self) -> u32 {
        let last = self.sums.len() - 1;
        let place = self.rng.random::<f64>() * self.sums[last];
        self.sums.partition_point(|&sum| sum <= place).min(last) as u32
    }

    /// The tenant of this name, or what would be accepted.
    fn named(&mut self, name: &str) -> Result<u32, String> {
        if let Some(&tenant) = self.by_name.get(name) {
            return Ok(tenant);
        }
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(format!("a name of 1 to {MAX_NAME} bytes"));
        }
        if self.names.len() == MAX_TENANTS {
            return Err(format!("one of the {MAX_TENANTS} tenants named before, the most taken"));
        }
        let tenant = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.by_name.insert(name.to_owned(), tenant);
        Ok(tenant)
    }
}

/// A reader that fails where a line does not end, before it fills the memory.
struct BoundedLines<R> {
    inner: R,
    line: usize,
}

impl<R: Read> Read for BoundedLines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        for line in buffer[..len].split_inclusive(|&byte| byte == b'\n') {
            self.line += line.len();
            if self.line > MAX_LINE {
                let reason = format!("a line has more than {MAX_LINE} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            if line.ends_with(b"\n") {
                self.line = 0;
            }
        }
        Ok(len)
    }
}

/// A value as far as a message needs it.
fn shown(value: &str) -> String {
    const MAX: usize = 80;
    match value.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

/// Nanoseconds of Unix time of `2023-11-16 18:15:46.6805900`, in UTC or with an offset
/// such as `+00:00`.
fn nanoseconds(text: &str) -> Option<i64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-');
    let (year, month, day) =
        (digits(date.next()?, 4)?, digits(date.next()?, 2)?, digits(date.next()?, 2)?);
    let (time, offset) = match time.find(['+', '-', 'Z']) {
        None => (time, 0),
        Some(at) if &time[at..] == "Z" => (&time[..at], 0),
        Some(at) => {
            let (hours, minutes) = time[at + 1..].split_once(':')?;
            let offset = digits(hours, 2)? * 60 + digits(minutes, 2)?;
            let is_west = time[at..].starts_with('-');
            (&time[..at], if is_west { -offset } else { offset })
        }
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':');
    let (hour, minute, second) =
        (digits(clock.next()?, 2)?, digits(clock.next()?, 2)?, digits(clock.next()?, 2)?);
    let is_time = hour < 24 && minute < 60 && second <= 60;
    if !((1970..2200).contains(&year) && (1..=12).contains(&month) && is_time) {
        return None;
    }
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let february = if is_leap { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let past = &months[..month as usize];
    if !(1..=past[past.len() - 1]).contains(&day) {
        return None;
    }
    let years = year - 1;
    // Days to 1 January 1970 by the same rule: 719,162.
    let days = years * 365 + years / 4 - years / 100 + years / 400 - 719_162;
    let days = days + past[..past.len() - 1].iter().sum::<i64>() + day - 1;
    if !(1..=9).contains(&fraction.len()) {
        return None;
    }
    let nanoseconds = digits(fraction, fraction.len())? * 10_i64.pow(9 - fraction.len() as u32);
    let seconds = ((days * 24 + hour) * 60 + minute - offset) * 60 + second;
    Some(seconds * 1_000_000_000 + nanoseconds)
}

/// A number of exactly so many digits.
fn digits(text: &str, count: usize) -> Option<i64> {
    let is_number = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}
