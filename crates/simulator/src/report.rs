//! What came of a simulation.

use sconce_scheduler::TokenCosts;
use sconce_types::Tenant;
use serde::Serialize;

use crate::{
    Trace,
    engine::Run,
    fairness::{self, Service},
    tally::{Outcome, Record, Tally},
};

/// Points of the TTFT's distribution.
const CDF_POINTS: usize = 200;

/// What came of a simulation. Rates are over the time in which requests came, the window:
/// engines that work off their queues afterwards do not count for more. Costs are in
/// prompt tokens, as the engines' schedulers count them, by what they measured; what was
/// asked for goes by the mean of that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The window, in seconds: from the first request's arrival to the last's; to the last
    /// one's end where all came at once.
    pub seconds: f64,
    /// What became of the requests.
    pub counts: Counts,
    /// What was finished and met its targets, whenever it was: TTFT within the tenant's
    /// target and the timeout, TPOT within the tenant's target. Tokens are generated ones.
    pub goodput: Rate,
    /// What was finished, and the tokens that were generated, within the window.
    pub throughput: Rate,
    /// Seconds to the first token of those that got one.
    pub ttft: Option<Percentiles>,
    /// Seconds from token to token of those that were finished with more than one: the mean
    /// of each request.
    pub tpot: Option<Percentiles>,
    /// Jain's index of the cost served to each tenant that asked for any, within the window,
    /// divided by its part in a max-min fair division of the whole: everybody by weight,
    /// nobody more than it asked for. 1 is fair, whatever tenants ask for.
    pub jain: f64,
    /// Jain's index of the cost served by weight, among tenants that got less than nine
    /// tenths of what they asked for within the window; `None` where there are fewer than two.
    pub jain_backlogged: Option<f64>,
    /// How predictions of the TTFT compared with what came. Without admission it is of all;
    /// with it, only of those that were let in and were not ended.
    pub prediction: Option<PredictionError>,
    /// Seconds that a first token came after its deadline, at worst, under admission.
    pub worst_overrun: f64,
    /// Steps of all engines.
    pub steps: u64,
    /// Seconds of the longest of them.
    pub longest_step: f64,
    /// Sequences that were preempted.
    pub preemptions: u64,
    /// By tenant, in the trace's order.
    pub tenants: Vec<TenantReport>,
    /// Seconds to the first token, rising, and the part of all requests, refused ones too,
    /// that had theirs by then.
    pub ttft_cdf: Vec<(f64, f64)>,
}

/// What became of requests. `arrived` is the sum of all but `accepted` and `met`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All that came.
    pub arrived: usize,
    /// Those that were not refused.
    pub accepted: usize,
    /// Finished, in time or not.
    pub finished: usize,
    /// Finished with their targets met.
    pub met: usize,
    /// Refused: the first token would have come too late.
    pub too_late: usize,
    /// Refused: tokens would have come too slowly.
    pub too_slow: usize,
    /// Refused: too many were unfinished.
    pub queue_full: usize,
    /// Refused: longer than the context or the cache.
    pub never_fits: usize,
    /// Accepted, but ended without a first token, whose time had passed.
    pub late: usize,
    /// Accepted, but ended by the timeout after the first token.
    pub timed_out: usize,
}

impl Counts {
    /// All that were refused.
    #[must_use]
    pub fn refused(&self) -> usize {
        self.arrived - self.accepted
    }
}

/// How much a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Requests a second.
    pub requests: f64,
    /// Generated tokens a second.
    pub tokens: f64,
}

/// How values are distributed: the least that so many of a hundred do not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half.
    pub p50: f64,
    /// Nine tenths.
    pub p90: f64,
    /// All but one of a hundred.
    pub p99: f64,
}

/// Predicted by actual TTFT: above 1 is too pessimistic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PredictionError {
    /// Requests with both.
    pub count: usize,
    /// The mean of the predicted by the mean of the actual.
    pub ratio_of_means: f64,
    /// The mean of the ratios.
    pub mean_ratio: f64,
    /// The ratios' distribution.
    pub ratios: Percentiles,
}

/// What came of a tenant's requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TenantReport {
    /// Its name.
    pub name: String,
    /// Its weight.
    pub weight: u32,
    /// What became of its requests.
    pub counts: Counts,
    /// Cost of all it asked for.
    pub asked: f64,
    /// Cost that it was served within the window.
    pub served: f64,
    /// Its part of what all were served within the window.
    pub share: f64,
    /// As of all.
    pub ttft: Option<Percentiles>,
    /// As of all.
    pub tpot: Option<Percentiles>,
}

impl Percentiles {
    /// Of values, which are sorted.
    fn of(values: &mut [f32]) -> Option<Self> {
        values.sort_unstable_by(f32::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100).max(1) - 1;
            f64::from(values[rank.min(last)])
        };
        Some(Self { p50: at(50), p90: at(90), p99: at(99) })
    }
}

