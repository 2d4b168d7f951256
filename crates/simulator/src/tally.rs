//! What is written down while a simulation runs.

use crate::trace::Arrival;

/// What became of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing yet.
    #[default]
    Pending,
    Finished,
    /// Refused: it would have waited too long, or its first token or its end, or those of
    /// requests that were taken before, would have come too late.
    TooLate,
    /// Refused: tokens would have come too slowly.
    TooSlow,
    /// Refused: too many were unfinished.
    QueueFull,
    /// Refused: it could never have finished.
    NeverFits,
    /// Taken, but ended without its first token, whose time had passed.
    Late,
    /// Taken, but ended after its first token, when its own time had passed.
    TimedOut,
}

/// A request's times, in seconds from its arrival; negative where there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    /// Whose it is; here, so that a step need not look up its requests' arrivals.
    pub(crate) tenant: u32,
    pub(crate) ttft: f32,
    pub(crate) end: f32,
    /// The TTFT that was predicted.
    pub(crate) predicted: f32,
    /// Tokens that were paid for, so that what is computed again is not.
    pub(crate) charged: u32,
    pub(crate) outcome: Outcome,
}

/// What is written down.
pub(crate) struct Tally {
    pub(crate) records: Vec<Record>,
    /// Cost that each tenant was served while requests came.
    pub(crate) served: Vec<f64>,
    /// Tokens of that which were decoded, and what those cost.
    pub(crate) decodes: f64,
    pub(crate) decode_cost: f64,
    /// Tokens generated, and requests finished, while requests came.
    pub(crate) generated: u64,
    pub(crate) finished: u64,
    /// While requests came: until the last did.
    pub(crate) window: f64,
    pub(crate) steps: u64,
    pub(crate) longest_step: f64,
    /// How long after its deadline a first token came, at worst.
    pub(crate) worst_overrun: f64,
    /// Requests that have ended in any way.
    pub(crate) ended: usize,
}

impl Tally {
    pub(crate) fn new(arrivals: &[Arrival], tenants: usize) -> Self {
        let (outcome, none) = (Outcome::Pending, -1.0);
        let records = arrivals.iter().map(|&Arrival { tenant, .. }| Record {
            tenant,
            ttft: none,
            end: none,
            predicted: none,
            charged: 0,
            outcome,
        });
        let last = arrivals.last().map_or(0.0, |last| last.at);
        Self {
            records: records.collect(),
            served: vec![0.0; tenants],
            decodes: 0.0,
            decode_cost: 0.0,
            generated: 0,
            finished: 0,
            // Where all come at once it is until all is done.
            window: if last > 0.0 { last } else { f64::INFINITY },
            steps: 0,
            longest_step: 0.0,
            worst_overrun: 0.0,
            ended: 0,
        }
    }

    pub(crate) fn end(&mut self, request: u32, outcome: Outcome, seconds: f64) {
        let record = &mut self.records[request as usize];
        assert_eq!(record.outcome, Outcome::Pending, "a request ends once");
        (record.outcome, record.end) = (outcome, seconds as f32);
        self.ended += 1;
    }
}
