//! What a tenant reserved of its tokens a minute.

use std::time::Instant;

/// Seconds that a reservation counts: the minute after the second that it was made in.
const SECONDS: u64 = 61;

/// A tenant's reservations of the last minute.
///
/// A request reserves what it may use at most when it is taken, and gives back what it did
/// not use when it ends. So within any minute no more is taken than the limit; what runs
/// meanwhile may have been taken in the minute before.
#[derive(Debug)]
pub(crate) struct Minute {
    origin: Instant,
    /// Tokens by the second that they were reserved in, counted from `origin`; empty until
    /// something is reserved.
    seconds: Vec<u64>,
    newest: u64,
    sum: u64,
}

/// Tokens that were reserved, and when.
#[derive(Debug)]
pub(crate) struct Reservation {
    second: u64,
    tokens: u64,
}

impl Minute {
    pub(crate) fn new(now: Instant) -> Self {
        Self { origin: now, seconds: Vec::new(), newest: 0, sum: 0 }
    }

    /// Takes tokens, whatever the limit.
    pub(crate) fn reserve(&mut self, tokens: u64, now: Instant) -> Reservation {
        self.forget(now);
        if self.seconds.is_empty() {
            self.seconds.resize(SECONDS as usize, 0);
        }
        self.seconds[slot(self.newest)] += tokens;
        self.sum += tokens;
        Reservation { second: self.newest, tokens }
    }

    /// Gives back what of a reservation was not used.
    pub(crate) fn refund(&mut self, reservation: Reservation, used: u64) {
        let Reservation { second, tokens } = reservation;
        // After a minute it counts no more.
        if second + SECONDS > self.newest {
            let unused = tokens.saturating_sub(used);
            self.seconds[slot(second)] -= unused;
            self.sum -= unused;
        }
    }

    /// Seconds until so many tokens may be reserved under a limit; none if they may be now.
    /// What is more than the limit waits for an empty minute.
    pub(crate) fn seconds_until(&mut self, tokens: u64, limit: u64, now: Instant) -> Option<f64> {
        self.forget(now);
        let mut excess = self.sum.saturating_add(tokens).checked_sub(limit).filter(|&n| n > 0)?;
        let elapsed = now.saturating_duration_since(self.origin).as_secs_f64();
        let oldest = (self.newest + 1).saturating_sub(SECONDS);
        for second in oldest..=self.newest {
            let leaves = self.seconds.get(slot(second)).copied().unwrap_or(0);
            excess = excess.saturating_sub(leaves);
            if excess == 0 {
                return Some((second + SECONDS) as f64 - elapsed);
            }
        }
        Some((self.newest + SECONDS) as f64 - elapsed)
    }

    /// Forgets what is older than a minute.
    fn forget(&mut self, now: Instant) {
        let second = now.saturating_duration_since(self.origin).as_secs();
        if self.sum > 0 {
            for gone in (self.newest + 1..=second).take(SECONDS as usize) {
                self.sum -= std::mem::take(&mut self.seconds[slot(gone)]);
            }
        }
        self.newest = self.newest.max(second);
    }
}

fn slot(second: u64) -> usize {
    (second % SECONDS) as usize
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_minute_takes_more_than_the_limit() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut minute = Minute::new(start);
        let mut taken: Vec<(u64, u64)> = Vec::new();
        // Odd steps, so that reservations fall anywhere in their seconds.
        for ms in (0..400_000).step_by(173) {
            let tokens = 1 + ms * 7 % 90;
            if minute.seconds_until(tokens, 1_000, at(ms)).is_none() {
                let reservation = minute.reserve(tokens, at(ms));
                // Every third uses a part of it only.
                let used = if ms % 3 == 0 { tokens / 2 } else { tokens };
                minute.refund(reservation, used);
                taken.push((ms, used));
            }
        }
        let window = |end: u64| {
            let of = taken.iter().filter(|(ms, _)| *ms <= end && ms + 60_000 > end);
            of.map(|(_, tokens)| tokens).sum::<u64>()
        };
        let most = taken.iter().map(|&(ms, _)| window(ms)).max();
        assert!((900..=1_000).contains(&most.expect("some are taken")), "{most:?}");
        let all: u64 = taken.iter().map(|(_, tokens)| tokens).sum();
        assert!(all > 6 * 900, "{all} tokens in under seven minutes");
    }

    #[test]
    fn a_wait_is_as_long_as_it_takes() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut minute = Minute::new(start);
        assert_eq!(minute.seconds_until(600, 600, at(0)), None);
        let first = minute.reserve(400, at(500));
        let later = minute.reserve(200, at(10_500));
        assert_eq!(minute.seconds_until(1, 600, at(11_000)), Some(50.0));
        assert_eq!(minute.seconds_until(401, 600, at(11_000)), Some(60.0));
        assert_eq!(minute.seconds_until(9_000, 600, at(11_000)), Some(61.0), "an empty minute");
        // Another limit, on the spot.
        assert_eq!(minute.seconds_until(1, 700, at(11_000)), None);
        minute.refund(later, 150);
        assert_eq!(minute.seconds_until(50, 600, at(11_000)), None);
        assert_eq!(minute.seconds_until(450, 600, at(61_000)), None);
        // After its minute there is nothing of a reservation to give back.
        minute.refund(first, 0);
        assert_eq!(minute.seconds_until(451, 600, at(61_000)), Some(10.0));
        minute.reserve(600, at(200_000));
        assert_eq!(minute.seconds_until(1, 600, at(200_000)), Some(61.0));
    }
}
