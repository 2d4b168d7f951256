//! Rates and latencies of the last minute.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use sconce_engine::BucketCounts;

/// What latencies are of.
const MINUTE: Duration = Duration::from_secs(60);
/// What tokens a second are of.
const SECOND: Duration = Duration::from_secs(1);

/// What has been counted up to a time.
pub(super) struct Counts {
    at: Instant,
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
    pub(super) first_token: BucketCounts,
    pub(super) between_tokens: BucketCounts,
}

impl Counts {
    pub(super) fn new(at: Instant) -> Self {
        Self {
            at,
            prompt_tokens: 0,
            generated_tokens: 0,
            first_token: BucketCounts::default(),
            between_tokens: BucketCounts::default(),
        }
    }
}

/// Counts of the last minute, from a stream's beginning on.
#[derive(Default)]
pub(super) struct Window(VecDeque<Counts>);

/// What a window says.
pub(super) struct Rates {
    /// Tokens a second, over the last second.
    pub(super) generated: f64,
    pub(super) prompt: f64,
    /// Median and 99th percentile over the window, in seconds.
    pub(super) first_token: [Option<f64>; 2],
    pub(super) between_tokens: [Option<f64>; 2],
}

impl Window {
    /// Takes the newest counts, and lets go of those of more than a minute ago.
    pub(super) fn note(&mut self, now: Counts) -> Rates {
        while self.0.front().is_some_and(|oldest| now.at - oldest.at > MINUTE) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        let (now, oldest) = (&self.0[self.0.len() - 1], &self.0[0]);
        let is_before = |counts: &&Counts| now.at - counts.at >= SECOND;
        let before = self.0.iter().rev().find(is_before).unwrap_or(oldest);
        let seconds = (now.at - before.at).as_secs_f64();
        let rate = |now: u64, before: u64| {
            if seconds > 0.0 { now.saturating_sub(before) as f64 / seconds } else { 0.0 }
        };
        let quantiles = |now: &BucketCounts, oldest: &BucketCounts| {
            [0.5, 0.99].map(|q| now.quantile_since(oldest, q))
        };
        Rates {
            generated: rate(now.generated_tokens, before.generated_tokens),
            prompt: rate(now.prompt_tokens, before.prompt_tokens),
            first_token: quantiles(&now.first_token, &oldest.first_token),
            between_tokens: quantiles(&now.between_tokens, &oldest.between_tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_second() {
        let (start, mut window) = (Instant::now(), Window::default());
        let mut note = |ms: u64, generated_tokens: u64| {
            let at = start + Duration::from_millis(ms);
            window.note(Counts { generated_tokens, ..Counts::new(at) }).generated
        };
        assert_eq!(note(0, 1000), 0.0, "one count is no rate");
        assert_eq!(note(500, 1050), 100.0);
        assert_eq!(note(1500, 1150), 100.0);
        assert_eq!(note(2000, 1150), 100.0 / 1.5);
        assert_eq!(note(2500, 1150), 0.0, "since 1500");
        assert_eq!(note(80_000, 1950), 0.0, "what is older than a minute is forgotten");
        assert_eq!(window.0.len(), 1);
    }
}
