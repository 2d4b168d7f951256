//! What came of a load: percentiles, rates, goodput.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Serialize, Serializer};

/// One answered request.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Sample {
    pub(crate) prompt_tokens: usize,
    pub(crate) output_tokens: usize,
    pub(crate) asked_tokens: usize,
    #[serde(rename = "ttft_ms", serialize_with = "as_ms")]
    pub(crate) ttft: Duration,
    #[serde(rename = "itl_ms", serialize_with = "all_as_ms")]
    pub(crate) itl: Vec<Duration>,
    #[serde(rename = "e2el_ms", serialize_with = "as_ms")]
    pub(crate) e2el: Duration,
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn as_ms<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(ms(*duration))
}

fn all_as_ms<S: Serializer>(durations: &[Duration], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(durations.iter().map(|duration| ms(*duration)))
}

impl Sample {
    /// Time per output token after the first; one token has none.
    fn tpot(&self) -> Option<Duration> {
        let rest = u32::try_from(self.output_tokens).ok()?.checked_sub(1).filter(|&n| n > 0)?;
        Some((self.e2el - self.ttft) / rest)
    }
}

/// Limits in ms that a request must keep to count for goodput.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objectives {
    ttft: Option<f64>,
    tpot: Option<f64>,
    e2el: Option<f64>,
}

impl Objectives {
    /// From names as the flag has them; the last of a name counts.
    pub(crate) fn new(pairs: &[(String, f64)]) -> Self {
        let find = |name| pairs.iter().rev().find(|(n, _)| n == name).map(|&(_, ms)| ms);
        Self { ttft: find("ttft"), tpot: find("tpot"), e2el: find("e2el") }
    }

    fn given(&self) -> bool {
        self.ttft.or(self.tpot).or(self.e2el).is_some()
    }

    fn met_by(&self, sample: &Sample) -> bool {
        let within = |limit: Option<f64>, time: Duration| limit.is_none_or(|l| ms(time) <= l);
        within(self.ttft, sample.ttft)
            && within(self.tpot, sample.tpot().unwrap_or_default())
            && within(self.e2el, sample.e2el)
    }
}

/// Mean and percentiles, in ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 90 % are no larger.
    pub p90: f64,
    /// 95 % are no larger.
    pub p95: f64,
    /// 99 % are no larger.
    pub p99: f64,
}

impl Summary {
    /// `None` of nothing.
    fn of(values: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut values: Vec<f64> = values.map(ms).collect();
        values.sort_unstable_by(f64::total_cmp);
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let at = |p| percentile(&values, p);
        Some(Self { mean, p50: at(50.0), p90: at(90.0), p95: at(95.0), p99: at(99.0) })
    }
}

/// Between the two nearest ranks, as numpy does by default.
///
/// # Panics
/// If `sorted` is empty.
#[must_use]
pub fn percentile(sorted: &[f64], p: f64) -> f64 {
    let rank = p / 100.0 * (sorted.len() - 1) as f64;
    let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * rank.fract()
}

/// What came of a load; rates are per second.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Requests at once, where limited.
    pub max_concurrency: Option<usize>,
    /// Requests a second offered; `None` is as fast as they were answered.
    pub request_rate: Option<f64>,
    /// Requests answered.
    pub completed: usize,
    /// Errors with how often each came.
    pub errors: BTreeMap<String, usize>,
    /// Answers with fewer tokens than asked for.
    pub short_answers: usize,
    /// Prompt tokens of the answered requests, by the server's count.
    pub total_input_tokens: usize,
    /// Generated tokens, by the server's count.
    pub total_output_tokens: usize,
    /// Seconds from the first request to the last answer.
    pub duration_s: f64,
    /// Requests a second.
    pub request_throughput: f64,
    /// Requests a second that met every objective, where any was given.
    pub request_goodput: Option<f64>,
    /// Generated tokens a second.
    pub output_throughput: f64,
    /// Prompt and generated tokens a second.
    pub total_token_throughput: f64,
    /// Time to the first chunk with content.
    pub ttft_ms: Option<Summary>,
    /// Time per output token after the first.
    pub tpot_ms: Option<Summary>,
    /// Gaps between chunks with content.
    pub itl_ms: Option<Summary>,
    /// Time to the last chunk with content.
    pub e2el_ms: Option<Summary>,
    /// Each request's own figures.
    #[serde(skip_serializing_if = "Samples::are_left_out")]
    pub(crate) samples: Samples,
}

