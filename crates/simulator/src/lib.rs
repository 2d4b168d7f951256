//! The scheduler in virtual time, driven by traces: how policies and admission compare,
//! before they run, for thousands of tenants and up to 10,000 engines behind a router.
//!
//! [`simulate`] plays a [`Trace`] on engines that are the real
//! [`Scheduler`](sconce_scheduler::Scheduler) under a virtual clock; a [`Device`] says how
//! long their steps take. [`compare`] does so for several policies; a [`Report`] says what
//! came of it. The same seed gives the same report.
//!
//! What is not simulated: the prefix cache (traces do not say what prompts hold), limits of
//! tokens a minute, failures, and the time between an engine and its clients.

mod admission;
mod config;
mod csv_trace;
mod device;
mod engine;
mod fairness;
mod plot;
mod report;
mod router;
mod synthetic;
mod table;
mod tally;
mod trace;
mod world;

pub use config::{ConfigError, Policy, SimulationConfig, UnknownPolicy};
pub use device::{Device, DeviceError};
pub use fairness::jain_index;
pub use plot::{PlotError, plot};
pub use report::{Counts, Percentiles, PredictionError, Rate, Report, TenantReport};
pub use router::{Router, UnknownRouter};
pub use table::Table;
pub use trace::{Arrival, MAX_REQUESTS, MAX_TENANTS, MAX_TOKENS, Tenancy, Trace, TraceError};
pub use world::{compare, simulate};
