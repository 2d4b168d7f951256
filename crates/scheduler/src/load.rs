//! What a scheduler has to do at one moment, and what a request may expect of that.

use sconce_types::{BLOCK_SIZE, TenantId};

use crate::{
    Scheduler, SchedulerConfig, SchedulingPolicy, StepLimit, StepModel, StepWork,
    output_lengths::OutputLengths,
};

/// A scheduler's load: all that predictions go by, so that they can be made where the
/// scheduler is not. Requests that are taken later are added to it.
#[derive(Clone, Debug)]
pub struct Load {
    config: SchedulerConfig,
    step_limit: Option<StepLimit>,
    running: usize,
    decodes: f64,
    /// Prompt tokens of running sequences that are not computed.
    prefilling: f64,
    /// Tokens that running sequences have computed.
    context: f64,
    used_blocks: usize,
    waiting: usize,
    waiting_tokens: usize,
    mean_output: f64,
    saturation: f64,
    decode_cost: f64,
    tenants: Vec<TenantLoad>,
    /// A tenant that the scheduler has not heard of.
    stranger: TenantLoad,
}

/// What a tenant has in a scheduler.
#[derive(Clone, Copy, Debug)]
struct TenantLoad {
    running: usize,
    waiting: usize,
    waiting_tokens: usize,
    max_running: usize,
    max_queued: usize,
    /// Its part of the engine if it has a request.
    share: f64,
    /// Cost that is served to others before it is its turn again.
    debt: f64,
    /// Cost that it is served before others.
    credit: f64,
    lengths: OutputLengths,
}

/// What a request may expect, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// To its first token.
    pub ttft: f64,
    /// From each token to the next, while other requests come and go as they did of late.
    pub tpot: f64,
}

impl Prediction {
    /// To the end of an answer of so many tokens.
    #[must_use]
    pub fn end(&self, tokens: usize) -> f64 {
        self.ttft + self.tpot * tokens.saturating_sub(1) as f64
    }
}

impl Scheduler {
    /// Writes the present load over `load`.
    pub fn load(&self, load: &mut Load) {
        let Self { config, queue, .. } = self;
        (load.config, load.step_limit) = (*config, self.step_limit);
        (load.running, load.decodes, load.prefilling, load.context) = (0, 0.0, 0.0, 0.0);
        for running in &self.running {
            let sequence = &self.sequences[&running.id];
            load.running += 1;
            load.context += sequence.num_scheduled as f64;
            if sequence.is_decode() {
                load.decodes += 1.0;
            } else {
                load.prefilling += sequence.num_pending() as f64;
            }
        }
        load.used_blocks = self.pool.num_blocks() - self.pool.num_free();
        (load.waiting, load.waiting_tokens) = (queue.num_waiting(), queue.waiting_tokens());
        load.mean_output = self.mean_output;
        load.saturation = self.saturation;
        load.decode_cost = self.costs.decode;
        load.tenants.clear();
        let ids = (0..queue.len()).map(|index| TenantId(index as u32));
        load.tenants.extend(ids.map(|id| self.tenant_load(id)));
        load.stranger = self.tenant_load(TenantId(queue.len() as u32));
    }

    fn tenant_load(&self, id: TenantId) -> TenantLoad {
        let queue = &self.queue;
        let is_fair = self.config.policy == SchedulingPolicy::Fair;
        let mut load = TenantLoad {
            running: 0,
            waiting: 0,
            waiting_tokens: 0,
            max_running: usize::MAX,
            max_queued: usize::MAX,
            share: if is_fair { queue.share_if_active(id) } else { 1.0 },
            debt: if is_fair { queue.debt(id) } else { 0.0 },
            credit: queue.credit(id),
            lengths: OutputLengths::default(),
        };
        if queue.knows(id) {
            let tenant = queue.tenant(id);
            load.running = tenant.running;
            (load.waiting, load.waiting_tokens) = (tenant.waiting(), tenant.waiting_tokens());
            (load.max_running, load.max_queued) = (tenant.max_running(), tenant.max_queued);
            load.lengths = tenant.lengths;
        }
        load
    }

    /// Seconds from one request's end to the next, while as many run as do now.
    #[must_use]
    pub fn seconds_per_end(&self, model: &StepModel) -> f64 {
        let rows = self.running.len().max(1) as f64;
        let step = model.predict(StepWork { decode: rows, ..StepWork::default() });
        step * self.mean_output / rows
    }

