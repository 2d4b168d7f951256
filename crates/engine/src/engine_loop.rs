//! The engine's thread.

use std::{
    any::Any,
    collections::HashMap,
    fmt::Display,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, TryRecvError, channel, sync_channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use sconce_scheduler::{Finish, Output, Request, Scheduler, SchedulerConfig, SchedulerStats};
use sconce_types::{Executor, ExecutorError, RequestId, SampledTokens, ScheduledBatch};
use tokio::sync::mpsc;

use crate::{
    EngineHandle, EngineLimits, FinishReason, Metrics, RequestError, RequestEvent, TokenEvent,
    handle::{Permit, Shared, Submission},
};

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError<B> {
    /// The executor could not be built.
    #[error(transparent)]
    Build(B),
    /// The limits contradict each other.
    #[error(transparent)]
    Config(#[from] sconce_scheduler::ConfigError),
    /// The operating system gave no thread.
    #[error("no thread for the engine: {0}")]
    Thread(#[source] std::io::Error),
    /// Building the executor panicked.
    #[error("building the executor panicked: {0}")]
    Panicked(String),
}

/// What an engine is built from.
pub struct Built<E, T> {
    /// Computes the steps.
    pub executor: E,
    /// The limits that the executor was sized for.
    pub config: SchedulerConfig,
    /// The model's vocabulary.
    pub vocab_size: usize,
    /// Whatever the caller wants to know of what was built.
    pub info: T,
}

/// A running engine's thread; [`EngineHandle`] is the way into it.
#[derive(Debug)]
pub struct Engine {
    thread: JoinHandle<()>,
}

impl Engine {
    /// Starts an engine. `build` runs on the engine's own thread, which then
    /// owns the executor: it loads the model, sizes the cache, and says what
    /// limits follow. Returns once it has.
    ///
    /// An executor that is lost ([`ExecutorError::Fatal`]) is built anew, once,
    /// under the same limits: what ran has failed, what waited goes on waiting.
    ///
    /// # Errors
    /// `build`'s error, or limits that contradict each other.
    pub fn start<E, T, B>(
        model_name: &str,
        mut build: impl FnMut() -> Result<Built<E, T>, B> + Send + 'static,
    ) -> Result<(Self, EngineHandle, T), StartError<B>>
    where
        E: Executor,
        T: Send + 'static,
        B: Display + Send + 'static,
    {
        let model_name = model_name.to_owned();
        let (report, started) = channel();
        let thread = std::thread::Builder::new()
            .name("sconce-engine".to_owned())
            .spawn(move || {
                let built = build().map_err(StartError::Build).and_then(|built| {
                    // The handle bounds all unfinished requests together, and any
                    // share of them may be waiting.
                    let config = built.config;
                    let max_queued = config.max_queued + config.max_num_seqs;
                    let scheduler = Scheduler::new(SchedulerConfig { max_queued, ..config })?;
                    Ok((built, scheduler))
                });
                match built {
                    Ok((Built { executor, config, vocab_size, info }, scheduler)) => {
                        let (handle, engine) =
                            EngineLoop::new(&model_name, vocab_size, executor, scheduler, config);
                        // Whoever asked may have gone; the loop then ends by itself.
                        let _ = report.send(Ok((handle, info)));
                        engine.run(config, || match build() {
                            Ok(built) => Ok((built.executor, built.config)),
                            Err(error) => Err(error.to_string()),
                        });
                    }
                    Err(error) => {
                        let _ = report.send(Err(error));
                    }
                }
            })
            .map_err(StartError::Thread)?;
        match started.recv() {
            Ok(Ok((handle, info))) => Ok((Self { thread }, handle, info)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let cause = thread.join().err().map(|cause| panic_message(cause.as_ref()));
                Err(StartError::Panicked(cause.unwrap_or_default()))
            }
        }
    }

    /// Waits for the thread's end, which comes once every handle is dropped.
    pub fn join(self) {
        // A panic inside the loop was caught and reported there.
        let _ = self.thread.join();
    }
}

/// What the loop keeps of a request beside its scheduler state.
struct LiveRequest {
    events: mpsc::Sender<RequestEvent>,
    arrived: Instant,
    first_scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Instant,
    prompt_len: usize,
    max_tokens: u32,
    generated: u32,
    _permit: Permit,
}

struct EngineLoop<E> {
    scheduler: Scheduler,
    /// None only while another is built.
    executor: Option<E>,
    inbox: Receiver<Submission>,
    cancels: Receiver<RequestId>,
    requests: HashMap<RequestId, LiveRequest>,
    batch: ScheduledBatch,
    sampled: SampledTokens,
    outputs: Vec<Output>,
    failed: Vec<RequestId>,
    /// What was published last.
    seen: SchedulerStats,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

/// Whether the loop goes on.
enum Turn {
    Continue,
    /// With another executor.
    Rebuild,
    Stop,
}

impl<E: Executor> EngineLoop<E> {
    fn new(
        model_name: &str,
        vocab_size: usize,
        executor: E,
        scheduler: Scheduler,
        config: SchedulerConfig,
    ) -> (EngineHandle, Self) {
        let limits = EngineLimits {
            max_model_len: config.max_model_len,
            vocab_size,
            num_blocks: config.num_blocks,
            max_num_seqs: config.max_num_seqs,
            max_queued: config.max_queued,
        };
        let (inbox_sender, inbox) = sync_channel(config.max_num_seqs + config.max_queued);
        // Bounded by the number of unfinished requests: each is cancelled once at most.
        let (cancel_sender, cancels) = channel();
        let shared = Arc::new(Shared::new());
        let metrics = Arc::new(Metrics::new(model_name, config.num_blocks));
        let handle = EngineHandle::new(
            inbox_sender,
            cancel_sender,
            Arc::clone(&shared),
            Arc::clone(&metrics),
            limits,
        );
        let engine = Self {
            scheduler,
            executor: Some(executor),
            inbox,
            cancels,
            requests: HashMap::new(),
            batch: ScheduledBatch::default(),
            sampled: SampledTokens::default(),
            outputs: Vec::new(),
            failed: Vec::new(),
            seen: SchedulerStats::default(),
            shared,
            metrics,
        };
        (handle, engine)
    }

    /// Runs until every handle is gone, the executor is lost for good, or a bug
    /// panics. `build` gives another executor, for the same limits.
    fn run(
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
        // What it holds is needed for the next.
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
        if matches!(self.take_submissions(), Turn::Stop) {
            return Turn::Stop;
        }
        if self.shared.reset_prefix_cache.swap(false, Ordering::AcqRel) {
            self.scheduler.reset_prefix_cache();
        }
        self.scheduler.schedule(&mut self.batch);
        self.publish_gauges();
        if self.batch.is_empty() {
            return self.wait_for_work();
        }
        self.shared.beat(false);
        self.note_admissions(turn_started);
        let step_started = Instant::now();
        let executor = self.executor.as_mut().expect("a turn is taken with an executor");
        let outcome = executor.launch(&self.batch).and_then(|()| executor.wait(&mut self.sampled));
        let step_ended = Instant::now();
        self.metrics.step_time.observe((step_ended - step_started).as_secs_f64());
        self.metrics.iteration_tokens.observe(self.batch.num_tokens as f64);
        if let Err(error) = outcome {
            return self.end_failed_step(&error);
        }
        self.scheduler.commit(&self.batch, &self.sampled, &mut self.outputs);
        // Who reads its last token finds the metrics as they are after it.
        self.publish_gauges();
        self.deliver(step_ended);
        let overhead = (step_started - turn_started) + step_ended.elapsed();
        self.metrics.step_overhead.observe(overhead.as_secs_f64());
        Turn::Continue
    }

    /// Ends what was dropped, before anything else is scheduled.
    fn take_cancels(&mut self) {
        while let Ok(id) = self.cancels.try_recv() {
            // A request may finish before its cancellation is read.
            if self.requests.remove(&id).is_some() {
                self.scheduler.cancel(id);
                self.metrics.request_success.with_label_values(&["abort"]).inc();
            }
        }
    }

    fn take_submissions(&mut self) -> Turn {
        loop {
            match self.inbox.try_recv() {
                Ok(submission) => self.accept(submission),
                Err(TryRecvError::Empty) => return Turn::Continue,
                // What runs still has readers: finish it.
                Err(TryRecvError::Disconnected) if !self.requests.is_empty() => {
                    return Turn::Continue;
                }
                Err(TryRecvError::Disconnected) => return Turn::Stop,
            }
        }
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { id, request, arrived, events, permit } = submission;
        // Dropped before it got here: its cancellation, read or not, finds no request to end.
        if events.is_closed() {
            self.metrics.request_success.with_label_values(&["abort"]).inc();
            return;
        }
        let live = LiveRequest {
            events,
            arrived,
            first_scheduled: None,
            first_token: None,
            last_token: arrived,
            prompt_len: request.prompt.len(),
            max_tokens: request.params.max_tokens,
            generated: 0,
            _permit: permit,
        };
        let request =
            Request { id, prompt: request.prompt, params: Arc::new(request.params), cache_salt: 0 };
        match self.scheduler.add(request) {
            Ok(()) => {
                self.requests.insert(id, live);
            }
            Err(refusal) => {
                let error = RequestError::Refused(refusal.to_string());
                let _ = live.events.try_send(RequestEvent::Failed(error));
            }
        }
    }

    fn wait_for_work(&mut self) -> Turn {
        assert!(
            self.requests.is_empty(),
            "a scheduler with {} unfinished requests must schedule something",
            self.requests.len()
        );
        self.shared.beat(true);
        match self.inbox.recv() {
            Ok(submission) => {
                self.accept(submission);
                Turn::Continue
            }
            Err(_) => Turn::Stop,
        }
    }

    fn note_admissions(&mut self, now: Instant) {
        for admitted in &self.batch.admitted {
            let Some(live) = self.requests.get_mut(&admitted.request) else { continue };
            if live.first_scheduled.is_none() {
                live.first_scheduled = Some(now);
                self.metrics.queue_time.observe((now - live.arrived).as_secs_f64());
            }
        }
    }

    fn deliver(&mut self, now: Instant) {
        for output in self.outputs.drain(..) {
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
                live.note_token(&self.metrics, now);
                let finish = output.finish.as_ref().and_then(finish_reason);
                let event = TokenEvent {
                    token,
                    logprobs: output.logprobs,
                    num_cached_tokens: output.num_cached_tokens,
                    finish,
                };
                let _ = live.events.try_send(RequestEvent::Token(event));
            }
            match output.finish {
                None => continue,
                Some(Finish::NonFiniteLogits) => {
                    self.metrics.corrupted_requests.inc();
                    let error = RequestError::NonFiniteLogits;
                    let _ = live.events.try_send(RequestEvent::Failed(error));
                    self.metrics.request_success.with_label_values(&["error"]).inc();
                }
                Some(Finish::Stop { .. }) => live.note_finish(&self.metrics, "stop", now),
                Some(Finish::Length) => live.note_finish(&self.metrics, "length", now),
            }
            self.requests.remove(&output.request);
        }
    }

    fn end_failed_step(&mut self, error: &ExecutorError) -> Turn {
        tracing::error!("{error}");
        let turn = match error {
            ExecutorError::Step(_) => {
                self.scheduler.fail_batch(&self.batch, &mut self.failed);
                Turn::Continue
            }
            // Whatever is in the cache is lost with it.
            ExecutorError::Fatal(_) => {
                self.scheduler.fail_running(&mut self.failed);
                Turn::Rebuild
            }
            ExecutorError::DeviceLost(_) => {
                self.failed.extend(self.requests.keys());
                self.shared.device_lost.store(true, Ordering::Release);
                Turn::Stop
            }
        };
        for id in self.failed.drain(..) {
            if let Some(live) = self.requests.remove(&id) {
                let event = RequestEvent::Failed(RequestError::StepFailed(error.to_string()));
                let _ = live.events.try_send(event);
                self.metrics.request_success.with_label_values(&["error"]).inc();
            }
        }
        turn
    }

    fn publish_gauges(&mut self) {
        let stats = self.scheduler.stats();
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.metrics.num_requests_running.set(gauge(stats.running));
        self.metrics.num_requests_waiting.set(gauge(stats.waiting));
        self.metrics.kv_blocks_used.set(gauge(stats.used_blocks));
        self.metrics.kv_cache_usage_perc.set(stats.used_blocks as f64 / stats.num_blocks as f64);
        let Self { metrics, seen, .. } = self;
        metrics.num_preemptions.inc_by(stats.preemptions - seen.preemptions);
        let queries = stats.prefix_cache_queries - seen.prefix_cache_queries;
        metrics.prefix_cache_queries.inc_by(queries);
        metrics.prefix_cache_hits.inc_by(stats.prefix_cache_hits - seen.prefix_cache_hits);
        *seen = stats;
    }
}

impl LiveRequest {
    fn note_token(&mut self, metrics: &Metrics, now: Instant) {
        self.generated += 1;
        metrics.generation_tokens.inc();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            metrics.prompt_tokens.inc_by(self.prompt_len as u64);
            metrics.time_to_first_token.observe((now - self.arrived).as_secs_f64());
            if let Some(scheduled) = self.first_scheduled {
                metrics.prefill_time.observe((now - scheduled).as_secs_f64());
            }
        } else {
            metrics.inter_token_latency.observe((now - self.last_token).as_secs_f64());
        }
        self.last_token = now;
    }

    fn note_finish(&self, metrics: &Metrics, reason: &str, now: Instant) {
        metrics.request_success.with_label_values(&[reason]).inc();
        metrics.e2e_latency.observe((now - self.arrived).as_secs_f64());
        metrics.request_prompt_tokens.observe(self.prompt_len as f64);
        metrics.request_generation_tokens.observe(f64::from(self.generated));
        metrics.request_max_tokens.observe(f64::from(self.max_tokens));
        if let Some(first) = self.first_token {
            let decode = (now - first).as_secs_f64();
            metrics.decode_time.observe(decode);
            if self.generated > 1 {
                metrics.time_per_output_token.observe(decode / f64::from(self.generated - 1));
            }
        }
    }
}

fn finish_reason(finish: &Finish) -> Option<FinishReason> {
    match finish {
        Finish::Stop { token } => Some(FinishReason::Stop { stop_token: *token }),
        Finish::Length => Some(FinishReason::Length),
        Finish::NonFiniteLogits => None,
    }
}

fn panic_message(cause: &(dyn Any + Send)) -> String {
    cause
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| cause.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
