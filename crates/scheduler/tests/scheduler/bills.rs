//! What requests are billed in a simulation, beside what was computed: counted apart from
//! the meters, position by position and nanosecond by nanosecond of a virtual clock.

use std::collections::HashMap;

use sconce_scheduler::{RequestMeter, Shares, StepModel};
use sconce_types::{Metering, RequestId, ScheduledBatch};

#[derive(Default)]
pub(crate) struct Bills {
    clock_ns: u64,
    model: StepModel,
    shares: Shares,
    open: HashMap<RequestId, Bill>,
    closed: Totals,
    /// Of rows whose request had ended.
    discarded: Totals,
    happened: Totals,
    /// A fault to plant.
    pub(crate) forgets_discarded: bool,
}

/// A request's meter, and how each position of its prompt was processed first.
struct Bill {
    meter: RequestMeter,
    is_processed: Vec<bool>,
    happened: Totals,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    device_ns: u64,
    block_ns: u64,
    computed: u64,
    cached: u64,
}

impl Totals {
    fn of(usage: &Metering) -> Self {
        Self {
            device_ns: usage.device_ns,
            block_ns: usage.block_ns,
            computed: u64::from(usage.prompt_tokens - usage.cached_tokens),
            cached: u64::from(usage.cached_tokens),
        }
    }

    fn add(&mut self, other: Self) {
        self.device_ns += other.device_ns;
        self.block_ns += other.block_ns;
        self.computed += other.computed;
        self.cached += other.cached;
    }
}

impl Bill {
    /// Marks positions up to `end` that were not processed before; says how many.
    fn process(&mut self, end: usize) -> u64 {
        let end = end.min(self.is_processed.len());
        let fresh = self.is_processed[..end].iter_mut().filter(|is_processed| !**is_processed);
        fresh.map(|is_processed| *is_processed = true).count() as u64
    }
}

impl Bills {
    pub(crate) fn arrive(&mut self, id: RequestId, prompt_len: usize) {
        let meter = RequestMeter::new(prompt_len);
        let is_processed = vec![false; prompt_len];
        self.open.insert(id, Bill { meter, is_processed, happened: Totals::default() });
    }

    /// Time passes while so many blocks are held.
    pub(crate) fn pass(&mut self, ns: u64, blocks: usize) {
        self.clock_ns += ns;
        self.happened.block_ns += ns * blocks as u64;
    }

    /// The schedule freed the blocks of these.
    pub(crate) fn preempt(&mut self, ids: &[RequestId]) {
        for id in ids {
            let bill = self.open.get_mut(id).expect("who is preempted is live");
            bill.meter.note_release(self.clock_ns);
        }
    }

    /// A step was scheduled: its rows hold what they were given.
    pub(crate) fn schedule(&mut self, batch: &ScheduledBatch) {
        for part in batch.sequences.iter().filter(|part| !part.table_edits.is_empty()) {
            let bill = self.open.get_mut(&part.request).expect("what is scheduled is live");
            bill.meter.note_blocks(part.num_blocks, self.clock_ns);
        }
    }

    /// A request holds so many blocks from now on, as its windows moved on.
    pub(crate) fn hold(&mut self, id: RequestId, blocks: usize) {
        if let Some(bill) = self.open.get_mut(&id) {
            bill.meter.note_blocks(blocks, self.clock_ns);
        }
    }

    /// The device ran for so long.
    pub(crate) fn run_device(&mut self, ns: u64) {
        self.happened.device_ns += ns;
    }

    /// A step that took so much of it is shared out.
    pub(crate) fn step(&mut self, batch: &ScheduledBatch, ns: u64, is_computed: bool) {
        let parts = self.shares.of_step(&self.model, batch, ns);
        for (part, &device_ns) in batch.sequences.iter().zip(parts) {
            let Some(bill) = self.open.get_mut(&part.request) else {
                if !self.forgets_discarded {
                    self.discarded.device_ns += device_ns;
                }
                continue;
            };
            bill.meter.note_step(part, device_ns, self.clock_ns);
            let cached = bill.process(part.num_computed_tokens);
            let mut computed = 0;
            if is_computed {
                bill.meter.note_computed(part);
                computed = bill.process(part.num_computed_tokens + part.input.len());
            }
            for totals in [&mut self.happened, &mut bill.happened] {
                totals.cached += cached;
                totals.computed += computed;
            }
            let billed = Totals::of(bill.meter.usage());
            let happened = (bill.happened.computed, bill.happened.cached);
            assert_eq!((billed.computed, billed.cached), happened, "{:?}", part.request);
        }
    }

    /// A request has ended in any way.
    pub(crate) fn end(&mut self, id: RequestId) {
        let mut bill = self.open.remove(&id).expect("a request ends once");
        bill.meter.note_release(self.clock_ns);
        self.closed.add(Totals::of(bill.meter.usage()));
    }

    /// Device time that is no request's.
    pub(crate) fn discarded_ns(&self) -> u64 {
        self.discarded.device_ns
    }

    /// Requests and what was discarded sum to what was used: as if everything ended now.
    pub(crate) fn check(&self) {
        let mut billed = self.closed;
        billed.add(self.discarded);
        for bill in self.open.values() {
            let mut meter = bill.meter.clone();
            meter.note_release(self.clock_ns);
            billed.add(Totals::of(meter.usage()));
        }
        assert_eq!(billed, self.happened, "what is billed is what was used");
    }
}
