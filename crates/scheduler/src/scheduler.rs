//! What each step computes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
};

use sconce_types::{
    AdmittedSequence, BLOCK_SIZE, Input, RequestId, Sample, ScheduledBatch, ScheduledSequence,
    Slot, Tenant, TenantId,
};

use crate::{
    BlockPool, ConfigError, Refusal, Request, SchedulerConfig, SchedulerStats, SchedulingPolicy,
    TenantStats, TokenCosts,
    accounts::Accounts,
    fairness::Want,
    id_hash::ByRequest,
    sequence::Sequence,
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
/// Where several tenants compete under [`SchedulingPolicy::Fair`], who was served least
/// for its weight is admitted first, its prompts before others'; what a tenant has beyond
/// its share of seats and blocks is borrowed, and gives way to whoever has less than its
/// own: a borrower's decodes wait where they would take the step's budget from such a
/// prompt, its newest sequences are preempted where seats or blocks are wanted.
#[derive(Clone, Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) pool: BlockPool,
    pub(crate) sequences: ByRequest<Sequence>,
    pub(crate) accounts: Accounts,
    /// In order of admission.
    pub(crate) running: Vec<Running>,
    pub(crate) free_slots: BinaryHeap<Reverse<u32>>,
    pub(crate) costs: TokenCosts,
    /// Preempted by the last schedule.
    pub(crate) preempted: Vec<RequestId>,
    /// The order of a step, kept for its memory.
    pub(crate) rows: Vec<Row>,
    pub(crate) step: u64,
    /// Tokens of an output, of late.
    pub(crate) mean_output: f64,
    /// The part of the work, of late, in whose steps not all had room: from 0 to 1.
    pub(crate) saturation: f64,
    pub(crate) step_limit: Option<StepLimit>,
    /// What is left of the present step's prefill, once a prompt has asked.
    pub(crate) prefill_room: Option<PrefillRoom>,
    arrivals: u64,
    admissions: u64,
    pub(crate) preemptions: u64,
    prefix_cache_queries: u64,
    prefix_cache_hits: u64,
}

/// A sequence that has a seat.
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
    /// Prompts, that of whoever was served least first.
    Prefill,
    /// Decodes of who has more than its share, while a prompt of who has less waits.
    Yielding,
}