    /// What a request of a tenant with a prompt of so many tokens may expect if it came
    /// now, with steps that take what `model` says.
    #[must_use]
    pub fn predict(&self, model: &StepModel, tenant: TenantId, prompt_len: usize) -> Prediction {
        let mut load = Load::new(self);
        self.load(&mut load);
        load.predict(model, tenant, prompt_len)
    }
}

impl Load {
    /// The load of a scheduler.
    #[must_use]
    pub fn new(scheduler: &Scheduler) -> Self {
        let mut load = Self {
            config: scheduler.config,
            step_limit: None,
            running: 0,
            decodes: 0.0,
            prefilling: 0.0,
            context: 0.0,
            used_blocks: 0,
            waiting: 0,
            waiting_tokens: 0,
            mean_output: 0.0,
            saturation: 0.0,
            decode_cost: 0.0,
            tenants: Vec::new(),
            stranger: scheduler.tenant_load(TenantId(u32::MAX)),
        };
        scheduler.load(&mut load);
        load
    }

    fn tenant(&self, id: TenantId) -> &TenantLoad {
        self.tenants.get(id.index()).unwrap_or(&self.stranger)
    }

    /// Adds a request that will wait.
    pub fn add(&mut self, tenant: TenantId, prompt_len: usize) {
        if self.tenants.len() <= tenant.index() {
            self.tenants.resize(tenant.index() + 1, self.stranger);
        }
        let own = &mut self.tenants[tenant.index()];
        own.waiting += 1;
        own.waiting_tokens += prompt_len;
        self.waiting += 1;
        self.waiting_tokens += prompt_len;
    }

    /// Takes back what [`Load::add`] added.
    pub fn remove(&mut self, tenant: TenantId, prompt_len: usize) {
        let own = &mut self.tenants[tenant.index()];
        own.waiting -= 1;
        own.waiting_tokens -= prompt_len;
        self.waiting -= 1;
        self.waiting_tokens -= prompt_len;
    }

