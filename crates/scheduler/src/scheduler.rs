//! What each step computes.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use sconce_types::{AdmittedSequence, NotReady, RequestId, ScheduledBatch, Slot, Tenant, TenantId};

use crate::{
    BlockPool, ByRequest, CheckedRequest, ConfigError, Refusal, Request, SchedulerConfig,
    SchedulerStats, SchedulingPolicy, TenantStats, TokenCosts,
    fair_queue::FairQueue,
    preemption::Lack,
    sequence::{Leave, Sequence, State},
    step_limit::{PrefillRoom, StepLimit},
};

/// Decides what each step computes.
///
/// There is no prefill phase and no decode phase: a sequence has tokens and a
/// number of computed ones, and each step lets the second catch up with the
/// first within one budget, running sequences before waiting ones. Where blocks
/// run out, the newest running sequence is preempted and later recomputed; the
/// oldest is never, so every request ends.
///
/// Up to [`SchedulerConfig::depth`] batches may be scheduled and not yet committed. A
/// sequence that ends or is preempted meanwhile is leaving: it keeps its slot and blocks
/// until no step in flight computes it.
///
/// Where several tenants compete under [`SchedulingPolicy::Fair`], the tenant that was
/// served least for its weight is admitted first, its prompts before others'; what a tenant
/// has beyond its share of slots and blocks is borrowed, and goes back to tenants that have
/// less than theirs: a borrower's decodes are deferred where they would take the step's
/// budget from such a prompt, its newest sequences are preempted where slots or blocks are
/// short.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) pool: BlockPool,
    pub(crate) sequences: ByRequest<Sequence>,
    pub(crate) queue: FairQueue,
    /// In order of admission.
    pub(crate) running: Vec<Running>,
    /// Those in [`State::Leaving`].
    pub(crate) leaving: Vec<RequestId>,
    pub(crate) free_slots: BinaryHeap<Reverse<u32>>,
    /// Free blocks that running sequences claim for their prompts.
    pub(crate) claimed: usize,
    pub(crate) costs: TokenCosts,
    /// Preempted sequences whose slots and blocks the last call has freed.
    pub(crate) preempted: Vec<RequestId>,
    /// The order of a step, kept for its memory.
    pub(crate) rows: Vec<Row>,
    pub(crate) step: u64,
    /// Tokens of recent outputs.
    pub(crate) mean_output: f64,
    /// The part of recent work in whose steps not all had room: from 0 to 1.
    pub(crate) saturation: f64,
    pub(crate) step_limit: Option<StepLimit>,
    /// What is left of the present step's prefill, once a prompt has asked.
    pub(crate) prefill_room: Option<PrefillRoom>,
    arrivals: u64,
    admissions: u64,
    pub(crate) preemptions: u64,
    pub(crate) prefix_cache_queries: u64,
    pub(crate) prefix_cache_hits: u64,
}

/// A running sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(crate) id: RequestId,
    pub(crate) tenant: TenantId,
}

/// A running sequence's place in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) id: RequestId,
    pub(crate) tenant: TenantId,
    pub(crate) class: Class,
    pub(crate) counter: f64,
}

/// What comes before what in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Decodes; without competition everything, in order of admission.
    First,
    /// Prompts, by their tenants' counters.
    Prefill,
    /// Decodes of tenants with more than their share, while a prompt of one with less waits.
    Deferred,
}

