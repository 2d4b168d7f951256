//! One simulated engine: the real scheduler, and a clock that moves by what steps take.

use std::{collections::HashMap, sync::Arc};

use sconce_scheduler::{
    Admission, Ask, Deadlines, Load, Output, Request, Scheduler, StepLimit, StepModel, StepWork,
    TokenCosts,
};
use sconce_types::{
    Input, RequestId, Sample, SampleOutcome, SamplingParams, ScheduledBatch, StepResult, Tenant,
    TenantId,
};

use crate::{
    ConfigError, Device, Policy, SimulationConfig,
    admission::{self, Targets},
    tally::{Outcome, Tally},
    trace::Arrival,
};

/// What all engines share: what comes, what is written down, and memory.
pub(crate) struct Run<'a> {
    pub(crate) arrivals: &'a [Arrival],
    pub(crate) device: &'a Device,
    pub(crate) targets: Vec<Targets>,
    pub(crate) admission: bool,
    pub(crate) tally: Tally,
    /// One for each length of an output.
    params: HashMap<u32, Arc<SamplingParams>>,
    batch: ScheduledBatch,
    result: StepResult,
    outputs: Vec<Output>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        arrivals: &'a [Arrival],
        config: &'a SimulationConfig,
        tenants: &[Tenant],
        policy: Policy,
    ) -> Self {
        let targets = tenants.iter().map(|tenant| Targets::new(tenant, config.timeout));
        Self {
            arrivals,
            device: &config.device,
            targets: targets.collect(),
            admission: policy.admission,
            tally: Tally::new(arrivals, tenants.len()),
            params: HashMap::new(),
            batch: ScheduledBatch::default(),
            result: StepResult::default(),
            outputs: Vec::new(),
        }
    }

    fn params(&mut self, max_tokens: u32) -> Arc<SamplingParams> {
        let params = || SamplingParams { max_tokens, ..SamplingParams::default() };
        Arc::clone(self.params.entry(max_tokens).or_insert_with(|| Arc::new(params())))
    }
}

/// One simulated engine.
pub(crate) struct Engine {
    pub(crate) scheduler: Scheduler,
    /// What it has learnt of its device.
    learnt: StepModel,
    /// What tokens cost by that, as its scheduler counts them.
    costs: TokenCosts,
    /// Decides as in real engines: when a request comes, whatever step runs.
    admission: Admission,
    /// Memory for the next load.
    spare_load: Load,
    /// Requests that the scheduler was given since its load was published.
    given: usize,
    /// The step that was begun last, if its load is not published: when, and its
    /// predicted seconds.
    unpublished: Option<(f64, f64)>,
    target_itl: Option<f64>,
    /// Requests that have not ended.
    unfinished: usize,
    /// When requests end if they have come no further.
    deadlines: Deadlines<u32>,
    /// Requests that came while a step ran.
    inbox: Vec<u32>,
    /// Whether a step runs, or is about to.
    pub(crate) is_busy: bool,
    /// Prompt tokens that wait and sequences that decode, once the present step has ended.
    pub(crate) load: u64,
}

impl Engine {
    pub(crate) fn new(
        config: &SimulationConfig,
        tenants: &[Tenant],
        policy: Policy,
    ) -> Result<Self, ConfigError> {
        let device = &config.device;
        let scheduler = Scheduler::new(device.limits(policy.scheduling));
        let mut scheduler = scheduler.map_err(|error| ConfigError::Device(error.to_string()))?;
        scheduler.set_tenants(tenants);
        let mut known = tenants.to_vec();
        let mut max_queue_wait = f64::INFINITY;
        if policy.admission {
            let wait = config.max_queue_wait.map(|wait| wait.as_secs_f64());
            max_queue_wait = wait.unwrap_or(max_queue_wait);
        } else {
            for tenant in &mut known {
                (tenant.ttft_target, tenant.tpot_target) = (None, None);
            }
        }
        // Limits of tokens a minute are not simulated.
        known.iter_mut().for_each(|tenant| tenant.tokens_per_minute = None);
        let admission = Admission::new(&scheduler, &known, device.places(), max_queue_wait);
        let spare_load = Load::new(&scheduler);
        Ok(Self {
            scheduler,
            learnt: StepModel::default(),
            costs: TokenCosts::default(),
            admission,
            spare_load,
            given: 0,
            unpublished: None,
            target_itl: config.target_itl.map(|target| target.as_secs_f64()),
            unfinished: 0,
            deadlines: Deadlines::default(),
            inbox: Vec::new(),
            is_busy: false,
            load: 0,
        })
    }

