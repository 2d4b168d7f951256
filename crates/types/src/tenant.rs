//! A tenant: whoever a share of the engine belongs to.

use std::{sync::Arc, time::Duration};

use crate::{Metering, TenantId};

/// What a tenant may use, and what it should get.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its index.
    pub id: TenantId,
    /// Its name, for people, metrics and the ledger.
    pub name: Arc<str>,
    /// Its part of the engine beside other tenants': twice the weight, twice the tokens.
    pub weight: u32,
    /// The share of the engine that it gets under contention whatever the others'
    /// weights, from 0 to 1. All tenants' together are at most 1.
    pub min_share: f64,
    /// Sequences of it that run at once.
    pub max_running: Option<usize>,
    /// Requests of it that wait.
    pub max_queued: Option<usize>,
    /// KV-cache blocks that it holds.
    pub max_kv_blocks: Option<usize>,
    /// Tokens that its requests taken within any minute may use: prompt and `max_tokens`, less
    /// what those that have ended did not use.
    pub tokens_per_minute: Option<u64>,
    /// The time to the first token that its requests should see.
    pub ttft_target: Option<Duration>,
    /// The time per output token after the first that its requests should see.
    pub tpot_target: Option<Duration>,
    /// What it pays.
    pub prices: Option<Prices>,
}

impl Tenant {
    /// The one tenant of an engine that has no others: everything is its own.
    #[must_use]
    pub fn sole() -> Self {
        Self {
            id: TenantId(0),
            name: "default".into(),
            weight: 1,
            min_share: 0.0,
            max_running: None,
            max_queued: None,
            max_kv_blocks: None,
            tokens_per_minute: None,
            ttft_target: None,
            tpot_target: None,
            prices: None,
        }
    }
}

/// Prices in billionths of a currency for a million of each: what a price list says per
/// million tokens, in units of 1e-9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// A million prompt tokens that were computed.
    pub prompt: u64,
    /// A million prompt tokens that were found in the prefix cache.
    pub cached: u64,
    /// A million generated tokens.
    pub generated: u64,
    /// A million seconds of the device.
    pub device_seconds: u64,
}

impl Prices {
    /// What was used costs so much, in billionths of the currency, rounded down.
    #[must_use]
    pub fn of(&self, usage: &Metering) -> u64 {
        let computed = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        let tokens = [
            (self.prompt, computed),
            (self.cached, usage.cached_tokens),
            (self.generated, usage.generated_tokens),
        ];
        let tokens: u128 = tokens.iter().map(|&(p, n)| u128::from(p) * u128::from(n)).sum();
        let seconds = u128::from(self.device_seconds) * u128::from(usage.device_ns) / 1_000_000_000;
        u64::try_from((tokens + seconds) / 1_000_000).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_counts_each_token_once() {
        let billion = 1_000_000_000;
        let prices = Prices {
            prompt: 2 * billion,
            cached: billion / 2,
            generated: 8 * billion,
            device_seconds: 4_000_000 * billion,
        };
        let usage = Metering {
            prompt_tokens: 3_000,
            cached_tokens: 1_000,
            generated_tokens: 500,
            device_ns: 250_000_000,
            ..Metering::default()
        };
        // 0.004 + 0.0005 + 0.004 for tokens, 1 for a quarter of a second at 4 a second.
        assert_eq!(prices.of(&usage), 1_008_500_000);
        assert_eq!(prices.of(&Metering::default()), 0);
    }
}
