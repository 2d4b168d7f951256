//! When requests arrive.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// Times after the start, in order. The gaps between Poisson arrivals are
/// exponential; at an infinite rate all are there at once. `None` where the
/// rate is so low that a time is beyond what can be counted.
pub(crate) fn arrivals(rate: f64, count: usize, rng: &mut impl Rng) -> Option<Vec<Duration>> {
    let mut at = 0.0;
    let next = |_| {
        at -= (1.0 - rng.random::<f64>()).ln() / rate;
        Duration::try_from_secs_f64(at).ok()
    };
    (0..count).map(next).collect()
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::arrivals;

    #[test]
    fn arrivals_keep_their_rate() {
        let mut rng = StdRng::seed_from_u64(7);
        let times = arrivals(50.0, 20_000, &mut rng).expect("the rate is fine");
        assert!(times.is_sorted());
        let gaps: Vec<_> =
            times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 50.0).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let square = gaps.iter().map(|gap| gap * gap).sum::<f64>() / gaps.len() as f64;
        // Of an exponential distribution: the mean is 1, that of the squares 2.
        assert!((mean - 1.0).abs() < 0.03 && (square - 2.0).abs() < 0.15, "{mean} {square}");
        let at_once = arrivals(f64::INFINITY, 3, &mut rng).expect("the rate is fine");
        assert!(at_once.iter().all(|time| time.is_zero()));
        assert!(arrivals(1e-300, 3, &mut rng).is_none());
    }
}
