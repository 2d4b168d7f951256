//! Which sequences are preempted, and for which.

use sconce_types::{RequestId, TenantId};

use crate::{
    Scheduler, SchedulerConfig,
    scheduler::{Class, Row},
    sequence::{Leave, State},
};

/// What a sequence lacks to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// A slot.
    Slot,
    /// Blocks: the pool has too few.
    Blocks,
    /// Blocks: its tenant may not hold more.
    TenantBlocks,
}

impl Scheduler {
    /// Whether a tenant has more than its share of slots or blocks.
    fn is_borrower(&self, tenant: TenantId) -> bool {
        let SchedulerConfig { max_num_seqs, max_num_batched_tokens, .. } = self.config;
        let running = self.queue.tenant(tenant).running;
        let rows = max_num_seqs.min(max_num_batched_tokens);
        self.queue.overuse(tenant, running, rows) > 0.0 || self.block_overuse(tenant) > 0.0
    }

    /// How many times its share of blocks a tenant has, where that is more than once. A
    /// single sequence may have what it needs, however long it is.
    fn block_overuse(&self, tenant: TenantId) -> f64 {
        let own = self.queue.tenant(tenant);
        if own.running <= 1 {
            return 0.0;
        }
        self.queue.overuse(tenant, own.blocks, self.config.num_blocks)
    }

    /// Whether a tenant's waiting request is admitted before a row is scheduled.
    pub(crate) fn comes_before(&self, tenant: TenantId, row: &Row) -> bool {
        let is_served_less = self.queue.tenant(tenant).counter() < row.counter;
        match row.class {
            Class::First => false,
            Class::Prefill => is_served_less,
            Class::Deferred => is_served_less && !self.is_borrower(tenant),
        }
    }

    /// Writes the order of a step in which several tenants take part.
    pub(crate) fn order_contended(&mut self) {
        let mut rows = std::mem::take(&mut self.rows);
        rows.clear();
        let mut num_decodes = 0;
        rows.extend(self.running.iter().map(|running| {
            let is_decode = self.sequences[&running.id].is_decode();
            num_decodes += usize::from(is_decode);
            Row {
                id: running.id,
                tenant: running.tenant,
                class: if is_decode { Class::First } else { Class::Prefill },
                counter: self.queue.tenant(running.tenant).counter(),
            }
        }));
        let waiting = self.queue.next().map(|(tenant, _)| tenant);
        let prompts = rows.iter().filter(|row| row.class == Class::Prefill).map(|row| row.tenant);
        let claimants = prompts.chain(waiting).filter(|&tenant| !self.is_borrower(tenant));
        let claimants = claimants.map(|tenant| self.queue.tenant(tenant).counter());
        let claim = claimants.min_by(f64::total_cmp);
        for row in &mut rows {
            let gives_way = claim.is_some_and(|claim| claim < row.counter);
            if row.class == Class::First && gives_way && self.is_borrower(row.tenant) {
                row.class = Class::Deferred;
            }
        }
        // Decodes that fit a step all run in it, whatever their order.
        let by_counter = num_decodes > self.config.max_num_batched_tokens;
        rows.sort_by(|a, b| {
            let counters = a.counter.total_cmp(&b.counter);
            let counters = counters.then_with(|| a.tenant.cmp(&b.tenant));
            a.class.cmp(&b.class).then(if a.class == Class::Prefill || by_counter {
                counters
            } else {
                std::cmp::Ordering::Equal
            })
        });
        self.rows = rows;
    }

