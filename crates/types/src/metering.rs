//! What requests use, and who is told of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{End, RequestId};

/// What a request has used so far. Times are nanoseconds: they are shared out in whole
/// ones, so that the requests' sum is what was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metering {
    /// Tokens of the prompt that were processed so far, each once: computed, or found in the
    /// prefix cache.
    pub prompt_tokens: u32,
    /// Of those, tokens found in the prefix cache.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// From arrival to the first step.
    pub queue_ns: u64,
    /// Its share of the steps that it was part of.
    pub device_ns: u64,
    /// Blocks of the KV cache held, times how long: block-nanoseconds.
    pub block_ns: u64,
    /// Its share of the energy that the device measured, in microjoules; `None` where
    /// nothing can be measured.
    pub energy_uj: Option<u64>,
}

impl Metering {
    /// What was used since `earlier`, by the same request. Queue time is left out: it is a
    /// request's own, and sums to nothing.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens - earlier.prompt_tokens,
            cached_tokens: self.cached_tokens - earlier.cached_tokens,
            generated_tokens: self.generated_tokens - earlier.generated_tokens,
            queue_ns: 0,
            device_ns: self.device_ns - earlier.device_ns,
            block_ns: self.block_ns - earlier.block_ns,
            energy_uj: self.energy_uj.map(|uj| uj - earlier.energy_uj.unwrap_or(0)),
        }
    }
}

/// Who a request is, told with its first entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterLabel {
    /// The tenant's name.
    pub tenant: Arc<str>,
    /// The request's id as its client knows it (`X-Request-Id`).
    pub request_id: Arc<str>,
    /// When it arrived, in milliseconds of Unix time.
    pub arrived_unix_ms: u64,
}

/// What a request has used, as of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterEntry {
    /// Whose.
    pub request: RequestId,
    /// Given with a request's first entry.
    pub label: Option<MeterLabel>,
    /// All it has used so far, not what was added: to apply an entry twice changes nothing.
    pub usage: Metering,
    /// The price of that, in billionths of the currency; `None` without prices.
    pub price_nano: Option<u64>,
    /// Given with the last entry.
    pub end: Option<End>,
}

/// Keeps what requests used.
pub trait MeterSink: Send {
    /// Takes a step's entries, and leaves `entries` empty. Waits until what was taken
    /// before is durable, and may return before this is: whatever ends the process, at
    /// most the last call's entries are lost.
    fn record(&mut self, entries: &mut Vec<MeterEntry>);

    /// How the keeping goes.
    fn state(&self) -> SinkState {
        SinkState::default()
    }

    /// Calls `listener` with the state now and, from any thread, whenever it changes.
    fn on_change(&mut self, listener: Box<dyn Fn(SinkState) + Send + Sync>) {
        listener(self.state());
    }
}

/// How a [`MeterSink`] fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkState {
    /// What was taken cannot be kept at the moment.
    pub failing: bool,
    /// Entries that were lost for good.
    pub lost: u64,
    /// How often where it is kept was deleted, replaced or damaged.
    pub replaced: u64,
}

/// Measures what a device uses.
pub trait EnergyMeter: Send {
    /// Energy since some moment before the meter was made, in microjoules; it never falls.
    /// `None` where the device did not answer.
    fn total_uj(&mut self) -> Option<u64>;
}
