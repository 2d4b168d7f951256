//! Who asks for what, and when.

use std::{io, path::PathBuf};

use crate::{csv_trace, synthetic};

/// Requests that a trace may hold.
pub const MAX_REQUESTS: usize = 50_000_000;
/// Tenants that a trace may name.
pub const MAX_TENANTS: usize = 100_000;
/// Tokens that a prompt or an output may have.
pub const MAX_TOKENS: u32 = 10_000_000;

/// A request that comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Seconds since the first.
    pub at: f64,
    /// Whose it is, an index into [`Trace::tenant_names`].
    pub tenant: u32,
    /// Tokens of its prompt, at least 1.
    pub prompt_len: u32,
    /// Tokens of its answer, at least 1.
    pub output_len: u32,
}

/// Requests in the order in which they come.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) tenant_names: Vec<String>,
    pub(crate) left_out: usize,
}

/// Whose the requests of a public trace are, which do not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    /// So many tenants', the k-th of which sends 1/k of what the first does (Zipf's law).
    Spread(usize),
    /// The tenant is the model that was asked: BurstGPT's column `Model`.
    ByModel,
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is of no known format.
    #[error("{}: the header is `{found}`, but must hold {accepted}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Its first line.
        found: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// A value is not what its column holds.
    #[error("{} line {line}: {column} is `{value}`, but must be {accepted}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The column's name.
        column: String,
        /// What it holds.
        value: String,
        /// What would be accepted.
        accepted: String,
    },
    /// A line is not one of a table.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A synthetic trace's specification is wrong.
    #[error("the trace `{spec}`: {key} is `{value}`, but must be {accepted}")]
    Spec {
        /// The specification.
        spec: String,
        /// The part of it.
        key: String,
        /// What it says.
        value: String,
        /// What would be accepted.
        accepted: String,
    },
    /// It has no request.
    #[error("the trace `{0}` holds no request that was answered; at least 1 is needed")]
    Empty(String),
    /// It has too many.
    #[error("the trace `{0}` holds more than {MAX_REQUESTS} requests, the most that are taken")]
    TooManyRequests(String),
    /// Tenancy that cannot be.
    #[error("{0} tenants share the trace, but it must be from 1 to {MAX_TENANTS}")]
    Tenants(usize),
}

impl Trace {
    /// Reads a file, or makes up what a specification says.
    ///
    /// A specification is `poisson:` or `burst:` and `key=value` pairs between commas:
    /// `rate` (requests a second of all tenants together, on average; needed), `seconds`
    /// (needed), `tenants` (1), `prompt` and `output` (their mean tokens: 200, 100),
    /// `spread` of their lognormal lengths (the logarithm's deviation, 0.5; 0 makes all
    /// alike), `flood` (the first tenant sends so many times what another does: 1).
    /// `burst` has phases of `on` seconds (10) with requests and `off` seconds (30) without.
    ///
    /// A file is CSV, in the format of the Azure LLM inference traces
    /// (`TIMESTAMP,ContextTokens,GeneratedTokens`), of BurstGPT (`Timestamp`, `Model`,
    /// `Request tokens`, `Response tokens` and others), or `at,tenant,prompt_tokens,
    /// output_tokens` with seconds and names; columns go by name. Rows of the public traces
    /// without prompt or answer are failures and left out. `tenancy` says whose the others
    /// are; what it draws, like what a specification draws, goes by `seed`.
    ///
    /// # Errors
    /// What cannot be read or is not of these formats, with line, column and value; too many
    /// requests or tenants; none at all.
    pub fn load(source: &str, tenancy: Tenancy, seed: u64) -> Result<Self, TraceError> {
        match source.split_once(':') {
            Some((kind @ ("poisson" | "burst"), _)) => synthetic::generate(source, kind, seed),
            _ => csv_trace::open(source.as_ref(), tenancy, seed),
        }
    }

    /// The requests, by time, the first at 0.
    #[must_use]
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// The tenants' names, by index.
    #[must_use]
    pub fn tenant_names(&self) -> &[String] {
        &self.tenant_names
    }

    /// Rows that were left out because they failed when they were recorded.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Seconds from the first to the last.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.arrivals.last().map_or(0.0, |last| last.at)
    }

    /// Orders the requests and counts time from the first.
    pub(crate) fn settle(mut self, source: &str) -> Result<Self, TraceError> {
        self.arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
        let Some(first) = self.arrivals.first() else {
            return Err(TraceError::Empty(source.to_owned()));
        };
        let start = first.at;
        for arrival in &mut self.arrivals {
            arrival.at -= start;
        }
        Ok(self)
    }
}

/// Names of tenants that have none.
pub(crate) fn numbered_tenants(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("tenant-{number}")).collect()
}
