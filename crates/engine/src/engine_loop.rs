//! The loop of the engine's thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, TryRecvError, channel, sync_channel},
    },
    time::{Duration, Instant},
};

use sconce_scheduler::{
    Admission, ByRequest, Deadlines, Finish, Load, Output, Scheduler, SchedulerConfig,
    SchedulerStats, StepModel, StepWork,
};
use sconce_types::{
    EndReason, Executor, ExecutorError, MeterEntry, MeterSink, RequestId, SampledTokens,
    ScheduledBatch, Tenant,
};

use crate::{
    EngineHandle, EngineLimits, EngineOptions, FinishReason, Metrics, RecordSink, RequestError,
    RequestEvent, TokenEvent,
    admission::{self, Deadline, Door},
    engine::panic_message,
    live::LiveRequest,
    metering::Meter,
    publish::PUBLISHED_AT_ONCE,
    shared::{CONTROL_MESSAGES, Message, Shared},
    tenants::TenantTable,
};

/// Messages that are read before a step is computed.
const MESSAGES_A_TURN: usize = 1024;

/// What the engine's thread owns.
pub(crate) struct EngineLoop<E> {
    pub(crate) scheduler: Scheduler,
    /// `None` only while it is being rebuilt.
    pub(crate) executor: Option<E>,
    pub(crate) inbox: Receiver<Message>,
    pub(crate) cancels: Receiver<RequestId>,
    pub(crate) requests: ByRequest<LiveRequest>,
    pub(crate) tenants: TenantTable,
    /// In seconds since the start.
    pub(crate) deadlines: Deadlines<(RequestId, Deadline)>,
    pub(crate) model: StepModel,
    /// Seconds between tokens that prefill is to leave to decodes.
    pub(crate) target_itl: Option<f64>,
    /// Submissions that were read since the load was published, and when that was.
    pub(crate) given: usize,
    pub(crate) load_published: Option<Instant>,
    /// Memory for the next load, which is filled before the lock is taken.
    pub(crate) spare_load: Load,
    pub(crate) meter: Meter,
    pub(crate) sink: Option<Box<dyn MeterSink>>,
    pub(crate) recorder: Option<Box<dyn RecordSink>>,
    /// What the ledger is to be told.
    pub(crate) entries: Vec<MeterEntry>,
    /// When tenants' metrics were brought up to date.
    pub(crate) published: Instant,
    pub(crate) batch: ScheduledBatch,
    pub(crate) sampled: SampledTokens,
    pub(crate) outputs: Vec<Output>,
    pub(crate) failed: Vec<RequestId>,
    /// What was published last.
    pub(crate) seen: SchedulerStats,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Whether the loop goes on.
enum Turn {
    Continue,
    /// With another executor.
    Rebuild,
    Stop,
}

impl<E: Executor> EngineLoop<E> {
    pub(crate) fn new(
        options: EngineOptions,
        vocab_size: usize,
        mut executor: E,
        mut scheduler: Scheduler,
        config: SchedulerConfig,
    ) -> (EngineHandle, Self) {
        let limits = EngineLimits {
            max_model_len: config.max_model_len,
            vocab_size,
            num_blocks: config.num_blocks,
            max_num_seqs: config.max_num_seqs,
            max_queued: config.max_queued,
            policy: config.policy,
        };
        let places = config.max_num_seqs + config.max_queued;
        let (inbox_sender, inbox) = sync_channel(places + CONTROL_MESSAGES);
        // Bounded by the number of unfinished requests: each is cancelled once at most.
        let (cancel_sender, cancels) = channel();
        let EngineOptions { model_name, tenants: named, mut sink, recorder, .. } = options;
        let metrics = Arc::new(Metrics::new(&model_name, config.num_blocks));
        if let Some(sink) = &mut sink {
            let metrics = Arc::clone(&metrics);
            sink.on_change(Box::new(move |state| metrics.note_ledger(state)));
        }
        let max_queue_wait = options.max_queue_wait.map_or(f64::INFINITY, |t| t.as_secs_f64());
        let admission = Admission::new(&scheduler, &named, places, max_queue_wait);
        let spare_load = Load::new(&scheduler);
        let shared = Arc::new(Shared::new(Door::new(admission, &named, &metrics)));
        let mut tenants = TenantTable::new();
        tenants.update(&named, &metrics);
        scheduler.set_tenants(&named);
        let handle = EngineHandle::new(
            inbox_sender,
            cancel_sender,
            Arc::clone(&shared),
            Arc::clone(&metrics),
            limits,
        );
        let mut engine = Self {
            scheduler,
            meter: Meter::new(executor.energy_meter()),
            executor: Some(executor),
            inbox,
            cancels,
            requests: ByRequest::default(),
            tenants,
            deadlines: Deadlines::default(),
            model: StepModel::default(),
            target_itl: options.target_itl.map(|target| target.as_secs_f64()),
            given: 0,
            load_published: None,
            spare_load,
            sink,
            recorder,
            entries: Vec::new(),
            published: Instant::now(),
            batch: ScheduledBatch::default(),
            sampled: SampledTokens::default(),
            outputs: Vec::new(),
            failed: Vec::new(),
            seen: SchedulerStats::default(),
            shared,
            metrics,
        };
        if options.warm_up {
            engine.warm_up(config);
        }
        engine.limit_steps();
        engine.publish_load(0.0, true);
        (handle, engine)
    }