impl Scheduler {
    /// An idle scheduler.
    ///
    /// # Errors
    /// Limits that nothing could run under.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let slots = u32::try_from(config.max_num_seqs).expect("validated to fit 32 bits");
        Ok(Self {
            config,
            pool: BlockPool::new(config.num_blocks),
            sequences: ByRequest::default(),
            queue: FairQueue::new(&config),
            running: Vec::with_capacity(config.max_num_seqs),
            leaving: Vec::with_capacity(config.max_num_seqs),
            free_slots: (0..slots).map(Reverse).collect(),
            claimed: 0,
            costs: TokenCosts::default(),
            preempted: Vec::with_capacity(config.max_num_seqs),
            rows: Vec::with_capacity(config.max_num_seqs),
            step: 0,
            mean_output: 64.0,
            saturation: 0.0,
            step_limit: None,
            prefill_room: None,
            arrivals: 0,
            admissions: 0,
            preemptions: 0,
            prefix_cache_queries: 0,
            prefix_cache_hits: 0,
        })
    }

    /// Takes tenants' weights and limits as they are from now on. Tenants that are not
    /// named keep theirs; one that never was has weight 1 and no limits.
    pub fn set_tenants(&mut self, tenants: &[Tenant]) {
        self.queue.configure(tenants);
    }

    /// Takes what tokens cost from now on.
    pub fn set_costs(&mut self, costs: TokenCosts) {
        self.costs = costs;
    }

    /// Checks a request and queues it.
    ///
    /// # Errors
    /// What could never finish, or a full queue.
    pub fn add(&mut self, request: Request) -> Result<(), Refusal> {
        let checked = self.config.check(request)?;
        self.add_checked(checked)
    }

    /// Queues a request that was checked against this scheduler's limits.
    ///
    /// # Errors
    /// A full queue, or more blocks than its tenant may hold.
    pub fn add_checked(&mut self, request: CheckedRequest) -> Result<(), Refusal> {
        let CheckedRequest(request) = request;
        let Request { id, tenant, priority, not_ready, .. } = request;
        let (prompt_len, max_tokens) = (request.prompt.len(), request.params.max_tokens as usize);
        let needed_blocks = self.config.peak_blocks(prompt_len + max_tokens);
        let max_queued = self.config.max_queued;
        if self.queue.num_waiting() + self.queue.num_blocked() >= max_queued {
            return Err(Refusal::QueueFull { max_queued });
        }
        if self.sequences.contains_key(&id) {
            return Err(Refusal::DuplicateId(id.0));
        }
        self.queue.ensure(tenant);
        let own = self.queue.tenant(tenant);
        if needed_blocks > own.max_blocks {
            let max_blocks = own.max_blocks;
            return Err(Refusal::TenantNeverFits { needed_blocks, max_blocks });
        }
        // A request that arrives while slots are free only waits for the next step.
        let could_run = self.free_slots.len().min(own.free_slots());
        if own.waiting() + own.blocked >= own.max_queued.saturating_add(could_run) {
            return Err(Refusal::TenantQueueFull { max_queued: own.max_queued });
        }
        self.arrivals += 1;
        let is_fcfs = self.config.policy == SchedulingPolicy::Fcfs;
        let place = (if is_fcfs { 0 } else { priority }, self.arrivals);
        let sequence = Sequence::new(request, place, &self.config.groups);
        match not_ready {
            Some(reason) => self.queue.block(tenant, reason),
            None => self.queue.enqueue(tenant, place, id, prompt_len),
        }
        self.sequences.insert(id, sequence);
        Ok(())
    }

    /// Ends a request; says whether there was one. What it holds is free at once, or as soon
    /// as no step in flight computes it.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        match sequence.state {
            State::Blocked(reason) => {
                let tenant = sequence.tenant;
                self.sequences.remove(&id);
                self.queue.unblock(tenant, reason);
            }
            State::Waiting => self.drop_waiting(id),
            State::Running => {
                self.running.retain(|running| running.id != id);
                self.leave(id, Leave::Ended);
            }
            State::Leaving(Leave::Preempted) => sequence.state = State::Leaving(Leave::Ended),
            State::Leaving(Leave::Ended) => return false,
        }
        true
    }

    /// A request is ready: it enters its tenant's queue, in the place of its arrival. Says
    /// whether there is such a request that was not ready.
    pub fn unblock(&mut self, id: RequestId, is_constrained: bool) -> bool {
        let Some(sequence) = self.sequences.get_mut(&id) else { return false };
        let State::Blocked(reason) = sequence.state else { return false };
        sequence.state = State::Waiting;
        sequence.is_constrained = is_constrained;
        let (tenant, place, tokens) = (sequence.tenant, sequence.place, sequence.tokens.len());
        self.queue.unblock(tenant, reason);
        self.queue.enqueue(tenant, place, id, tokens);
        true
    }

    /// Removes a request from its queue.
    fn drop_waiting(&mut self, id: RequestId) {
        let sequence = self.sequences.remove(&id).expect("a waiting request is known");
        self.queue.dequeue(sequence.tenant, sequence.place, sequence.tokens.len());
    }

    /// A sequence that `running` does not name any more leaves its slot: now, or once no
    /// step in flight computes it.
    pub(crate) fn leave(&mut self, id: RequestId, why: Leave) {
        let sequence = self.sequences.get_mut(&id).expect("a running sequence is known");
        sequence.state = State::Leaving(why);
        if sequence.steps_in_flight == 0 {
            self.release(id);
        } else {
            self.leaving.push(id);
        }
    }

    /// Frees the slot and the blocks of a sequence that leaves.
    pub(crate) fn release(&mut self, id: RequestId) {
        let sequence = self.sequences.get_mut(&id).expect("a leaving sequence is known");
        let tenant = sequence.tenant;
        self.claimed -= std::mem::take(&mut sequence.claim);
        self.queue.release(tenant, sequence.table.num_held());
        sequence.table.release(&mut self.pool);
        let Slot(slot) = sequence.slot.take().expect("a leaving sequence has a slot");
        self.free_slots.push(Reverse(slot));
        if sequence.has_ended() {
            self.sequences.remove(&id);
        } else {
            sequence.reset();
            let (place, tokens) = (sequence.place, sequence.tokens.len());
            self.queue.enqueue(tenant, place, id, tokens);
            self.preempted.push(id);
        }
        self.queue.free_slot(tenant);
    }

    /// Writes the next step over `batch`; an empty batch means that there is nothing to
    /// do before a step in flight ends. Each non-empty batch must be committed or failed, in
    /// the order of their steps, and at most [`SchedulerConfig::depth`] may be in flight.
    pub fn schedule(&mut self, batch: &mut ScheduledBatch) {
        batch.clear();
        self.preempted.clear();
        self.step += 1;
        self.prefill_room = None;
        self.queue.advance_virtual_time(self.running.iter().map(|running| running.tenant));
        if self.queue.is_contended() {
            self.order_contended();
        } else {
            self.rows.clear();
            self.rows.extend(self.running.iter().map(|&Running { id, tenant }| Row {
                id,
                tenant,
                class: Class::First,
                counter: 0.0,
            }));
        }
        let rows = std::mem::take(&mut self.rows);
        self.schedule_rows(&rows, batch);
        self.rows = rows;
        if batch.is_empty() {
            self.step -= 1;
        } else {
            let budget = self.config.max_num_batched_tokens;
            let is_full = self.queue.num_waiting() > 0 || batch.num_tokens == budget;
            // Half of it goes by the last twenty full steps, or so.
            let part = batch.num_tokens as f64 / (30.0 * budget as f64);
            self.saturation += (f64::from(u8::from(is_full)) - self.saturation) * part.min(1.0);
        }
        batch.step = self.step;
    }

    fn schedule_rows(&mut self, rows: &[Row], batch: &mut ScheduledBatch) {
        let mut has_room = true;
        'rows: for (index, row) in rows.iter().enumerate() {
            if row.class != Class::First && has_room {
                has_room = self.admit_waiting(batch, Some(row));
            }
            let budget = self.config.max_num_batched_tokens - batch.num_tokens;
            if budget == 0 {
                return;
            }
            let sequence = self.sequences.get_mut(&row.id).expect("what runs is known");
            // It was preempted in this step, and may even be admitted again.
            if sequence.state != State::Running || sequence.last_step == self.step {
                continue;
            }
            if sequence.samples_its_last() {
                continue;
            }
            let (pending, context) = (sequence.num_pending(), sequence.num_scheduled);
            assert!(pending > 0, "a running sequence has something to compute");
            // Most rows of a step decode into blocks that they have.
            if sequence.is_decode() && sequence.has_blocks_for(1) {
                let cost = sequence.schedule(1, self.step, &self.costs, batch);
                self.queue.charge(row.tenant, cost);
                continue;
            }
            let num_tokens =
                if sequence.is_decode() { 1 } else { self.chunk_len(budget, context, pending) };
            if num_tokens == 0 {
                continue;
            }
            while let Err((lack, missing)) = self.grow_table(row.id, num_tokens, num_tokens) {
                // A step that preempts has no room to admit.
                has_room = false;
                if self.is_promised(row.tenant, lack, missing) {
                    continue 'rows;
                }
                let victim = self.victim(&rows[index..], lack);
                self.preempt(victim);
                if victim == row.id {
                    continue 'rows;
                }
            }
            self.push_scheduled(row.id, num_tokens, batch);
        }
        if has_room {
            self.admit_waiting(batch, None);
        }
    }

    /// Admits waiting requests as far as there is room; where `before` is given, only
    /// those that come before it. Says whether there is room for more.
    fn admit_waiting(&mut self, batch: &mut ScheduledBatch, before: Option<&Row>) -> bool {
        loop {
            let budget = self.config.max_num_batched_tokens - batch.num_tokens;
            if budget == 0 {
                return false;
            }
            let Some((tenant, id)) = self.queue.next() else { return false };
            if before.is_some_and(|row| !self.comes_before(tenant, row)) {
                return true;
            }
            if !self.may_prefill() {
                return false;
            }
            if self.free_slots.is_empty() {
                if self.take_back(tenant, id, Lack::Slot) {
                    continue;
                }
                return false;
            }
            self.share_prefix(id);
            // Room for all it has, not for its first chunk alone: a prefill that must
            // be preempted midway is computed again from its start.
            let sequence = &self.sequences[&id];
            let (num_pending, context) = (sequence.num_pending(), sequence.num_scheduled);
            let missing = self.missing_to_admit(sequence);
            let own = self.queue.tenant(tenant);
            if !own.may_hold(missing, own.running + 1) {
                self.unshare_prefix(id);
                self.queue.park(tenant);
                continue;
            }
            if missing + self.claimed > self.pool.num_free() {
                self.unshare_prefix(id);
                if self.take_back(tenant, id, Lack::Blocks) {
                    continue;
                }
                return false;
            }
            let num_tokens = self.chunk_len(budget, context, num_pending);
            if num_tokens == 0 {
                self.unshare_prefix(id);
                return false;
            }
            self.note_prefix(id);
            // All of it is held or claimed from now on: no newer sequence takes it between
            // two chunks.
            let sequence = self.sequences.get_mut(&id).expect("a waiting request is known");
            sequence.claim = missing;
            sequence.claims_until = sequence.len();
            self.claimed += missing;
            self.grow_table(id, num_pending, num_tokens).expect("the room was seen above");
            let Reverse(slot) = self.free_slots.pop().expect("a free slot was seen above");
            self.admissions += 1;
            let sequence = self.sequences.get_mut(&id).expect("a waiting request is known");
            self.queue.dequeue(tenant, sequence.place, sequence.tokens.len());
            self.queue.take_slot(tenant);
            sequence.state = State::Running;
            sequence.slot = Some(Slot(slot));
            sequence.admission = self.admissions;
            self.running.push(Running { id, tenant });
            batch.admitted.push(AdmittedSequence {
                request: id,
                slot: Slot(slot),
                params: Arc::clone(&sequence.params),
                token_ids: sequence.tokens.clone(),
                prompt_len: sequence.prompt_len,
            });
            self.push_scheduled(id, num_tokens, batch);
        }
    }

    fn push_scheduled(&mut self, id: RequestId, num_tokens: usize, batch: &mut ScheduledBatch) {
        let sequence = self.sequences.get_mut(&id).expect("only known sequences are scheduled");
        let cost = sequence.schedule(num_tokens, self.step, &self.costs, batch);
        self.queue.charge(sequence.tenant, cost);
    }

    /// A row of a step in flight was not sampled, as its mask was not ready
    /// ([`sconce_types::TokenMask::Skip`]): its last token is computed and sampled again.
    pub fn skip_sample(&mut self, id: RequestId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        if !sequence.has_ended() {
            sequence.num_scheduled -= 1;
            sequence.num_sampling -= 1;
            sequence.num_sampled_in_slot -= 1;
        }
    }

    /// Preempted requests whose slots and blocks the last call of [`Scheduler::schedule`],
    /// [`Scheduler::commit`] or [`Scheduler::fail_batch`] has freed. One may have been admitted
    /// again since.
    #[must_use]
    pub fn preempted(&self) -> &[RequestId] {
        &self.preempted
    }

    /// Tokens generated for a request; `None` if there is no such request.
    #[must_use]
    pub fn num_generated(&self, id: RequestId) -> Option<usize> {
        self.sequences.get(&id).filter(|s| !s.has_ended()).map(Sequence::num_generated)
    }

    /// Requests that are not ready, for this reason.
    #[must_use]
    pub fn num_blocked_by(&self, reason: NotReady) -> usize {
        self.queue.num_blocked_by(reason)
    }

    /// Whether a cache group keeps only a window, so that a commit releases blocks.
    #[must_use]
    pub fn has_windows(&self) -> bool {
        self.config.groups.has_windows()
    }

    /// Blocks that an unfinished request holds.
    #[must_use]
    pub fn num_blocks(&self, id: RequestId) -> usize {
        let sequence = self.sequences.get(&id).filter(|sequence| !sequence.has_ended());
        sequence.map_or(0, |sequence| sequence.table.num_held())
    }

    /// The state in numbers.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len(),
            waiting: self.queue.num_waiting(),
            blocked: self.queue.num_blocked(),
            leaving: self.leaving.len(),
            used_blocks: self.pool.num_blocks() - self.pool.num_free(),
            num_blocks: self.pool.num_blocks(),
            preemptions: self.preemptions,
            prefix_cache_queries: self.prefix_cache_queries,
            prefix_cache_hits: self.prefix_cache_hits,
        }
    }

    /// What a tenant has here, in numbers.
    #[must_use]
    pub fn tenant_stats(&self, id: TenantId) -> TenantStats {
        if !self.queue.knows(id) {
            return TenantStats::default();
        }
        let own = self.queue.tenant(id);
        TenantStats {
            running: own.running,
            waiting: own.waiting(),
            blocked: own.blocked,
            waiting_tokens: own.waiting_tokens(),
            blocks: own.blocks,
            share: self.queue.share(id),
            counter: own.counter(),
        }
    }
}