    /// A request comes, and is taken or refused; says whether it is taken.
    pub(crate) fn send(&mut self, request: u32, shared: &mut Run<'_>) -> bool {
        let arrival = shared.arrivals[request as usize];
        let Arrival { at: now, tenant, prompt_len, output_len } = arrival;
        // Before anything is allocated for it.
        if (prompt_len + output_len) as usize > shared.device.max_model_len {
            shared.tally.end(request, Outcome::NeverFits, 0.0);
            return false;
        }
        if let Some((began, seconds)) = self.unpublished.take() {
            let given = std::mem::take(&mut self.given);
            let Self { scheduler, spare_load, learnt, .. } = self;
            scheduler.load(spare_load);
            self.admission.publish(scheduler, spare_load, learnt, given, began, seconds);
        }
        let timeout = shared.targets[tenant as usize].end;
        let ask = Ask {
            id: RequestId(u64::from(request)),
            tenant: TenantId(tenant),
            prompt_len: prompt_len as usize,
            max_tokens: output_len as usize,
            timeout: (shared.admission && timeout.is_finite()).then_some(timeout),
        };
        let expected = match self.admission.take(&ask, self.unfinished == 0, now) {
            Ok(admitted) => admitted.expected,
            Err(refused) => {
                shared.tally.end(request, admission::outcome(refused.shortage), 0.0);
                return false;
            }
        };
        if let Some(expected) = expected {
            shared.tally.records[request as usize].predicted = expected.ttft as f32;
        }
        self.unfinished += 1;
        self.inbox.push(request);
        self.load += u64::from(prompt_len);
        true
    }

    /// What an engine does between two steps, at `now`: ends what is overdue, takes what
    /// came, and is left with what the next step works on.
    pub(crate) fn take_arrivals(&mut self, now: f64, shared: &mut Run<'_>) {
        self.end_overdue(now, shared);
        let mut inbox = std::mem::take(&mut self.inbox);
        for request in inbox.drain(..) {
            self.take(request, now, shared);
        }
        self.inbox = inbox;
        // A step may have been longer than a deadline is away.
        self.end_overdue(now, shared);
    }

    fn end_overdue(&mut self, now: f64, shared: &mut Run<'_>) {
        while let Some(request) = self.deadlines.pop(now) {
            let record = shared.tally.records[request as usize];
            let arrival = shared.arrivals[request as usize];
            let age = now - arrival.at;
            let outcome = match (record.outcome, record.ttft >= 0.0) {
                (Outcome::Pending, false) => Outcome::Late,
                (Outcome::Pending, true) if age >= shared.targets[arrival.tenant as usize].end => {
                    Outcome::TimedOut
                }
                _ => continue,
            };
            self.scheduler.cancel(RequestId(u64::from(request)));
            self.leave(arrival.tenant);
            self.load -= if record.ttft < 0.0 { u64::from(arrival.prompt_len) } else { 1 };
            shared.tally.end(request, outcome, age);
        }
    }

    /// Queues a request that was taken when it came.
    fn take(&mut self, request: u32, now: f64, shared: &mut Run<'_>) {
        let Arrival { at, tenant, prompt_len, output_len } = shared.arrivals[request as usize];
        self.given += 1;
        let params = shared.params(output_len);
        let prompt = vec![0; prompt_len as usize];
        let id = RequestId(u64::from(request));
        let new = Request { tenant: TenantId(tenant), ..Request::new(id, prompt, params) };
        if let Err(refusal) = self.scheduler.add(new) {
            self.leave(tenant);
            self.load -= u64::from(prompt_len);
            use sconce_scheduler::Refusal::{QueueFull, TenantQueueFull};
            let is_full = matches!(refusal, QueueFull { .. } | TenantQueueFull { .. });
            let outcome = if is_full { Outcome::QueueFull } else { Outcome::NeverFits };
            shared.tally.end(request, outcome, now - at);
        } else if shared.admission {
            let targets = shared.targets[tenant as usize];
            self.deadlines.add(at + targets.ttft, request);
            if targets.end > targets.ttft {
                self.deadlines.add(at + targets.end, request);
            }
        }
    }

