//! What a histogram counted up to some time.

use prometheus::{Histogram, core::Metric as _};

/// A histogram's buckets, to be compared with what they are later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BucketCounts {
    /// Each bucket's upper bound, ascending; beyond the last there is one more, without a bound.
    bounds: Vec<f64>,
    /// Observations up to each bound.
    cumulative: Vec<u64>,
    total: u64,
}

impl BucketCounts {
    /// The buckets as they are now.
    #[must_use]
    pub fn of(histogram: &Histogram) -> Self {
        let metric = histogram.metric();
        let histogram = metric.get_histogram();
        let buckets =
            histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
        let (bounds, cumulative) =
            buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).unzip();
        Self { bounds, cumulative, total: histogram.get_sample_count() }
    }

    /// Observations since the same histogram's `earlier` counts.
    #[must_use]
    pub fn count_since(&self, earlier: &Self) -> u64 {
        self.total.saturating_sub(earlier.total)
    }

    /// Below what a part `q` of the observations since `earlier` lie, linearly within a bucket,
    /// as PromQL's `histogram_quantile` has it; the last bound if that is beyond it. `None`
    /// without observations.
    #[must_use]
    pub fn quantile_since(&self, earlier: &Self, q: f64) -> Option<f64> {
        let total = self.count_since(earlier);
        if total == 0 {
            return None;
        }
        let rank = q * total as f64;
        let (mut bound_before, mut count_before) = (0.0, 0.0);
        for (index, (&bound, &count)) in self.bounds.iter().zip(&self.cumulative).enumerate() {
            let before = earlier.cumulative.get(index).copied().unwrap_or(0);
            let count = count.saturating_sub(before) as f64;
            if count >= rank && count > count_before {
                let part = (rank - count_before) / (count - count_before);
                return Some(bound_before + (bound - bound_before) * part);
            }
            (bound_before, count_before) = (bound, count);
        }
        self.bounds.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;

    use super::*;

    #[test]
    fn quantiles_are_of_what_came_since() {
        let opts = HistogramOpts::new("a", "a").buckets(vec![1.0, 2.0, 4.0]);
        let histogram = Histogram::with_opts(opts).expect("the buckets ascend");
        let none = BucketCounts::default();
        assert_eq!(BucketCounts::of(&histogram).quantile_since(&none, 0.5), None);
        (0..100).for_each(|_| histogram.observe(0.5));
        let earlier = BucketCounts::of(&histogram);
        assert_eq!(earlier.quantile_since(&none, 0.5), Some(0.5));
        assert_eq!(earlier.quantile_since(&earlier, 0.5), None, "nothing came");
        [1.5, 1.5, 3.0, 9.0].into_iter().for_each(|seconds| histogram.observe(seconds));
        let later = BucketCounts::of(&histogram);
        assert_eq!(later.count_since(&earlier), 4);
        let quantile = |q| later.quantile_since(&earlier, q);
        assert_eq!(quantile(0.25), Some(1.5));
        assert_eq!(quantile(0.5), Some(2.0));
        assert_eq!(quantile(0.75), Some(4.0));
        assert_eq!(quantile(0.99), Some(4.0), "beyond the last bound");
    }
}
