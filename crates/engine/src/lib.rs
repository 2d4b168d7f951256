//! The engine: one thread that owns a scheduler and an executor, behind a
//! handle that any number of tasks may share.
//!
//! The thread runs one loop: take what arrived, end what was dropped, schedule
//! a step, compute it, hand each token to its request's own channel. There is
//! no lock around the scheduler or the executor, since nobody else can reach
//! them. Everything here is token ids; text is known only above.

mod admission;
mod bucket_counts;
mod constraint;
mod deliver;
mod engine;
mod engine_loop;
mod flight;
mod handle;
mod live;
mod metering;
mod metrics;
mod options;
mod predictions;
mod publish;
mod requests;
mod shared;
mod snapshot;
mod stream;
mod tenant_metrics;
mod tenants;
mod timeline;
mod times;

pub use admission::Capacity;
pub use bucket_counts::BucketCounts;
pub use constraint::{ReadySignal, StopCheck, TokenConstraint};
pub use engine::{Built, Engine, StartError};
pub use handle::{EngineHandle, EngineLimits, EngineRequest, Health, SubmitError};
pub use metrics::{HTTP_METHOD_LABELS, Metrics, TraceLoss};
pub use options::{EngineOptions, RecordSink, RecordedRequest};
pub use sconce_scheduler::{
    BlockCode, CacheGroups, FakeExecutor, PrefixKey, SchedulerConfig, SchedulingPolicy, Unfit,
};
pub use sconce_types::End;
pub use snapshot::{Snapshot, TenantSnapshot};
pub use stream::{Overload, RequestError, RequestEvent, RequestStream, TokenEvent};
pub use tenant_metrics::TenantUsage;
pub use timeline::StepTimes;
pub use times::{Preemption, RequestClock, RequestTimes};
