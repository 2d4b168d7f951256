//! Continuous batching as a pure state machine.
//!
//! [`Scheduler`] decides what each step computes, [`BlockPool`] who holds which
//! block of the KV cache. There is no clock, thread, randomness or device in
//! here: the same calls give the same answers, so both run in a deterministic
//! simulation. [`FakeExecutor`] is the other side of that simulation.

mod admission;
mod block_map;
mod block_pool;
mod block_table;
mod claims;
mod commit;
mod config;
mod deadlines;
mod fair_queue;
mod fake_executor;
mod invariants;
mod load;
mod metering;
mod minute;
mod output_lengths;
mod preemption;
mod prefix;
mod quotas;
mod request;
mod scheduler;
mod sequence;
mod step_limit;
mod step_model;

pub use admission::{Admission, Admitted, Ask, Refused, Shortage};
pub use block_map::BlockCode;
pub use block_pool::{BlockKey, BlockPool};
pub use config::{ConfigError, SchedulerConfig, SchedulingPolicy};
pub use deadlines::Deadlines;
pub use fake_executor::{FakeExecutor, Fault};
pub use load::{Load, Prediction};
pub use metering::{RequestMeter, Shares};
pub use minute::{Minute, MinuteReservation};
pub use prefix::{BlockHash, PrefixKey};
pub use quotas::Quotas;
pub use request::{
    ByRequest, CheckedRequest, Output, Refusal, Request, SchedulerStats, TenantStats, TokenCosts,
    Unfit,
};
pub use scheduler::Scheduler;
pub use sconce_types::{CacheGroups, MAX_CACHE_GROUPS, Span};
pub use step_limit::StepLimit;
pub use step_model::{StepModel, StepWork};