/// Adds up what was written down.
pub(crate) fn of(trace: &Trace, tenants: &[Tenant], shared: Run<'_>, preemptions: u64) -> Report {
    let Run { tally, targets, .. } = shared;
    let arrivals = trace.arrivals();
    let Tally { records, served, window, .. } = tally;
    let last_end = records.iter().map(|record| f64::from(record.end)).fold(0.0, f64::max);
    let seconds = if window.is_finite() { window } else { last_end.max(f64::MIN_POSITIVE) };
    let all_served = served.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let default = TokenCosts::default().decode;
    let decode_cost = if tally.decodes > 0.0 { tally.decode_cost / tally.decodes } else { default };
    let mut reports: Vec<_> = tenants
        .iter()
        .zip(&served)
        .map(|(tenant, &served)| TenantReport {
            name: tenant.name.to_string(),
            weight: tenant.weight,
            counts: Counts::default(),
            asked: 0.0,
            served,
            share: served / all_served,
            ttft: None,
            tpot: None,
        })
        .collect();
    let mut counts = Counts::default();
    let mut good_tokens = 0;
    // By tenant, so that each tenant's are together.
    let (mut ttfts, mut tpots) = (Vec::new(), Vec::new());
    for (record, arrival) in records.iter().zip(arrivals) {
        let tenant = &mut reports[arrival.tenant as usize];
        let cost = decode_cost * f64::from(arrival.output_len - 1);
        tenant.asked += f64::from(arrival.prompt_len) + cost;
        let tpot = tpot(record, arrival.output_len);
        let target = targets[arrival.tenant as usize];
        let is_met = record.outcome == Outcome::Finished
            && f64::from(record.ttft) <= target.ttft
            && tpot.is_none_or(|tpot| f64::from(tpot) <= target.tpot)
            && f64::from(record.end) <= target.end;
        good_tokens += u64::from(is_met) * u64::from(arrival.output_len);
        for counts in [&mut counts, &mut tenant.counts] {
            counts.add(record.outcome, is_met);
        }
        if record.ttft >= 0.0 {
            ttfts.push((arrival.tenant, record.ttft));
        }
        tpots.extend(tpot.map(|tpot| (arrival.tenant, tpot)));
    }
    for_each_tenant(&mut ttfts, |tenant, values| {
        reports[tenant].ttft = Percentiles::of(values);
    });
    for_each_tenant(&mut tpots, |tenant, values| {
        reports[tenant].tpot = Percentiles::of(values);
    });
    let mut ttfts: Vec<_> = ttfts.into_iter().map(|(_, ttft)| ttft).collect();
    let mut tpots: Vec<_> = tpots.into_iter().map(|(_, tpot)| tpot).collect();
    let services = reports.iter().map(|tenant| Service {
        weight: f64::from(tenant.weight),
        asked: tenant.asked,
        got: tenant.served,
    });
    let services: Vec<_> = services.collect();
    let rate = |requests: usize, tokens: u64| Rate {
        requests: requests as f64 / seconds,
        tokens: tokens as f64 / seconds,
    };
    Report {
        seconds,
        counts,
        goodput: rate(counts.met, good_tokens),
        throughput: rate(tally.finished as usize, tally.generated),
        ttft: Percentiles::of(&mut ttfts),
        tpot: Percentiles::of(&mut tpots),
        jain: fairness::among_all(&services),
        jain_backlogged: fairness::among_backlogged(&services),
        prediction: prediction(&records),
        worst_overrun: tally.worst_overrun,
        steps: tally.steps,
        longest_step: tally.longest_step,
        preemptions,
        tenants: reports,
        ttft_cdf: cdf(&ttfts, arrivals.len()),
    }
}

impl Counts {
    fn add(&mut self, outcome: Outcome, is_met: bool) {
        self.arrived += 1;
        self.met += usize::from(is_met);
        let (count, is_accepted) = match outcome {
            Outcome::Finished => (&mut self.finished, true),
            Outcome::Late => (&mut self.late, true),
            Outcome::TimedOut => (&mut self.timed_out, true),
            Outcome::TooLate => (&mut self.too_late, false),
            Outcome::TooSlow => (&mut self.too_slow, false),
            Outcome::QueueFull => (&mut self.queue_full, false),
            Outcome::NeverFits => (&mut self.never_fits, false),
            Outcome::Pending => unreachable!("every request has ended"),
        };
        *count += 1;
        self.accepted += usize::from(is_accepted);
    }
}

fn tpot(record: &Record, output_len: u32) -> Option<f32> {
    let has_pace = record.outcome == Outcome::Finished && output_len > 1;
    has_pace.then(|| (record.end - record.ttft) / (output_len - 1) as f32)
}

/// Calls `each` with every tenant that has values, and those.
fn for_each_tenant(values: &mut [(u32, f32)], mut each: impl FnMut(usize, &mut [f32])) {
    values.sort_by_key(|&(tenant, _)| tenant);
    let mut own = Vec::new();
    for group in values.chunk_by(|(a, _), (b, _)| a == b) {
        own.clear();
        own.extend(group.iter().map(|&(_, value)| value));
        each(group[0].0 as usize, &mut own);
    }
}

fn prediction(records: &[Record]) -> Option<PredictionError> {
    let both = || records.iter().filter(|r| r.predicted > 0.0 && r.ttft > 0.0);
    let mut ratios: Vec<_> = both().map(|r| r.predicted / r.ttft).collect();
    let count = ratios.len();
    let predicted: f64 = both().map(|r| f64::from(r.predicted)).sum();
    let actual: f64 = both().map(|r| f64::from(r.ttft)).sum();
    let sum: f64 = ratios.iter().map(|&ratio| f64::from(ratio)).sum();
    let ratios = Percentiles::of(&mut ratios)?;
    let mean_ratio = sum / count as f64;
    Some(PredictionError { count, ratio_of_means: predicted / actual, mean_ratio, ratios })
}

fn cdf(sorted: &[f32], arrived: usize) -> Vec<(f64, f64)> {
    let points = CDF_POINTS.min(sorted.len());
    let ranks = (1..=points).map(|point| sorted.len() * point / points);
    ranks.map(|rank| (f64::from(sorted[rank - 1]), rank as f64 / arrived as f64)).collect()
}