/// What each request gave.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Samples {
    pub(crate) of_requests: Vec<Sample>,
    /// Whether the report's JSON has them.
    #[serde(skip)]
    pub(crate) are_saved: bool,
}

impl Samples {
    fn are_left_out(&self) -> bool {
        !self.are_saved
    }
}

impl Report {
    pub(crate) fn new(
        model: &str,
        samples: &[Sample],
        errors: BTreeMap<String, usize>,
        elapsed: Duration,
        objectives: &Objectives,
    ) -> Self {
        let seconds = elapsed.as_secs_f64();
        let input: usize = samples.iter().map(|sample| sample.prompt_tokens).sum();
        let output: usize = samples.iter().map(|sample| sample.output_tokens).sum();
        let good = samples.iter().filter(|sample| objectives.met_by(sample)).count();
        Self {
            model: model.to_owned(),
            max_concurrency: None,
            request_rate: None,
            completed: samples.len(),
            errors,
            short_answers: samples.iter().filter(|s| s.output_tokens < s.asked_tokens).count(),
            total_input_tokens: input,
            total_output_tokens: output,
            duration_s: seconds,
            request_throughput: samples.len() as f64 / seconds,
            request_goodput: objectives.given().then(|| good as f64 / seconds),
            output_throughput: output as f64 / seconds,
            total_token_throughput: (input + output) as f64 / seconds,
            ttft_ms: Summary::of(samples.iter().map(|sample| sample.ttft)),
            tpot_ms: Summary::of(samples.iter().filter_map(Sample::tpot)),
            itl_ms: Summary::of(samples.iter().flat_map(|sample| sample.itl.iter().copied())),
            e2el_ms: Summary::of(samples.iter().map(|sample| sample.e2el)),
            samples: Samples::default(),
        }
    }
}