    /// Runs until every handle is gone, the executor is lost for good, or a bug
    /// panics. `build` gives another executor, for the same limits.
    pub(crate) fn run(
        mut self,
        config: SchedulerConfig,
        mut build: impl FnMut() -> Result<(E, SchedulerConfig), String>,
    ) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut rebuilt = false;
            loop {
                match self.turn() {
                    Turn::Continue => {}
                    Turn::Rebuild if !rebuilt => {
                        rebuilt = true;
                        if let Err(reason) = self.rebuild(config, &mut build) {
                            tracing::error!("the engine did not start again: {reason}");
                            break;
                        }
                    }
                    Turn::Rebuild => {
                        tracing::error!("the executor is lost for the second time");
                        break;
                    }
                    Turn::Stop => break,
                }
            }
        }));
        self.shared.end();
        if let Err(cause) = outcome {
            tracing::error!("the engine's loop panicked: {}", panic_message(cause.as_ref()));
        }
        // Dropping the requests closes their channels: their readers see EngineLost.
    }

    fn rebuild(
        &mut self,
        config: SchedulerConfig,
        build: &mut impl FnMut() -> Result<(E, SchedulerConfig), String>,
    ) -> Result<(), String> {
        self.shared.restarting.store(true, Ordering::Release);
        // Its memory is needed for the next one.
        self.executor = None;
        let (executor, rebuilt_config) = build()?;
        if rebuilt_config != config {
            return Err(format!("it would have other limits: {rebuilt_config:?}, not {config:?}"));
        }
        self.executor = Some(executor);
        self.metrics.engine_restarts.inc();
        self.shared.beat(true);
        self.shared.restarting.store(false, Ordering::Release);
        tracing::info!("the engine has started again");
        Ok(())
    }

    fn turn(&mut self) -> Turn {
        let turn_started = Instant::now();
        self.take_cancels();
        if matches!(self.take_messages(), Turn::Stop) {
            return Turn::Stop;
        }
        self.end_overdue(turn_started);
        if self.shared.reset_prefix_cache.swap(false, Ordering::AcqRel) {
            self.scheduler.reset_prefix_cache();
        }
        self.scheduler.schedule(&mut self.batch);
        for id in self.scheduler.preempted() {
            if let Some(live) = self.requests.get_mut(id) {
                live.note_release(turn_started);
            }
        }
        self.publish_gauges();
        if self.batch.is_empty() {
            return self.wait_for_work();
        }
        self.shared.beat(false);
        self.publish_load(self.model.predict(StepWork::of(&self.batch)), false);
        for admitted in &self.batch.admitted {
            if let Some(live) = self.requests.get_mut(&admitted.request) {
                live.note_admission(&self.metrics, turn_started);
            }
        }
        let step_started = Instant::now();
        let executor = self.executor.as_mut().expect("a turn is taken with an executor");
        let outcome = executor.launch(&self.batch).and_then(|()| executor.wait(&mut self.sampled));
        let step_ended = Instant::now();
        // A device that measures its steps knows best what they took.
        let measured = executor.device_time().filter(|_| outcome.is_ok());
        let step_time = measured.unwrap_or(step_ended - step_started);
        self.metrics.step_time.observe(step_time.as_secs_f64());
        self.metrics.iteration_tokens.observe(self.batch.num_tokens as f64);
        self.share_step(step_time, (turn_started, step_ended), outcome.is_ok());
        if let Err(error) = outcome {
            return self.end_failed_step(&error);
        }
        self.learn(step_time);
        self.scheduler.commit(&self.batch, &self.sampled, &mut self.outputs);
        self.note_tokens();
        self.tell_ledger();
        // Before events are sent: a client that has its last token finds it in the metrics.
        self.publish_gauges();
        self.publish_tenants(step_ended);
        if self.ends_any() {
            let now = self.tenants.len() <= PUBLISHED_AT_ONCE;
            self.publish_load(0.0, now);
        }
        self.deliver(step_ended);
        let overhead = (step_started - turn_started) + step_ended.elapsed();
        self.metrics.step_overhead.observe(overhead.as_secs_f64());
        Turn::Continue
    }

    /// Ends requests whose streams were dropped, before the next step is scheduled.
    fn take_cancels(&mut self) {
        while let Ok(id) = self.cancels.try_recv() {
            // A request may finish before its cancellation is read.
            if self.requests.contains_key(&id) {
                self.scheduler.cancel(id);
                self.end(id, EndReason::Abort, None);
            }
        }
    }

    fn take_messages(&mut self) -> Turn {
        // Bounded, so that steps go on however fast messages come.
        for _ in 0..MESSAGES_A_TURN {
            match self.inbox.try_recv() {
                Ok(message) => self.take(message),
                Err(TryRecvError::Empty) => return Turn::Continue,
                // Running requests still have readers: finish them.
                Err(TryRecvError::Disconnected) if !self.requests.is_empty() => {
                    return Turn::Continue;
                }
                Err(TryRecvError::Disconnected) => return Turn::Stop,
            }
        }
        Turn::Continue
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(submission) => self.accept(*submission),
            Message::Tenants(named) => self.set_tenants(&named),
            Message::Settle(reply) => {
                self.tell_ledger();
                if let Some(sink) = &mut self.sink {
                    // An empty batch waits for the one before it.
                    sink.record(&mut self.entries);
                }
                if let Some(recorder) = &mut self.recorder {
                    recorder.settle();
                }
                let _ = reply.send(());
            }
            Message::Capacity(tenant, prompt_len, reply, _permit) => {
                let now = self.shared.seconds(Instant::now());
                let admission = &mut self.shared.door().admission;
                let capacity =
                    admission::capacity(tenant, prompt_len, &self.scheduler, admission, now);
                // The receiver may have been dropped.
                let _ = reply.send(capacity);
            }
        }
    }

    fn set_tenants(&mut self, named: &[Tenant]) {
        self.tenants.update(named, &self.metrics);
        self.scheduler.set_tenants(named);
    }

    fn wait_for_work(&mut self) -> Turn {
        assert!(
            self.requests.is_empty(),
            "a scheduler with {} unfinished requests must schedule something",
            self.requests.len()
        );
        self.tell_ledger();
        self.publish_tenants(Instant::now());
        self.publish_load(0.0, true);
        self.shared.beat(true);
        match self.inbox.recv() {
            Ok(message) => {
                self.meter.begin_work();
                self.take(message);
                Turn::Continue
            }
            Err(_) => Turn::Stop,
        }
    }

    /// Bills a step to those in it: its time, the blocks that they held until its end, and,
    /// if it succeeded, the prompt tokens that it computed.
    fn share_step(&mut self, step_time: Duration, span: (Instant, Instant), is_computed: bool) {
        let step_ns = u64::try_from(step_time.as_nanos()).unwrap_or(u64::MAX);
        let parts = self.meter.share_time(&self.model, &self.batch, step_ns);
        for (sequence, &part) in self.batch.sequences.iter().zip(parts) {
            if let Some(live) = self.requests.get_mut(&sequence.request) {
                live.note_step(sequence, part, span, is_computed);
            }
        }
    }

    /// Shares out what energy was used, if it is time to read it, or `now`.
    pub(crate) fn share_energy(&mut self, now: bool) {
        let requests = &mut self.requests;
        self.meter.share_energy(now, |id, uj| {
            if let Some(live) = requests.get_mut(&id) {
                live.note_energy(uj);
            }
        });
    }

    /// Learns what steps take, and from that what tokens cost.
    fn learn(&mut self, step_time: Duration) {
        self.model.observe(StepWork::of(&self.batch), step_time.as_secs_f64());
        self.limit_steps();
        if self.batch.step.is_multiple_of(StepModel::COSTS_EVERY) {
            self.scheduler.set_costs(self.model.costs());
            let gap = self.scheduler.seconds_per_end(&self.model).min(1e6);
            self.shared.next_end_ms.store((gap * 1e3) as u64, Ordering::Relaxed);
        }
    }

    /// Updates usage, metrics and minutes with a step's tokens, before any event is sent, and
    /// finishes the requests whose stop check matched.
    fn note_tokens(&mut self) {
        for output in &mut self.outputs {
            let live = self.requests.get_mut(&output.request);
            if let (Some(live), Some(token)) = (live, output.token)
                && live.note_token(token)
                && output.finish.is_none()
            {
                self.scheduler.stop(output.request);
                output.finish = Some(Finish::StopCheck);
            }
        }
        self.share_energy(self.ends_any());
        for sequence in &self.batch.sequences {
            if let Some(live) = self.requests.get_mut(&sequence.request) {
                live.settle(&self.metrics, self.tenants.get_mut(live.tenant));
            }
        }
        for output in self.outputs.iter().filter(|output| output.finish.is_some()) {
            if let Some(live) = self.requests.get_mut(&output.request) {
                live.refund();
            }
        }
    }

    /// Hands this step's entries to the ledger, which first waits until it has kept those of
    /// the step before: so at most one step's tokens can be lost with the process.
    fn tell_ledger(&mut self) {
        let Self { sink, entries, requests, tenants, outputs, batch, .. } = self;
        let Some(sink) = sink else { return };
        let mut outputs = outputs.iter().peekable();
        for sequence in &batch.sequences {
            let id = sequence.request;
            // Outputs come in the batch's order.
            let output = outputs.next_if(|output| output.request == id);
            let end = output.and_then(|output| output.finish.as_ref()).map(end_reason);
            if let Some(live) = requests.get_mut(&id) {
                entries.push(live.labelled_entry(id, tenants.get(live.tenant), end));
            }
        }
        if !entries.is_empty() {
            sink.record(entries);
        }
    }

    fn deliver(&mut self, now: Instant) {
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in outputs.drain(..) {
            let Some(live) = self.requests.get_mut(&output.request) else { continue };
            // The channel has room for every event, so a failed send is a
            // reader that went away; its cancellation is on the way.
            if !output.prompt_logprobs.is_empty() {
                let _ = live.events.try_send(RequestEvent::PromptLogprobs {
                    start: output.prompt_logprobs_start,
                    logprobs: output.prompt_logprobs,
                });
            }
            if let Some(token) = output.token {
                live.observe_token(&self.metrics, self.tenants.get_mut(live.tenant), now);
                let finish = output.finish.as_ref().and_then(finish_reason);
                let event = TokenEvent {
                    token,
                    logprobs: output.logprobs,
                    usage: *live.usage(),
                    price_nano: live.price_nano(),
                    finish,
                };
                let _ = live.events.try_send(RequestEvent::Token(event));
            }
            let Some(finish) = output.finish else { continue };
            match finish {
                Finish::NonFiniteLogits => {
                    self.metrics.corrupted_requests.inc();
                    live.fail(RequestError::NonFiniteLogits);
                    self.metrics.request_success.with_label_values(&["error"]).inc();
                }
                Finish::Stop { .. } | Finish::StopCheck => {
                    live.observe_finish(&self.metrics, "stop", now)
                }
                Finish::Length => live.observe_finish(&self.metrics, "length", now),
            }
            if let Some(live) = self.requests.remove(&output.request) {
                self.keep(output.request, live, end_reason(&finish));
            }
        }
        self.outputs = outputs;
    }

    fn end_failed_step(&mut self, error: &ExecutorError) -> Turn {
        tracing::error!("{error}");
        let mut failed = std::mem::take(&mut self.failed);
        let turn = match error {
            ExecutorError::Step(_) => {
                self.scheduler.fail_batch(&self.batch, &mut failed);
                Turn::Continue
            }
            // Whatever is in the cache is lost with it.
            ExecutorError::Fatal(_) => {
                self.scheduler.fail_running(&mut failed);
                Turn::Rebuild
            }
            ExecutorError::DeviceLost(_) => {
                failed.extend(self.requests.keys());
                self.shared.device_lost.store(true, Ordering::Release);
                Turn::Stop
            }
        };
        for id in failed.drain(..) {
            let event = RequestError::StepFailed(error.to_string());
            self.end(id, EndReason::Error, Some(event));
        }
        self.failed = failed;
        self.batch.clear();
        self.tell_ledger();
        turn
    }

    /// Whether the step that was just computed ends a request.
    pub(crate) fn ends_any(&self) -> bool {
        self.outputs.iter().any(|output| output.finish.is_some())
    }
}

fn end_reason(finish: &Finish) -> EndReason {
    match finish {
        Finish::Stop { .. } | Finish::StopCheck => EndReason::Stop,
        Finish::Length => EndReason::Length,
        Finish::NonFiniteLogits => EndReason::Error,
    }
}

fn finish_reason(finish: &Finish) -> Option<FinishReason> {
    match finish {
        Finish::Stop { token } => Some(FinishReason::Stop { stop_token: *token }),
        Finish::StopCheck => Some(FinishReason::StopCheck),
        Finish::Length => Some(FinishReason::Length),
        Finish::NonFiniteLogits => None,
    }
}
