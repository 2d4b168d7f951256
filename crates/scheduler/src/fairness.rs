//! Which sequences are preempted for which where tenants compete.

use std::cmp::Reverse;

use sconce_types::{RequestId, TenantId};

use crate::{
    Scheduler, SchedulerConfig,
    scheduler::{Class, Lack, Row},
};

/// What a waiting request lacks to be admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    Seat,
    Blocks,
}

impl Scheduler {
    /// Whether a tenant has more than its share of seats or blocks.
    fn is_borrower(&self, tenant: TenantId) -> bool {
        let SchedulerConfig { max_num_seqs, max_num_batched_tokens, .. } = self.config;
        let running = self.accounts.get(tenant).running;
        let rows = max_num_seqs.min(max_num_batched_tokens);
        self.accounts.overuse(tenant, running, rows) > 0.0 || self.block_overuse(tenant) > 0.0
    }

    /// How many times its share of blocks a tenant has, where that is more than once. A
    /// single sequence may have what it needs, however long it is.
    fn block_overuse(&self, tenant: TenantId) -> f64 {
        let account = self.accounts.get(tenant);
        if account.running <= 1 {
            return 0.0;
        }
        self.accounts.overuse(tenant, account.blocks, self.config.num_blocks)
    }

    /// Whether a tenant's waiting request is admitted before a row is scheduled.
    pub(crate) fn comes_before(&self, tenant: TenantId, row: &Row) -> bool {
        let is_served_less = self.accounts.get(tenant).counter() < row.counter;
        match row.class {
            Class::First => false,
            Class::Prefill => is_served_less,
            Class::Yielding => is_served_less && !self.is_borrower(tenant),
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
                counter: self.accounts.get(running.tenant).counter(),
            }
        }));
        let waiting = self.accounts.next().map(|(tenant, _)| tenant);
        let prompts = rows.iter().filter(|row| row.class == Class::Prefill).map(|row| row.tenant);
        let claimants = prompts.chain(waiting).filter(|&tenant| !self.is_borrower(tenant));
        let claimants = claimants.map(|tenant| self.accounts.get(tenant).counter());
        let claim = claimants.min_by(f64::total_cmp);
        for row in &mut rows {
            let gives_way = claim.is_some_and(|claim| claim < row.counter);
            if row.class == Class::First && gives_way && self.is_borrower(row.tenant) {
                row.class = Class::Yielding;
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

    /// Takes back what is borrowed, if who was served least lacks it to run what its own
    /// share has room for; says whether it did.
    pub(crate) fn take_back(&mut self, tenant: TenantId, id: RequestId, want: Want) -> bool {
        if !self.accounts.is_contended() {
            return false;
        }
        let account = self.accounts.get(tenant);
        let needed = SchedulerConfig::blocks_for(self.sequences[&id].len());
        let (running, blocks) = (account.running + 1, account.blocks + needed);
        let SchedulerConfig { max_num_seqs, num_blocks, .. } = self.config;
        if self.accounts.overuse(tenant, running, max_num_seqs) > 0.0
            || self.accounts.overuse(tenant, blocks, num_blocks) > 0.0
            || !account.may_hold(needed, running)
        {
            return false;
        }
        let Some(victim) = self.borrowed(tenant, want) else { return false };
        self.preempt(victim);
        true
    }

    /// The newest sequence of whoever has borrowed most of what is wanted, if it was served
    /// so much more that computing the sequence again is worth it.
    fn borrowed(&self, claimant: TenantId, want: Want) -> Option<RequestId> {
        let overuse = |tenant: TenantId| match want {
            Want::Seat => {
                let running = self.accounts.get(tenant).running;
                self.accounts.overuse(tenant, running, self.config.max_num_seqs)
            }
            Want::Blocks => self.block_overuse(tenant),
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
        let waste = self.accounts.time_of(self.sequences[&newest].num_computed_tokens as f64);
        let lead = self.accounts.get(most).counter() - self.accounts.get(claimant).counter();
        (lead > waste).then_some(newest)
    }

    /// Who gives up its blocks for the first of `rows`, itself perhaps: the newest of who
    /// has borrowed most, or simply the newest.
    pub(crate) fn victim(&self, rows: &[Row], lack: Lack) -> RequestId {
        let oldest = self.running[0].id;
        let contended = self.accounts.is_contended();
        let candidates = rows.iter().filter(|row| match lack {
            Lack::Pool => true,
            Lack::Tenant => row.tenant == rows[0].tenant,
        });
        let candidates = candidates.filter_map(|row| {
            let sequence = &self.sequences[&row.id];
            // It may have given way already, and may even be back in this step.
            if sequence.slot.is_none() || sequence.last_step == self.step {
                return None;
            }
            let contended = contended && lack == Lack::Pool;
            let overuse = if contended { self.block_overuse(row.tenant) } else { 0.0 };
            // The oldest of all gives way last, whoever's it is: so every request ends.
            Some((row.id != oldest, overuse, sequence.admission, row.id))
        });
        let most =
            candidates.max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)));
        most.expect("the sequence itself is a candidate").3
    }

    /// Takes a sequence's seat and blocks; it waits again, in its old place.
    pub(crate) fn preempt(&mut self, id: RequestId) {
        self.running.retain(|running| running.id != id);
        let sequence = self.sequences.get_mut(&id).expect("running sequences are live");
        let slot = sequence.reset().expect("running sequences have a seat");
        let (tenant, place, tokens) = (sequence.tenant, sequence.place, sequence.tokens.len());
        self.accounts.release(tenant, sequence.block_table.len());
        self.pool.free(sequence.block_table.drain(..));
        self.free_slots.push(Reverse(slot.0));
        self.accounts.enqueue(tenant, place, id, tokens);
        self.accounts.unseat(tenant);
        self.preemptions += 1;
        self.preempted.push(id);
    }
}
