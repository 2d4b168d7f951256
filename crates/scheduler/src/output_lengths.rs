//! How long a tenant's answers are, of late.

/// Buckets of doubling width: up to 16 tokens, up to 32, … up to 16,384.
const BUCKETS: usize = 11;
/// The last weight is that of answers that `max_tokens` cut off: they show only that an
/// answer may be as long as its request allows.
const CUT: usize = BUCKETS;
/// What is known before any answer has ended: so many were cut off.
const PRIOR: f32 = 4.0;
/// An answer counts a little less after each later one.
const KEEP: f32 = 1.0 - 1.0 / 32.0;

/// A distribution of output lengths that forgets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputLengths {
    weights: [f32; BUCKETS + 1],
}

impl Default for OutputLengths {
    fn default() -> Self {
        let mut weights = [0.0; BUCKETS + 1];
        weights[CUT] = PRIOR;
        Self { weights }
    }
}

impl OutputLengths {
    /// An answer ended, by itself or because `max_tokens` cut it off.
    pub(crate) fn observe(&mut self, tokens: usize, was_cut: bool) {
        let bucket =
            if was_cut { CUT } else { (0..CUT).find(|&b| tokens <= edge(b)).unwrap_or(CUT) };
        self.weights.iter_mut().for_each(|weight| *weight *= KEEP);
        self.weights[bucket] += 1.0;
    }

    /// Tokens that nine in ten answers do not exceed, of those that may have `max_tokens`.
    pub(crate) fn high(&self, max_tokens: usize) -> usize {
        let mut left = 0.9 * self.weights.iter().sum::<f32>();
        for (bucket, weight) in self.weights[..CUT].iter().enumerate() {
            left -= weight;
            if left <= 0.0 {
                return edge(bucket).min(max_tokens);
            }
        }
        max_tokens
    }
}

/// The longest answer of a bucket.
const fn edge(bucket: usize) -> usize {
    16 << bucket
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_to_be_as_long_as_they_may_be_until_some_ended_by_themselves() {
        let mut lengths = OutputLengths::default();
        assert_eq!(lengths.high(4096), 4096);
        for _ in 0..100 {
            lengths.observe(8, true);
        }
        assert_eq!(lengths.high(64), 64, "what was cut off at 8 tokens says nothing of 64");
        for _ in 0..200 {
            lengths.observe(100, false);
        }
        assert_eq!((lengths.high(4096), lengths.high(20)), (128, 20));
        for _ in 0..10 {
            lengths.observe(4_000, false);
        }
        assert_eq!(lengths.high(8192), 4096, "a tenth and more are long now");
    }
}
