//! What a tenant has reserved of its tokens a minute.

/// Seconds that a reservation counts: the minute after the second that it was made in.
const SECONDS: u64 = 61;

/// A tenant's limit of tokens a minute, and its reservations of the last minute.
///
/// A request reserves the most that it may use when it is taken, and gives back what it did
/// not use when it ends. So within any minute no more is taken than the limit; what runs
/// meanwhile may have been taken in the minute before. Times are in seconds from any origin.
#[derive(Clone, Debug, Default)]
pub struct Minute {
    limit: Option<u64>,
    /// Tokens by the second that they were reserved in; empty until something is reserved.
    seconds: Vec<u64>,
    newest: u64,
    sum: u64,
}

/// Tokens that a request has reserved, and when.
#[derive(Debug)]
#[must_use = "what is not used must be given back"]
pub struct MinuteReservation {
    second: u64,
    tokens: u64,
}

impl Minute {
    /// Takes another limit. What was reserved stays reserved.
    pub fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    /// The tokens that may be reserved in a minute, if they are limited.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Reserves tokens, whatever the limit.
    pub fn reserve(&mut self, tokens: u64, now: f64) -> MinuteReservation {
        self.forget(now);
        if self.seconds.is_empty() {
            self.seconds.resize(SECONDS as usize, 0);
        }
        self.seconds[slot(self.newest)] += tokens;
        self.sum += tokens;
        MinuteReservation { second: self.newest, tokens }
    }

    /// Gives back what of a reservation was not used.
    pub fn refund(&mut self, reservation: MinuteReservation, used: u64) {
        let MinuteReservation { second, tokens } = reservation;
        // After a minute it counts no more.
        if second + SECONDS > self.newest {
            let unused = tokens.saturating_sub(used);
            self.seconds[slot(second)] -= unused;
            self.sum -= unused;
        }
    }

    /// Seconds until so many tokens may be reserved; none if they may be now. What is more
    /// than the limit waits for an empty minute.
    pub fn seconds_until(&mut self, tokens: u64, now: f64) -> Option<f64> {
        let limit = self.limit?;
        self.forget(now);
        let mut excess = self.sum.saturating_add(tokens).checked_sub(limit).filter(|&n| n > 0)?;
        let oldest = (self.newest + 1).saturating_sub(SECONDS);
        for second in oldest..=self.newest {
            let leaves = self.seconds.get(slot(second)).copied().unwrap_or(0);
            excess = excess.saturating_sub(leaves);
            if excess == 0 {
                return Some((second + SECONDS) as f64 - now);
            }
        }
        Some((self.newest + SECONDS) as f64 - now)
    }

    /// Forgets what is older than a minute.
    fn forget(&mut self, now: f64) {
        let second = now as u64;
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
    use proptest::prelude::*;

    use super::*;

    fn minute(limit: u64) -> Minute {
        Minute { limit: Some(limit), ..Minute::default() }
    }

    /// A request of so many tokens, so many milliseconds after the one before; it uses a
    /// part of them and ends before so many others have come.
    #[derive(Clone, Copy, Debug)]
    struct Asked {
        after_ms: u64,
        tokens: u64,
        used: u64,
        ends_after: usize,
    }

    fn asked() -> impl Strategy<Value = Asked> {
        // Pauses of up to a second, and now and then of more than a minute.
        let pause = prop_oneof![9 => 0_u64..1_000, 1 => 0_u64..70_000];
        (pause, 1_u64..400, 0_u64..=400, 0_usize..20).prop_map(
            |(after_ms, tokens, used, ends_after)| {
                let used = used.min(tokens);
                Asked { after_ms, tokens, used, ends_after }
            },
        )
    }

    proptest! {
        /// Whatever ends when: what was reserved within any minute, less what was given
        /// back of it, is at most the limit; and a wait that is told is long enough.
        #[test]
        fn no_minute_takes_more_than_the_limit(
            requests in proptest::collection::vec(asked(), 1..300),
            limit in 300_u64..3_000,
        ) {
            let mut minute = minute(limit);
            // The time of each request that was taken, and what it counts for.
            let mut taken: Vec<(u64, u64)> = Vec::new();
            let mut running = Vec::new();
            let mut ms = 0;
            for (index, request) in requests.into_iter().enumerate() {
                ms += request.after_ms;
                let now = ms as f64 / 1e3;
                if let Some(wait) = minute.seconds_until(request.tokens, now) {
                    prop_assert!(wait > 0.0 && wait <= SECONDS as f64, "{}", wait);
                    let mut later = minute.clone();
                    let is_never = request.tokens > limit;
                    prop_assert!(is_never == later.seconds_until(request.tokens, now + wait).is_some());
                } else {
                    let reservation = minute.reserve(request.tokens, now);
                    taken.push((ms, request.tokens));
                    let end = index + request.ends_after;
                    running.push((end, taken.len() - 1, request.used, Some(reservation)));
                }
                for (end, position, used, reservation) in &mut running {
                    if *end <= index && let Some(reservation) = reservation.take() {
                        minute.refund(reservation, *used);
                        taken[*position].1 = *used;
                    }
                }
                running.retain(|(.., reservation)| reservation.is_some());
                let counted = taken.iter().filter(|(at, _)| at + 60_000 > ms);
                let sum: u64 = counted.map(|(_, tokens)| tokens).sum();
                prop_assert!(sum <= limit, "{} of {} tokens at {} ms", sum, limit, ms);
            }
        }
    }

    #[test]
    fn a_limit_is_made_use_of() {
        let mut minute = minute(1_000);
        let mut all = 0;
        for index in 0..2_400_u64 {
            let (tokens, now) = (1 + index * 7 % 90, index as f64 * 0.173);
            if minute.seconds_until(tokens, now).is_none() {
                let reservation = minute.reserve(tokens, now);
                // Every third uses a part of it only.
                let used = if index % 3 == 0 { tokens / 2 } else { tokens };
                minute.refund(reservation, used);
                all += used;
            }
        }
        assert!(all > 6 * 900, "{all} tokens in under seven minutes");
    }

    #[test]
    fn a_wait_is_as_long_as_it_takes() {
        let mut minute = minute(600);
        assert_eq!(minute.seconds_until(600, 0.0), None);
        let first = minute.reserve(400, 0.5);
        let later = minute.reserve(200, 10.5);
        assert_eq!(minute.seconds_until(1, 11.0), Some(50.0));
        assert_eq!(minute.seconds_until(401, 11.0), Some(60.0));
        assert_eq!(minute.seconds_until(9_000, 11.0), Some(61.0), "an empty minute");
        // Another limit, on the spot.
        minute.set_limit(Some(700));
        assert_eq!(minute.seconds_until(1, 11.0), None);
        minute.set_limit(None);
        assert_eq!(minute.seconds_until(9_000, 11.0), None);
        minute.set_limit(Some(600));
        minute.refund(later, 150);
        assert_eq!(minute.seconds_until(50, 11.0), None);
        assert_eq!(minute.seconds_until(450, 61.0), None);
        // After its minute there is nothing of a reservation to give back.
        minute.refund(first, 0);
        assert_eq!(minute.seconds_until(451, 61.0), Some(10.0));
        let _kept = minute.reserve(600, 200.0);
        assert_eq!(minute.seconds_until(1, 200.0), Some(61.0));
    }
}