    fn leave(&mut self, tenant: u32) {
        self.admission.leave(TenantId(tenant));
        self.unfinished -= 1;
    }

    /// Schedules and computes the next step, and says when it ends; `None` if there is
    /// nothing to do. Its tokens are there at once for the scheduler, which is not asked
    /// again before the step's end, and at that end for whoever waits for them.
    pub(crate) fn step(&mut self, now: f64, shared: &mut Run<'_>) -> Option<f64> {
        self.scheduler.schedule(&mut shared.batch);
        if shared.batch.is_empty() {
            assert_eq!(self.load, 0, "a scheduler with requests schedules something");
            self.unpublished = Some((now, 0.0));
            return None;
        }
        let seconds = shared.device.seconds(&shared.batch);
        let end = now + seconds;
        let work = StepWork::of(&shared.batch);
        self.unpublished = Some((now, self.learnt.predict(work)));
        self.learnt.observe(work, seconds);
        let limit = self.target_itl.map(|target| StepLimit::new(target, &self.learnt));
        self.scheduler.set_step_limit(limit);
        let tally = &mut shared.tally;
        tally.steps += 1;
        tally.longest_step = tally.longest_step.max(seconds);
        shared.result.clear(shared.batch.step);
        let in_window = end <= tally.window;
        for sequence in &shared.batch.sequences {
            let request = sequence.request.0 as usize;
            let record = &mut tally.records[request];
            let after = (sequence.num_computed_tokens + sequence.input.len()) as u32;
            let before = record.charged.max(sequence.num_computed_tokens as u32);
            record.charged = record.charged.max(after);
            if in_window {
                let fresh = f64::from(after.saturating_sub(before));
                let cost = if sequence.input == Input::LastSampled {
                    tally.decodes += fresh;
                    tally.decode_cost += fresh * self.costs.decode;
                    fresh * self.costs.decode
                } else {
                    fresh
                };
                tally.served[record.tenant as usize] += cost;
            }
            match sequence.sample {
                Sample::Nothing => shared.result.push(SampleOutcome::Nothing),
                Sample::Token { .. } => shared.result.push_token(0),
            }
        }
        let mut outputs = std::mem::take(&mut shared.outputs);
        self.scheduler.commit(&shared.batch, &mut shared.result, &mut outputs);
        for output in outputs.drain(..) {
            self.note(&output, end, seconds, shared);
        }
        shared.outputs = outputs;
        if shared.batch.step.is_multiple_of(StepModel::COSTS_EVERY) {
            self.costs = self.learnt.costs();
            self.scheduler.set_costs(self.costs);
        }
        Some(end)
    }

    /// Writes down a token.
    fn note(&mut self, output: &Output, end: f64, seconds: f64, shared: &mut Run<'_>) {
        let request = output.request.0 as u32;
        let tally = &mut shared.tally;
        let in_window = end <= tally.window;
        tally.generated += u64::from(in_window);
        let record = &mut tally.records[request as usize];
        let is_first = record.ttft < 0.0;
        if !is_first && output.finish.is_none() {
            return;
        }
        let arrival = shared.arrivals[request as usize];
        let age = end - arrival.at;
        if is_first {
            record.ttft = age as f32;
            self.load = self.load + 1 - u64::from(arrival.prompt_len);
            if shared.admission {
                let overrun = age - shared.targets[arrival.tenant as usize].ttft;
                tally.worst_overrun = tally.worst_overrun.max(overrun);
                assert!(overrun <= seconds, "what is overdue is ended before a step");
            }
        }
        if output.finish.is_some() {
            self.load -= 1;
            self.admission.leave(TenantId(arrival.tenant));
            self.unfinished -= 1;
            tally.finished += u64::from(in_window);
            tally.end(request, Outcome::Finished, age);
        }
    }
}
