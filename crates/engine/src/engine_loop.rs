//! The loop of the engine's thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel},
    },
    time::{Duration, Instant},
};

use sconce_scheduler::{
    Admission, ByRequest, Deadlines, Load, Output, Scheduler, SchedulerConfig, SchedulerStats,
    StepModel, StepWork,
};
use sconce_types::{
    End, EnergyMeter, Executor, ExecutorError, Input, MeterEntry, MeterSink, RequestId, Sample,
    ScheduledBatch, StepResult, Tenant, TokenMasks,
};

use crate::{
    EngineHandle, EngineLimits, EngineOptions, Metrics, RecordSink, RequestError, StepTimes,
    admission::{self, Deadline, Door},
    engine::panic_message,
    flight::{Flight, Step},
    live::LiveRequest,
    metering::Meter,
    shared::{CONTROL_MESSAGES, MESSAGES_A_REQUEST, Message, Shared},
    tenants::TenantTable,
};

/// What the engine's thread owns.
pub(crate) struct EngineLoop<E> {
    pub(crate) scheduler: Scheduler,
    /// `None` only while it is being rebuilt.
    pub(crate) executor: Option<E>,
    pub(crate) inbox: Receiver<Message>,
    /// Messages that are read in one turn: all that the inbox holds.
    pub(crate) messages_a_turn: usize,
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
    pub(crate) flight: Flight,
    pub(crate) masks: TokenMasks,
    /// Words of a mask over the vocabulary.
    pub(crate) mask_words: usize,
    pub(crate) result: StepResult,
    /// When the device ended the step before, as far as the engine knows.
    pub(crate) step_ended: Instant,
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
        executor: E,
        energy: Option<Box<dyn EnergyMeter>>,
        mut scheduler: Scheduler,
        config: SchedulerConfig,
    ) -> (EngineHandle, Self) {
        let limits = EngineLimits { vocab_size, scheduler: config };
        let places = config.max_num_seqs + config.max_queued;
        // Room for all messages that may be outstanding: none is ever lost.
        let messages_a_turn = MESSAGES_A_REQUEST * places + CONTROL_MESSAGES;
        let (inbox_sender, inbox) = sync_channel(messages_a_turn);
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
        let handle =
            EngineHandle::new(inbox_sender, Arc::clone(&shared), Arc::clone(&metrics), limits);
        let mut engine = Self {
            scheduler,
            meter: Meter::new(energy),
            executor: Some(executor),
            inbox,
            messages_a_turn,
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
            flight: Flight::default(),
            masks: TokenMasks::default(),
            mask_words: vocab_size.div_ceil(32),
            result: StepResult::default(),
            step_ended: Instant::now(),
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
        if matches!(self.take_messages(), Turn::Stop) {
            return Turn::Stop;
        }
        self.end_overdue(turn_started);
        if self.shared.reset_prefix_cache.swap(false, Ordering::AcqRel) {
            self.scheduler.reset_prefix_cache();
        }
        if let Err(turn) = self.fill_flight() {
            return turn;
        }
        self.publish_gauges();
        let Some(step) = self.flight.pop_oldest() else {
            return self.park();
        };
        self.shared.beat(false);
        let waited = Instant::now();
        let executor = self.executor.as_mut().expect("a turn is taken with an executor");
        let outcome = executor.wait(&mut self.result);
        let step_ended = Instant::now();
        // A device that measures its steps knows best what they took.
        let measured = match outcome {
            Ok(()) => self.result.device_time,
            Err(ref error) => failed_step_time(executor, error),
        };
        let step_time = self.bill_step(&step, measured, step_ended, outcome.is_ok());
        if let Err(error) = outcome {
            return self.end_failed_step(step, &error);
        }
        self.learn(&step.batch, step_time);
        self.scheduler.commit(&step.batch, &mut self.result, &mut self.outputs);
        self.note_released(&step.batch, step_ended);
        self.observe_iteration(&step.batch);
        self.metrics.shared_prefix_tokens.inc_by(self.result.num_shared_tokens as u64);
        self.note_tokens(&step.batch);
        // The device first: its next step waits for the masks that these tokens lead to.
        if let Err(error) = self.sample_newest() {
            let newest = self.flight.pop_newest().expect("it was launched");
            self.deliver_step(&step.batch, step_ended);
            return self.end_unlaunched_step(newest, &error);
        }
        self.deliver_step(&step.batch, step_ended);
        self.note_times(&step, waited, step_ended);
        self.flight.recycle(step.batch);
        let overhead = (waited - turn_started) + step_ended.elapsed();
        self.metrics.step_overhead.observe(overhead.as_secs_f64());
        Turn::Continue
    }

    /// Schedules and launches steps until as many are in flight as may be.
    fn fill_flight(&mut self) -> Result<(), Turn> {
        let depth = self.executor.as_ref().expect("a turn is taken with an executor").depth();
        while self.flight.has_room(depth) {
            let scheduled = Instant::now();
            let mut batch = self.flight.spare();
            self.scheduler.schedule(&mut batch);
            self.note_preempted(scheduled);
            if batch.is_empty() {
                self.flight.recycle(batch);
                break;
            }
            self.note_scheduled(&batch, scheduled);
            self.publish_load(self.model.predict(StepWork::of(&batch)), false);
            let executor = self.executor.as_mut().expect("a turn is taken with an executor");
            let launched = Instant::now();
            let outcome = executor.launch(&batch);
            let must_wait = batch.num_constrained > 0 && !self.flight.is_empty();
            let step = Step { batch, scheduled, launched, sampled: None };
            if let Err(error) = outcome {
                return Err(self.end_unlaunched_step(step, &error));
            }
            self.flight.push(step);
            if !must_wait && let Err(error) = self.sample_newest() {
                let newest = self.flight.pop_newest().expect("it was just launched");
                return Err(self.end_unlaunched_step(newest, &error));
            }
        }
        Ok(())
    }

    /// Samples the newest step, if that has yet to be done.
    fn sample_newest(&mut self) -> Result<(), ExecutorError> {
        let Self { flight, masks, requests, scheduler, executor, mask_words, .. } = self;
        let Some(Step { batch, .. }) = flight.take_unsampled() else { return Ok(()) };
        masks.clear();
        if batch.num_constrained > 0 {
            for (row, sequence) in batch.sequences.iter().enumerate() {
                if let Sample::Token { constrained: true, .. } = sequence.sample {
                    let live = requests.get_mut(&sequence.request);
                    // A request that has ended needs none.
                    masks.push(row, *mask_words, |words| {
                        live.is_none_or(|live| live.fill_mask(words))
                    });
                }
            }
        }
        let executor = executor.as_mut().expect("a turn is taken with an executor");
        executor.sample(masks)?;
        let sampled = Instant::now();
        for row in masks.skipped() {
            scheduler.skip_sample(batch.sequences[row].request);
        }
        flight.note_sampled(sampled);
        Ok(())
    }

    /// Keeps when a step's phases began and ended.
    fn note_times(&self, step: &Step, awaited: Instant, returned: Instant) {
        let since_start = |at: Instant| at.saturating_duration_since(self.shared.started);
        self.shared.timeline.push(StepTimes {
            step: step.batch.step,
            num_sequences: step.batch.sequences.len(),
            num_tokens: step.batch.num_tokens,
            scheduled: since_start(step.scheduled),
            launched: since_start(step.launched),
            staged: since_start(self.result.staged.unwrap_or(step.launched)),
            sampled: since_start(step.sampled.unwrap_or(step.launched)),
            awaited: since_start(awaited),
            returned: since_start(returned),
            delivered: since_start(Instant::now()),
            device: self.result.device_time,
        });
    }

    /// Tells requests of the blocks that a step gave them, and those that it admitted.
    fn note_scheduled(&mut self, batch: &ScheduledBatch, now: Instant) {
        for admitted in &batch.admitted {
            if let Some(live) = self.requests.get_mut(&admitted.request) {
                live.note_admission(&self.metrics, now);
            }
        }
        for sequence in batch.sequences.iter().filter(|s| !s.table_edits.is_empty()) {
            if let Some(live) = self.requests.get_mut(&sequence.request) {
                live.note_blocks(sequence.num_blocks, now);
            }
        }
    }

    fn note_preempted(&mut self, now: Instant) {
        for id in self.scheduler.preempted() {
            if let Some(live) = self.requests.get_mut(id) {
                live.note_preemption(now);
            }
        }
    }

    /// Tells requests of the blocks that a commit has released.
    fn note_released(&mut self, batch: &ScheduledBatch, now: Instant) {
        self.note_preempted(now);
        if self.scheduler.has_windows() {
            for sequence in &batch.sequences {
                if let Some(live) = self.requests.get_mut(&sequence.request) {
                    live.note_blocks(self.scheduler.num_blocks(sequence.request), now);
                }
            }
        }
    }

    fn take_messages(&mut self) -> Turn {
        // Bounded, so that steps go on however fast messages come.
        for _ in 0..self.messages_a_turn {
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
            Message::Cancel(id) => {
                // A request may finish before its cancellation is read.
                if self.requests.contains_key(&id) {
                    self.scheduler.cancel(id);
                    self.end(id, End::Abort, None);
                }
            }
            Message::Ready(id, outcome) => self.make_ready(id, outcome),
            Message::Tenants(named) => self.set_tenants(&named),
            Message::Settle(reply) => {
                self.publish_all_tenants(Instant::now());
                self.tell_ledger(&ScheduledBatch::default());
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
            Message::Snapshot(reply, _permit) => {
                let _ = reply.send(self.snapshot());
            }
        }
    }

    fn set_tenants(&mut self, named: &[Tenant]) {
        self.tenants.update(named, &self.metrics);
        self.scheduler.set_tenants(named);
    }

    /// Waits for a message where there is nothing to compute: no request is unfinished, or
    /// none is ready, and then until the next deadline.
    fn park(&mut self) -> Turn {
        let blocked = self.scheduler.stats().blocked;
        assert_eq!(
            blocked,
            self.requests.len(),
            "a scheduler with unfinished requests that are ready schedules something"
        );
        self.tell_ledger(&ScheduledBatch::default());
        self.publish_tenants(Instant::now());
        self.publish_load(0.0, true);
        self.shared.beat(true);
        let message = match self.deadlines.next().filter(|_| blocked > 0) {
            Some(deadline) => {
                let now = self.shared.seconds(Instant::now());
                // Rounded up, so that the deadline has passed by then.
                let left = Duration::from_secs_f64((deadline - now).clamp(0.0, 3600.0));
                match self.inbox.recv_timeout(left + Duration::from_millis(1)) {
                    Ok(message) => Some(message),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return Turn::Stop,
                }
            }
            None => match self.inbox.recv() {
                Ok(message) => Some(message),
                Err(_) => return Turn::Stop,
            },
        };
        if let Some(message) = message {
            self.meter.begin_work();
            self.take(message);
        }
        Turn::Continue
    }

    /// Shares out what a step took: what the device measured, or by the host's clock the time
    /// since its launch or the end of the step before, whichever was later. Gives that time.
    fn bill_step(
        &mut self,
        step: &Step,
        measured: Option<Duration>,
        ended: Instant,
        is_computed: bool,
    ) -> Duration {
        let began = step.launched.max(self.step_ended);
        let step_time = measured.unwrap_or(ended.saturating_duration_since(began));
        self.step_ended = ended;
        self.share_step(&step.batch, step_time, ended, is_computed);
        step_time
    }

    /// Counts a step, and bills it to those in it: its time, the blocks that they held until
    /// its end, and, if it succeeded, the prompt tokens that it computed. What it computed for
    /// requests that have ended meanwhile is discarded.
    fn share_step(
        &mut self,
        batch: &ScheduledBatch,
        step_time: Duration,
        ended: Instant,
        is_computed: bool,
    ) {
        self.metrics.step_time.observe(step_time.as_secs_f64());
        let step_ns = u64::try_from(step_time.as_nanos()).unwrap_or(u64::MAX);
        let parts = self.meter.share_time(&self.model, batch, step_ns);
        let mut discarded_ns = 0;
        for (sequence, &part) in batch.sequences.iter().zip(parts) {
            match self.requests.get_mut(&sequence.request) {
                Some(live) => live.note_step(sequence, part, ended, is_computed),
                None => discarded_ns += part,
            }
        }
        if discarded_ns > 0 {
            self.metrics.discarded_device_seconds.inc_by(discarded_ns as f64 * 1e-9);
        }
    }

    /// Counts the prompt tokens that a step computed and the tokens that it generated.
    fn observe_iteration(&self, batch: &ScheduledBatch) {
        let decodes = batch.sequences.iter().filter(|row| row.input == Input::LastSampled).count();
        let generated = self.outputs.iter().filter(|output| output.token.is_some()).count();
        let tokens = batch.num_tokens - decodes + generated;
        self.metrics.iteration_tokens.observe(tokens as f64);
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
    fn learn(&mut self, batch: &ScheduledBatch, step_time: Duration) {
        self.model.observe(StepWork::of(batch), step_time.as_secs_f64());
        self.limit_steps();
        if batch.step.is_multiple_of(StepModel::COSTS_EVERY) {
            self.scheduler.set_costs(self.model.costs());
            let gap = self.scheduler.seconds_per_end(&self.model).min(1e6);
            self.shared.next_end_ms.store((gap * 1e3) as u64, Ordering::Relaxed);
        }
    }

    /// Ends what a step computed that did not run: its launch failed, or its sampling.
    fn end_unlaunched_step(&mut self, step: Step, error: &ExecutorError) -> Turn {
        let executor = self.executor.as_mut().expect("it has failed just now");
        let measured = failed_step_time(executor, error);
        self.bill_step(&step, measured, Instant::now(), false);
        self.end_failed_step(step, error)
    }

    fn end_failed_step(&mut self, step: Step, error: &ExecutorError) -> Turn {
        tracing::error!("{error}");
        let mut failed = std::mem::take(&mut self.failed);
        let turn = match error {
            ExecutorError::Step(_) => {
                self.scheduler.fail_batch(&step.batch, &mut failed);
                self.note_preempted(Instant::now());
                Turn::Continue
            }
            // Whatever is in the cache is lost with it, and what is in flight.
            ExecutorError::Fatal(_) => {
                self.scheduler.fail_running(&mut failed);
                self.flight.clear();
                Turn::Rebuild
            }
            ExecutorError::DeviceLost(_) => {
                self.flight.clear();
                failed.extend(self.requests.keys());
                self.shared.device_lost.store(true, Ordering::Release);
                Turn::Stop
            }
        };
        for id in failed.drain(..) {
            let event = RequestError::StepFailed(error.to_string());
            self.end(id, End::Error, Some(event));
        }
        self.failed = failed;
        self.flight.recycle(step.batch);
        self.tell_ledger(&ScheduledBatch::default());
        // What waited for this step's tokens waits for them no more.
        if let Err(error) = self.sample_newest() {
            let newest = self.flight.pop_newest().expect("it was launched");
            return self.end_unlaunched_step(newest, &error);
        }
        turn
    }
}

/// What the device did for a step that failed, if it can still tell.
fn failed_step_time<E: Executor>(executor: &mut E, error: &ExecutorError) -> Option<Duration> {
    match error {
        ExecutorError::Step(_) | ExecutorError::Fatal(_) => executor.failed_step_time(),
        ExecutorError::DeviceLost(_) => None,
    }
}