/// A table for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "completed             {:>12}", self.completed)?;
        writeln!(f, "prompt tokens         {:>12}", self.total_input_tokens)?;
        writeln!(f, "generated tokens      {:>12}", self.total_output_tokens)?;
        writeln!(f, "duration, s           {:>12.2}", self.duration_s)?;
        writeln!(f, "requests/s            {:>12.2}", self.request_throughput)?;
        if let Some(goodput) = self.request_goodput {
            writeln!(f, "  within objectives   {goodput:>12.2}")?;
        }
        writeln!(f, "output tokens/s       {:>12.2}", self.output_throughput)?;
        writeln!(f, "total tokens/s        {:>12.2}", self.total_token_throughput)?;
        let [mean, p50, p90, p95, p99] = ["mean", "p50", "p90", "p95", "p99"];
        write!(f, "{:<8}{mean:>11}{p50:>11}{p90:>11}{p95:>11}{p99:>11}", "ms")?;
        let rows = [
            ("TTFT", self.ttft_ms),
            ("TPOT", self.tpot_ms),
            ("ITL", self.itl_ms),
            ("E2EL", self.e2el_ms),
        ];
        for (name, summary) in rows {
            let Some(Summary { mean, p50, p90, p95, p99 }) = summary else { continue };
            write!(f, "\n{name:<8}{mean:>11.2}{p50:>11.2}{p90:>11.2}{p95:>11.2}{p99:>11.2}")?;
        }
        if self.short_answers > 0 {
            let Self { short_answers, completed, .. } = self;
            write!(f, "\n{short_answers} of {completed} answers have fewer tokens than asked for")?;
        }
        for (error, count) in &self.errors {
            write!(f, "\n{count} failed: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The definition: at least p percent of the values are no larger than
        /// the rank above, and at least 100 - p percent no smaller than the one below.
        #[test]
        fn percentiles_split_the_values(
            mut values in prop::collection::vec(-1e3..1e3, 1..40),
            p in 0.0..=100.0,
        ) {
            values.sort_unstable_by(f64::total_cmp);
            let at = percentile(&values, p);
            let share = |count: usize| 100.0 * count as f64 / values.len() as f64;
            let step = share(1);
            prop_assert!(share(values.iter().filter(|value| **value <= at).count()) >= p - step);
            prop_assert!(share(values.iter().filter(|value| **value >= at).count()) >= 100.0 - p - step);
            prop_assert!((values[0]..=values[values.len() - 1]).contains(&at));
        }
    }

    #[test]
    fn percentiles_lie_between_the_nearest_ranks() {
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 50.0), 4.0);
        assert_eq!(percentile(&values, 90.0), 8.0 + 0.6 * 8.0);
        assert_eq!(percentile(&values, 100.0), 16.0);
        assert_eq!(percentile(&[3.0], 99.0), 3.0);
    }

    fn sample(ttft: u64, gap: u64, tokens: usize) -> Sample {
        let itl = vec![Duration::from_millis(gap); tokens - 1];
        let ttft = Duration::from_millis(ttft);
        let e2el = ttft + itl.iter().sum::<Duration>();
        Sample { prompt_tokens: 10, output_tokens: tokens, asked_tokens: 4, ttft, itl, e2el }
    }

    #[test]
    fn a_report_adds_up() {
        let samples = [sample(100, 20, 4), sample(300, 40, 3)];
        let objectives = Objectives::new(&[("ttft".to_owned(), 200.0), ("tpot".to_owned(), 50.0)]);
        let errors = BTreeMap::from([("500".to_owned(), 2)]);
        let report = Report::new("m", &samples, errors, Duration::from_secs(2), &objectives);
        assert_eq!((report.total_input_tokens, report.total_output_tokens), (20, 7));
        assert_eq!(report.output_throughput, 3.5);
        assert_eq!(report.request_goodput, Some(0.5));
        assert_eq!(report.short_answers, 1);
        assert_eq!(report.ttft_ms.map(|s| (s.mean, s.p50)), Some((200.0, 200.0)));
        assert_eq!(report.tpot_ms.map(|s| s.mean), Some(30.0));
        assert_eq!(report.itl_ms.map(|s| s.mean), Some(28.0));
        assert_eq!(report.e2el_ms.map(|s| s.mean), Some(270.0));
        let shown = report.to_string();
        assert!(shown.contains("2 failed: 500") && shown.contains("1 of 2 answers"), "{shown}");
    }

    #[test]
    fn a_report_is_drawn_with_its_medians() {
        let of_requests = vec![sample(100, 20, 4), sample(300, 40, 3), sample(200, 20, 1)];
        let objectives = Objectives::default();
        let elapsed = Duration::from_secs(2);
        let mut report = Report::new("<m&m>", &of_requests, BTreeMap::new(), elapsed, &objectives);
        report.samples.of_requests = of_requests;
        let json = serde_json::to_value(&report).expect("JSON");
        assert!(json.get("samples").is_none(), "they are saved where that is asked for");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bench.svg");
        crate::plot(&report, &path).expect("it can be drawn");
        let svg = std::fs::read_to_string(&path).expect("it is there");
        for words in ["p50 200.0 ms", "p50 20.0 ms", "p99 376.4 ms", "&lt;m&amp;m&gt;: 3 requests"]
        {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        let error = crate::plot(&report, folder.path()).expect_err("it is a folder");
        assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
    }
}