    /// Preempts what is borrowed, if the tenant that was served least lacks it to run what its
    /// own share has room for; says whether it did.
    pub(crate) fn take_back(&mut self, tenant: TenantId, id: RequestId, lack: Lack) -> bool {
        // What leaves already is waited for.
        if !self.queue.is_contended() || !self.leaving.is_empty() {
            return false;
        }
        let own = self.queue.tenant(tenant);
        let needed = self.config.peak_blocks(self.sequences[&id].len());
        let (running, blocks) = (own.running + 1, own.blocks + needed);
        let SchedulerConfig { max_num_seqs, num_blocks, .. } = self.config;
        if self.queue.overuse(tenant, running, max_num_seqs) > 0.0
            || self.queue.overuse(tenant, blocks, num_blocks) > 0.0
            || !own.may_hold(needed, running)
        {
            return false;
        }
        let Some(victim) = self.borrowed(tenant, lack) else { return false };
        self.preempt(victim);
        true
    }

    /// The newest sequence of the tenant that has borrowed most of what is lacking, if it was
    /// served so much more that computing the sequence again is worth it.
    fn borrowed(&self, claimant: TenantId, lack: Lack) -> Option<RequestId> {
        let overuse = |tenant: TenantId| match lack {
            Lack::Slot => {
                let running = self.queue.tenant(tenant).running;
                self.queue.overuse(tenant, running, self.config.max_num_seqs)
            }
            Lack::Blocks | Lack::TenantBlocks => self.block_overuse(tenant),
        };
        let others = self.running.iter().map(|running| running.tenant).filter(|&t| t != claimant);
        let most = others.max_by(|&a, &b| overuse(a).total_cmp(&overuse(b)).then(b.cmp(&a)))?;
        if overuse(most) == 0.0 {
            return None;
        }
        // What this step computes already stays.
        let may_go = |id: &RequestId| self.sequences[id].last_step != self.step;
        let of_most = self.running.iter().rev().filter(|running| running.tenant == most);
        let newest = of_most.map(|running| running.id).find(may_go)?;
        let waste = self.queue.time_of(self.sequences[&newest].num_scheduled as f64);
        let lead = self.queue.tenant(most).counter() - self.queue.tenant(claimant).counter();
        (lead > waste).then_some(newest)
    }

    /// The sequence that is preempted for the first of `rows`, itself perhaps: the newest of
    /// the tenant that has borrowed most, or simply the newest.
    pub(crate) fn victim(&self, rows: &[Row], lack: Lack) -> RequestId {
        let oldest = self.running[0].id;
        let contended = self.queue.is_contended();
        let candidates = rows.iter().filter(|row| match lack {
            Lack::Slot | Lack::Blocks => true,
            Lack::TenantBlocks => row.tenant == rows[0].tenant,
        });
        let candidates = candidates.filter_map(|row| {
            let sequence = &self.sequences[&row.id];
            // It may be preempted already, and may even be admitted again in this step.
            if sequence.state != State::Running || sequence.last_step == self.step {
                return None;
            }
            let contended = contended && lack == Lack::Blocks;
            let overuse = if contended { self.block_overuse(row.tenant) } else { 0.0 };
            // The oldest of all is preempted last, whatever its tenant: so every request ends.
            Some((row.id != oldest, overuse, sequence.admission, row.id))
        });
        let most =
            candidates.max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        most.expect("the sequence itself is a candidate").3
    }

    /// Whether sequences that are leaving hold at least the blocks that are missing.
    pub(crate) fn is_promised(&self, tenant: TenantId, lack: Lack, missing: usize) -> bool {
        let leaving = self.leaving.iter().map(|id| &self.sequences[id]);
        let leaving = leaving.filter(|s| lack != Lack::TenantBlocks || s.tenant == tenant);
        let blocks = leaving.flat_map(|sequence| sequence.table.blocks());
        let promised = blocks.filter(|&block| self.pool.ref_count(block) == 1);
        missing > 0 && promised.take(missing).count() == missing
    }

    /// Takes a sequence's slot and blocks; it waits again, in its old place.
    pub(crate) fn preempt(&mut self, id: RequestId) {
        self.running.retain(|running| running.id != id);
        self.preemptions += 1;
        self.leave(id, Leave::Preempted);
    }
}