    /// Requests that run or wait.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.running + self.waiting
    }

    /// The limit of a tenant's queue, if another request would exceed it.
    #[must_use]
    pub fn full_queue(&self, tenant: TenantId) -> Option<usize> {
        let own = self.tenant(tenant);
        // A request that comes while slots are free only waits for the next step.
        let free = self.config.max_num_seqs - self.running;
        let could_run = free.min(own.max_running.saturating_sub(own.running));
        let is_full = own.waiting >= own.max_queued.saturating_add(could_run);
        is_full.then_some(own.max_queued)
    }

    /// Whether a tenant that asks for one more has less than its share of the requests here,
    /// which others have the rest of.
    #[must_use]
    pub fn is_below_share(&self, tenant: TenantId) -> bool {
        let own = self.tenant(tenant);
        let (has, all) = (own.running + own.waiting, self.unfinished());
        has < all && (has + 1) as f64 <= own.share * (all + 1) as f64
    }

    /// Tokens that an answer of a tenant's hardly ever exceeds.
    #[must_use]
    pub fn longest_output(&self, tenant: TenantId, max_tokens: usize) -> usize {
        self.tenant(tenant).lengths.high(max_tokens)
    }

    /// Seconds from one request's end to the next.
    #[must_use]
    pub fn seconds_per_end(&self, model: &StepModel) -> f64 {
        let rows = self.running.max(1) as f64;
        let step = model.predict(StepWork { decode: rows, ..StepWork::default() });
        step * self.mean_output / rows
    }

    /// Sequences that can run at once: by slots, and by KV-cache blocks if they hold as
    /// many as those that run now will on average.
    fn slots(&self, prompt_len: usize) -> f64 {
        let SchedulerConfig { max_num_seqs, num_blocks, .. } = self.config;
        let growth = self.mean_output / 2.0 / BLOCK_SIZE as f64;
        let each = if self.running > 0 {
            self.used_blocks as f64 / self.running as f64
        } else {
            SchedulerConfig::blocks_for(prompt_len) as f64
        };
        (num_blocks as f64 / (each + growth)).clamp(1.0, max_num_seqs as f64)
    }

    /// What a request of a tenant with a prompt of so many tokens may expect beside this
    /// load, with steps that take what `model` says.
    ///
    /// Prompts wait for the step's budget and for slots. Under first come, first served a
    /// request waits for all that came before; under fair shares for its own tenant's queue
    /// at its share's pace, or for all if that is sooner. Outputs are taken to be as long
    /// as they were of late.
    #[must_use]
    pub fn predict(&self, model: &StepModel, tenant: TenantId, prompt_len: usize) -> Prediction {
        let is_fair = self.config.policy == SchedulingPolicy::Fair;
        let own = self.tenant(tenant);
        let slots = self.slots(prompt_len);
        let (running, waiting) = (self.running as f64, self.waiting as f64);
        let prompt = prompt_len as f64;
        // As the step is while others' prompts and this one are computed.
        let rows = (running + waiting + 1.0).min(slots.max(running));
        let (decoding, decodes) = (self.decoding(rows), self.decoding(self.decodes));
        let room = self.prefill_of_step(decodes, prompt / 2.0);
        let attended = decodes.attended + room * prompt / 2.0;
        let full = StepWork { prefill: room, attended, ..decodes };
        let full_step = model.predict(full);
        let pace = room / full_step;
        let all = self.waiting_tokens as f64 + self.prefilling + prompt;
        let own_tokens = own.waiting_tokens as f64 + prompt;
        // A tenant that was served more than others lately lets them catch up first.
        let cost_pace = (room + self.decodes * self.decode_cost) / full_step;
        let debt = own.debt / cost_pace;
        // Requests that come later from tenants with less served go before it, the more the
        // busier the engine is.
        let overtaken = if is_fair { 1.0 / (1.0 - self.saturation).max(1e-6) } else { 1.0 };
        let for_all = all / pace * overtaken;
        let for_prompts = if is_fair {
            // What it has saved up is served before anything else.
            let saved = own.credit.min(own_tokens);
            (debt + (saved + (own_tokens - saved) / own.share) / pace).min(for_all)
        } else {
            for_all
        };
        // Each request that takes a slot has its prompt computed first, while all wait.
        let without = model.predict(decodes);
        let mean_prompt = all / (waiting + 1.0);
        let prefill = mean_prompt * (full_step - without) / room;
        let decode = self.mean_output.max(1.0) * model.predict(decoding) / rows;
        let ends = 1.0 / (decode + prefill);
        let own_slots = own.running as f64 + own.waiting as f64 + 1.0;
        let has_right = is_fair && own_slots <= (own.share * slots).max(1.0);
        let for_slot = if running + waiting < slots || has_right {
            0.0
        } else {
            let behind_all = (running + waiting + 1.0 - slots) / ends * overtaken;
            let behind_own = debt + (own.waiting as f64 + 1.0) / (ends * own.share);
            if is_fair { behind_all.min(behind_own) } else { behind_all }
        };
        // A tenant with a limit of its own waits for its own to end.
        let over = own_slots - own.max_running as f64;
        let for_own = over.max(0.0) / (ends / rows * own.max_running.max(1) as f64);
        // Where all prompts fit one step, that step is what it takes; otherwise the last of
        // its own ends with a step that others fill.
        let (for_prompts, last) =
            if all <= room { (0.0, 0.0) } else { (for_prompts, 0.5 * full_step) };
        let attended = decodes.attended + prompt * prompt / 2.0;
        let alone = StepWork { prefill: all.min(room), attended, ..decodes };
        let waits = for_prompts.max(for_slot).max(for_own);
        let ttft = (waits + last).max(model.predict(alone));
        let tpot = self.pace(model, 1, prompt_len);
        Prediction { ttft, tpot }
    }

    /// Seconds from token to token with `more` requests beside this load. Other prompts are
    /// computed beside decodes as they were of late, if there is anything beside them.
    pub(crate) fn pace(&self, model: &StepModel, more: usize, prompt_len: usize) -> f64 {
        let running = self.running as f64;
        let all = (self.unfinished() + more) as f64;
        let rows = all.min(self.slots(prompt_len).max(running)).max(1.0);
        let decoding = self.decoding(rows);
        let mixed = if rows > 1.0 { model.prefill_per_decode() * rows } else { 0.0 };
        let context = prompt_len as f64 / 2.0;
        let mixed = mixed.min(self.prefill_of_step(decoding, context));
        let attended = decoding.attended + mixed * context;
        model.predict(StepWork { prefill: mixed, attended, ..decoding })
    }

    /// So many decodes, with the context that running sequences have on average.
    fn decoding(&self, rows: f64) -> StepWork {
        let mean_context = if self.running > 0 { self.context / self.running as f64 } else { 0.0 };
        StepWork { prefill: 0.0, decode: rows, attended: rows * mean_context }
    }

    /// Prompt tokens that a step computes beside these decodes, if there are enough.
    fn prefill_of_step(&self, decodes: StepWork, context: f64) -> f64 {
        let most = (self.config.max_num_batched_tokens as f64 - decodes.decode).max(1.0);
        let Some(limit) = self.step_limit else { return most };
        let seconds = limit.seconds_for_prefill(decodes);
        most.min(limit.longest_chunk(seconds, context).max(StepLimit::FLOOR as f64))
    }
}
