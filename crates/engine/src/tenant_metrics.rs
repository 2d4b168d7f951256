//! What the engine counts of each tenant: what it got, and what it used.

use prometheus::{
    CounterVec, Histogram, HistogramVec, IntCounterVec, IntGaugeVec,
    core::{AtomicF64, AtomicU64, GenericCounter},
};
use prometheus::{IntCounter, IntGauge};
use sconce_types::Metering;

use crate::{
    BucketCounts,
    metrics::{Registrar, TTFT_BUCKETS},
};

const TENANT: &[&str] = &["tenant"];

/// All tenants' metrics, by the label `tenant`. Tenants are named by who runs the server,
/// so their number is bounded.
#[derive(Debug)]
pub(crate) struct TenantFamilies {
    running: IntGaugeVec,
    waiting: IntGaugeVec,
    refused: IntCounterVec,
    prompt_tokens: IntCounterVec,
    cached_tokens: IntCounterVec,
    generation_tokens: IntCounterVec,
    device_seconds: CounterVec,
    kv_block_seconds: CounterVec,
    energy_joules: CounterVec,
    time_to_first_token: HistogramVec,
}

/// One tenant's.
#[derive(Debug)]
pub(crate) struct TenantMetrics {
    pub(crate) running: IntGauge,
    pub(crate) waiting: IntGauge,
    /// Requests that were not taken, or given up before their first token.
    pub(crate) refused: IntCounter,
    pub(crate) time_to_first_token: Histogram,
    prompt_tokens: GenericCounter<AtomicU64>,
    cached_tokens: GenericCounter<AtomicU64>,
    generation_tokens: GenericCounter<AtomicU64>,
    device_seconds: GenericCounter<AtomicF64>,
    kv_block_seconds: GenericCounter<AtomicF64>,
    energy_joules: GenericCounter<AtomicF64>,
}

/// What a tenant has used since the engine's start, as its metrics say.
#[derive(Clone, Debug, Default)]
pub struct TenantUsage {
    /// Prompt tokens processed.
    pub prompt_tokens: u64,
    /// Of those, tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Its share of the steps' time.
    pub device_seconds: f64,
    /// Its share of the device's energy; 0 where it cannot be measured.
    pub joules: f64,
    /// Seconds from submission to the first token.
    pub time_to_first_token: BucketCounts,
}

impl TenantFamilies {
    pub(crate) fn new(r: &Registrar<'_>) -> Self {
        let ints =
            |name: &str, help: &str| r.register(IntCounterVec::new(r.opts(name, help), TENANT));
        let floats =
            |name: &str, help: &str| r.register(CounterVec::new(r.opts(name, help), TENANT));
        let gauges =
            |name: &str, help: &str| r.register(IntGaugeVec::new(r.opts(name, help), TENANT));
        Self {
            running: gauges("sconce:tenant_requests_running", "A tenant's running sequences."),
            waiting: gauges("sconce:tenant_requests_waiting", "A tenant's waiting requests."),
            refused: ints(
                "sconce:tenant_requests_refused_total",
                "A tenant's requests that were refused for load or limits.",
            ),
            prompt_tokens: ints(
                "sconce:tenant_prompt_tokens_total",
                "Prompt tokens processed for a tenant.",
            ),
            cached_tokens: ints(
                "sconce:tenant_cached_tokens_total",
                "Of those, tokens found in the prefix cache.",
            ),
            generation_tokens: ints(
                "sconce:tenant_generation_tokens_total",
                "Tokens generated for a tenant.",
            ),
            device_seconds: floats(
                "sconce:tenant_device_seconds_total",
                "A tenant's share of the steps' time.",
            ),
            kv_block_seconds: floats(
                "sconce:tenant_kv_block_seconds_total",
                "KV-cache blocks that a tenant held, times how long.",
            ),
            energy_joules: floats(
                "sconce:tenant_energy_joules_total",
                "A tenant's share of the device's energy; 0 where it cannot be measured.",
            ),
            time_to_first_token: r.histogram_vec(
                "sconce:tenant_time_to_first_token_seconds",
                "Time to first token of a tenant's requests.",
                TENANT,
                TTFT_BUCKETS,
            ),
        }
    }

    pub(crate) fn of(&self, name: &str) -> TenantMetrics {
        let label = &[name];
        TenantMetrics {
            running: self.running.with_label_values(label),
            waiting: self.waiting.with_label_values(label),
            refused: self.refused.with_label_values(label),
            time_to_first_token: self.time_to_first_token.with_label_values(label),
            prompt_tokens: self.prompt_tokens.with_label_values(label),
            cached_tokens: self.cached_tokens.with_label_values(label),
            generation_tokens: self.generation_tokens.with_label_values(label),
            device_seconds: self.device_seconds.with_label_values(label),
            kv_block_seconds: self.kv_block_seconds.with_label_values(label),
            energy_joules: self.energy_joules.with_label_values(label),
        }
    }
}

impl TenantMetrics {
    /// Counts what was used since the last time.
    pub(crate) fn add(&self, used: &Metering) {
        let int = |counter: &GenericCounter<AtomicU64>, n: u32| {
            if n > 0 {
                counter.inc_by(u64::from(n));
            }
        };
        int(&self.prompt_tokens, used.prompt_tokens);
        int(&self.cached_tokens, used.cached_tokens);
        int(&self.generation_tokens, used.generated_tokens);
        self.device_seconds.inc_by(used.device_ns as f64 * 1e-9);
        self.kv_block_seconds.inc_by(used.block_ns as f64 * 1e-9);
        if let Some(uj) = used.energy_uj {
            self.energy_joules.inc_by(uj as f64 * 1e-6);
        }
    }
    /// What it counts now.
    pub(crate) fn usage(&self) -> TenantUsage {
        TenantUsage {
            prompt_tokens: self.prompt_tokens.get(),
            cached_tokens: self.cached_tokens.get(),
            generated_tokens: self.generation_tokens.get(),
            device_seconds: self.device_seconds.get(),
            joules: self.energy_joules.get(),
            time_to_first_token: BucketCounts::of(&self.time_to_first_token),
        }
    }
}
