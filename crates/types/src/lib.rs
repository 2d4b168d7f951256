//! The vocabulary that the serving half and the computing half of Sconce share.
//!
//! Plain data and one trait, no logic: ids, [`SamplingParams`], the
//! [`ScheduledBatch`] that a scheduler writes, the [`StepResult`] that an
//! [`Executor`] answers with. This crate depends on no other crate of Sconce.

mod batch;
mod cache_groups;
mod embedding;
mod end;
mod executor;
mod ids;
mod metering;
mod not_ready;
mod sampling_params;
mod tenant;

pub use batch::{
    AdmittedSequence, Input, RowResult, Sample, SampleOutcome, ScheduledBatch, ScheduledSequence,
    StepResult, TableEdit, TokenLogprobs, TokenMask, TokenMasks,
};
pub use cache_groups::{CacheGroups, MAX_CACHE_GROUPS, Span};
pub use embedding::EmbeddingInfo;
pub use end::End;
pub use executor::{Executor, ExecutorError};
pub use ids::{BLOCK_SIZE, BlockId, RequestId, Slot, TenantId, TokenId};
pub use metering::{EnergyMeter, MeterEntry, MeterLabel, MeterSink, Metering, SinkState};
pub use not_ready::NotReady;
pub use sampling_params::{
    InvalidSamplingParams, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKEN_IDS, SamplingParams,
};
pub use tenant::{Prices, Tenant};