/// Why a block table did not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// The pool has too few blocks.
    Pool,
    /// Its tenant may not hold more.
    Tenant,
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
            accounts: Accounts::new(&config),
            running: Vec::with_capacity(config.max_num_seqs),
            free_slots: (0..slots).map(Reverse).collect(),
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
        self.accounts.configure(tenants);
    }

    /// Takes what tokens cost from now on.
    pub fn set_costs(&mut self, costs: TokenCosts) {
        self.costs = costs;
    }

    /// Queues a request.
    ///
    /// # Errors
    /// What could never finish, or a full queue.
    pub fn add(&mut self, request: Request) -> Result<(), Refusal> {
        let Request { id, prompt, params, tenant, priority, cache_salt } = request;
        let (prompt_len, max_tokens) = (prompt.len(), params.max_tokens as usize);
        let SchedulerConfig { max_model_len, num_blocks, max_queued, .. } = self.config;
        if prompt_len == 0 {
            return Err(Refusal::EmptyPrompt);
        }
        if max_tokens == 0 {
            return Err(Refusal::NoTokens);
        }
        if prompt_len.saturating_add(max_tokens) > max_model_len {
            return Err(Refusal::TooLong { prompt_len, max_tokens, max_model_len });
        }
        let needed_blocks = SchedulerConfig::blocks_for(prompt_len + max_tokens);
        if needed_blocks > num_blocks {
            return Err(Refusal::NeverFits { needed_blocks, num_blocks });
        }
        if self.accounts.num_waiting() >= max_queued {
            return Err(Refusal::QueueFull { max_queued });
        }
        if self.sequences.contains_key(&id) {
            return Err(Refusal::DuplicateId(id.0));
        }
        self.accounts.ensure(tenant);
        let account = self.accounts.get(tenant);
        if needed_blocks > account.max_blocks {
            let max_blocks = account.max_blocks;
            return Err(Refusal::TenantNeverFits { needed_blocks, max_blocks });
        }
        // Who comes while seats are free only waits for the next step.
        let could_run = self.free_slots.len().min(account.free_seats());
        if account.waiting() >= account.max_queued.saturating_add(could_run) {
            return Err(Refusal::TenantQueueFull { max_queued: account.max_queued });
        }
        self.arrivals += 1;
        let is_fcfs = self.config.policy == SchedulingPolicy::Fcfs;
        let place = (if is_fcfs { 0 } else { priority }, self.arrivals);
        let sequence = Sequence::new(id, tenant, place, prompt, params, cache_salt);
        self.accounts.enqueue(tenant, place, id, prompt_len);
        self.sequences.insert(id, sequence);
        Ok(())
    }

    /// Ends a request and frees what it holds; says whether there was one.
    /// Not to be called between [`Scheduler::schedule`] and the commit of its batch.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let Some(sequence) = self.sequences.get(&id) else { return false };
        if sequence.slot.is_some() {
            self.running.retain(|running| running.id != id);
        }
        self.remove(id);
        true
    }

    /// Writes the next step over `batch`; an empty batch means that there is
    /// nothing to do. Each non-empty batch must be committed or failed before
    /// the next.
    pub fn schedule(&mut self, batch: &mut ScheduledBatch) {
        batch.clear();
        self.preempted.clear();
        self.step += 1;
        self.prefill_room = None;
        self.accounts.pass_time(self.running.iter().map(|running| running.tenant));
        if self.accounts.is_contended() {
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
            let is_full = self.accounts.num_waiting() > 0 || batch.num_tokens == budget;
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
            let sequence = &self.sequences[&row.id];
            // It gave way to another, and may even be back.
            if sequence.slot.is_none() || sequence.last_step == self.step {
                continue;
            }
            let (pending, context) = (sequence.num_pending(), sequence.num_computed_tokens);
            assert!(pending > 0, "a running sequence has something to compute");
            let num_tokens =
                if sequence.is_decode() { 1 } else { self.chunk_len(budget, context, pending) };
            if num_tokens == 0 {
                continue;
            }
            while let Err(lack) = self.grow_table(row.id, num_tokens) {
                // What preempts somebody leaves no room to admit anybody.
                has_room = false;
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

    /// Admits those who wait, as far as there is room; where `before` is given, only
    /// those who come before it. Says whether there is room for more.
    fn admit_waiting(&mut self, batch: &mut ScheduledBatch, before: Option<&Row>) -> bool {
        loop {
            let budget = self.config.max_num_batched_tokens - batch.num_tokens;
            if budget == 0 {
                return false;
            }
            let Some((tenant, id)) = self.accounts.next() else { return false };
            if before.is_some_and(|row| !self.comes_before(tenant, row)) {
                return true;
            }
            if !self.may_prefill() {
                return false;
            }
            if self.free_slots.is_empty() {
                if self.take_back(tenant, id, Want::Seat) {
                    continue;
                }
                return false;
            }
            self.share_prefix(id);
            // Room for all it has, not for its first chunk alone: a prefill that must
            // give way midway is computed again from its start.
            let sequence = &self.sequences[&id];
            let (num_pending, held) = (sequence.num_pending(), sequence.block_table.len());
            let missing = SchedulerConfig::blocks_for(sequence.len()) - held;
            let account = self.accounts.get(tenant);
            if !account.may_hold(missing, account.running + 1) {
                self.unshare_prefix(id);
                self.accounts.stand_aside(tenant);
                continue;
            }
            if missing > self.pool.num_free() {
                self.unshare_prefix(id);
                if self.take_back(tenant, id, Want::Blocks) {
                    continue;
                }
                return false;
            }
            let context = sequence.num_computed_tokens;
            let num_tokens = self.chunk_len(budget, context, num_pending);
            if num_tokens == 0 {
                self.unshare_prefix(id);
                return false;
            }
            self.note_prefix(id);
            // All of it is held from now on: nobody newer takes it between two chunks.
            self.grow_table(id, num_pending).expect("the room was seen above");
            let Reverse(slot) = self.free_slots.pop().expect("a free seat was seen above");
            self.admissions += 1;
            let sequence = self.sequences.get_mut(&id).expect("who waits is live");
            self.accounts.dequeue(tenant, sequence.place, sequence.tokens.len());
            self.accounts.seat(tenant);
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

    /// Gives a sequence the longest beginning of it that is cached, in whole blocks. Its
    /// last token is always computed: what follows is sampled from it.
    fn share_prefix(&mut self, id: RequestId) {
        let Some(key) = self.config.prefix_cache else { return };
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are admitted");
        // The log-probabilities of a prompt are those of tokens that are computed.
        if sequence.params.prompt_logprobs.is_some() {
            return;
        }
        for index in 0..(sequence.len() - 1) / BLOCK_SIZE {
            let Some(block) = self.pool.find(sequence.block_hash(key, index)) else { break };
            self.pool.share(block);
            sequence.block_table.push(block);
        }
        sequence.num_named = sequence.block_table.len();
        sequence.num_computed_tokens = sequence.num_named * BLOCK_SIZE;
        self.accounts.hold(sequence.tenant, sequence.num_named);
    }

    /// Takes it away again from one that is not admitted after all.
    fn unshare_prefix(&mut self, id: RequestId) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are admitted");
        self.accounts.release(sequence.tenant, sequence.block_table.len());
        self.pool.free(sequence.block_table.drain(..));
        sequence.num_named = 0;
        sequence.num_computed_tokens = 0;
    }

    /// Counts what an admitted sequence found.
    fn note_prefix(&mut self, id: RequestId) {
        if self.config.prefix_cache.is_none() {
            return;
        }
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are admitted");
        if sequence.num_cached_tokens.is_none() {
            sequence.num_cached_tokens = Some(sequence.num_computed_tokens);
            self.prefix_cache_queries += sequence.prompt_len as u64;
            self.prefix_cache_hits += sequence.num_computed_tokens as u64;
            let cost = self.costs.cached * sequence.num_computed_tokens as f64;
            self.accounts.charge(sequence.tenant, cost);
        }
    }

    /// Extends a sequence's block table to cover `num_tokens` more, or leaves
    /// it as it is where there are too few blocks.
    fn grow_table(&mut self, id: RequestId, num_tokens: usize) -> Result<(), Lack> {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are scheduled");
        let needed = SchedulerConfig::blocks_for(sequence.num_computed_tokens + num_tokens);
        let missing = needed.saturating_sub(sequence.block_table.len());
        if missing == 0 {
            return Ok(());
        }
        let account = self.accounts.get(sequence.tenant);
        if !account.may_hold(missing, account.running) {
            return Err(Lack::Tenant);
        }
        if missing > self.pool.num_free() {
            return Err(Lack::Pool);
        }
        for _ in 0..missing {
            let block = self.pool.allocate().expect("the free blocks were counted above");
            sequence.block_table.push(block);
        }
        self.accounts.hold(sequence.tenant, missing);
        Ok(())
    }

    fn push_scheduled(&mut self, id: RequestId, num_tokens: usize, batch: &mut ScheduledBatch) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are scheduled");
        let start = sequence.num_computed_tokens;
        let end = start + num_tokens;
        let reaches_end = end == sequence.len();
        let is_decode = sequence.sampled_in_seat && reaches_end && num_tokens == 1;
        let input = if is_decode {
            Input::LastSampled
        } else {
            let from = batch.token_ids.len();
            batch.token_ids.extend_from_slice(&sequence.tokens[start..end]);
            Input::Tokens(from..batch.token_ids.len())
        };
        let sample = if reaches_end {
            let output_index = u32::try_from(sequence.num_output_tokens())
                .expect("max_tokens, a 32-bit number, bounds the output");
            sequence.num_in_flight += 1;
            sequence.sampled_in_seat = true;
            Sample::Token { output_index }
        } else {
            Sample::Nothing
        };
        let table_start = batch.block_tables.len();
        batch.block_tables.extend_from_slice(&sequence.block_table);
        batch.sequences.push(ScheduledSequence {
            request: id,
            slot: sequence.slot.expect("scheduled sequences have a seat"),
            input,
            num_computed_tokens: start,
            block_table: table_start..batch.block_tables.len(),
            sample,
        });
        batch.num_tokens += num_tokens;
        sequence.num_computed_tokens = end;
        sequence.last_step = self.step;
        // What is computed again after a preemption was charged before.
        let fresh = end.saturating_sub(sequence.num_charged.max(start)) as f64;
        sequence.num_charged = sequence.num_charged.max(end);
        let cost = if is_decode { self.costs.decode * fresh } else { fresh };
        self.accounts.charge(sequence.tenant, cost);
    }

    /// Requests that the last [`Scheduler::schedule`] preempted: it freed their blocks. One
    /// may have been admitted again since.
    #[must_use]
    pub fn preempted(&self) -> &[RequestId] {
        &self.preempted
    }

    /// Tokens generated for a request; `None` if there is no such request.
    #[must_use]
    pub fn num_generated(&self, id: RequestId) -> Option<usize> {
        self.sequences.get(&id).map(Sequence::num_generated)
    }

    /// The state in numbers.
    #[must_use]
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            running: self.running.len(),
            waiting: self.accounts.num_waiting(),
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
        if !self.accounts.knows(id) {
            return TenantStats::default();
        }
        let account = self.accounts.get(id);
        TenantStats {
            running: account.running,
            waiting: account.waiting(),
            waiting_tokens: account.waiting_tokens(),
            blocks: account.blocks,
            share: self.accounts.share(id),
            counter: account.counter(),
        }
    }

    /// Checks everything that must hold between steps.
    ///
    /// # Panics
    /// Naming the invariant that is broken.
    pub fn check_invariants(&self) {
        self.pool.check_invariants(self.sequences.values().map(|s| &s.block_table[..]));
        assert_eq!(
            self.running.len() + self.accounts.num_waiting(),
            self.sequences.len(),
            "every request runs or waits"
        );
        assert!(self.running.len() <= self.config.max_num_seqs, "seats are bounded");
        let mut taken: Vec<u32> = self.free_slots.iter().map(|&Reverse(slot)| slot).collect();
        for Running { id, tenant } in &self.running {
            let sequence = &self.sequences[id];
            assert_eq!(sequence.tenant, *tenant, "a seat is its tenant's");
            taken.push(sequence.slot.expect("a running sequence has a seat").0);
            assert!(
                sequence.block_table.len() * BLOCK_SIZE >= sequence.num_computed_tokens,
                "a block table covers what was computed"
            );
            assert!(sequence.num_pending() > 0, "a running sequence has something to compute");
        }
        taken.sort_unstable();
        assert!(
            taken.iter().copied().eq(0..self.config.max_num_seqs as u32),
            "every seat is free or taken, once"
        );
        let mut held: BTreeMap<TenantId, (usize, usize, usize)> = BTreeMap::new();
        for sequence in self.sequences.values() {
            let (running, waiting, blocks) = held.entry(sequence.tenant).or_default();
            *running += usize::from(sequence.slot.is_some());
            *waiting += usize::from(sequence.slot.is_none());
            *blocks += sequence.block_table.len();
            assert!(
                sequence.tokens.len() < sequence.prompt_len + sequence.params.max_tokens as usize,
                "request {} goes on only below max_tokens",
                sequence.id.0
            );
            if sequence.slot.is_none() {
                assert!(sequence.block_table.is_empty(), "a waiting request holds no block");
                assert_eq!(sequence.num_computed_tokens, 0, "a waiting request starts anew");
            }
        }
        self.accounts.check_invariants(&held);
    }
}
