//! The way into the engine.

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use prometheus::IntCounter;
use sconce_scheduler::{Ask, Refused, Request, SchedulerConfig, Shortage, Unfit};
use sconce_types::{
    InvalidSamplingParams, NotReady, RequestId, SamplingParams, Tenant, TenantId, TokenId,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    Capacity, Metrics, Overload, ReadySignal, RequestClock, RequestStream, Snapshot, StepTimes,
    StopCheck, TokenConstraint, admission,
    shared::{Message, Permit, Shared, Submission},
};

/// A request as the engine takes it: token ids only.
#[derive(Clone, Debug)]
pub struct EngineRequest {
    /// The prompt; at least one token.
    pub prompt: Vec<TokenId>,
    /// How to go on from it.
    pub params: SamplingParams,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its place among its tenant's requests: lower is sooner.
    pub priority: i32,
    /// Its id as its client knows it, for the ledger.
    pub request_id: Arc<str>,
    /// The time that it may take in all; it is refused if that is not enough, and ends
    /// when it has passed.
    pub timeout: Option<Duration>,
    /// Only the prompt is wanted, for its log-probabilities: with `max_tokens` 1, the token
    /// that is sampled from it is not counted.
    pub scores_prompt: bool,
    /// Where its times are written, if somebody wants them.
    pub clock: Option<RequestClock>,
}

impl EngineRequest {
    /// A request of an engine's only tenant.
    #[must_use]
    pub fn new(prompt: Vec<TokenId>, params: SamplingParams) -> Self {
        let (tenant, request_id) = (TenantId(0), Arc::from(""));
        Self {
            prompt,
            params,
            tenant,
            priority: 0,
            request_id,
            timeout: None,
            scores_prompt: false,
            clock: None,
        }
    }
}

/// What an engine accepts, fixed at its start.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// The model's vocabulary.
    pub vocab_size: usize,
    /// What its scheduler may use.
    pub scheduler: SchedulerConfig,
}

impl EngineLimits {
    /// Checks a prompt, and that it fits together with so many tokens more.
    ///
    /// # Errors
    /// What [`EngineHandle::submit`] would refuse whatever the load.
    pub fn check(&self, prompt: &[TokenId], max_tokens: u32) -> Result<(), SubmitError> {
        self.scheduler.check_lengths(prompt.len(), max_tokens as usize)?;
        self.check_vocabulary(prompt)
    }

    fn check_vocabulary(&self, prompt: &[TokenId]) -> Result<(), SubmitError> {
        let vocab_size = self.vocab_size;
        match prompt.iter().find(|&&token| token as usize >= vocab_size) {
            Some(&token) => Err(SubmitError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }
}

/// Why a request was not taken. Nothing of it remains in the engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Params(#[from] InvalidSamplingParams),
    /// It could never finish.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// A prompt token is not in the vocabulary.
    #[error("prompt token {token} is outside the vocabulary of {vocab_size} tokens")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// Too many requests wait already.
    // The message names no numbers: they would tell a tenant of other tenants' requests.
    #[error("the server's queue is full; try again in {} s", retry_after.as_secs())]
    QueueFull {
        /// Unfinished requests.
        unfinished: usize,
        /// How many there may be.
        limit: usize,
        /// When one of them should have ended, in whole seconds.
        retry_after: Duration,
    },
    /// It cannot be served in time, or not now.
    #[error("{reason}; try again in {} s", retry_after.as_secs())]
    Overloaded {
        /// What stands in the way.
        reason: Overload,
        /// When it no longer should, in whole seconds.
        retry_after: Duration,
    },
    /// It may use more tokens than its tenant has in any minute.
    #[error(
        "the request may use {} tokens, {prompt_tokens} of prompt and max_tokens = {max_tokens} \
         for each of {choices}, but this tenant's limit is {tokens_per_minute} tokens a minute, \
         so that it could never be taken; {}",
        prompt_tokens + max_tokens * choices, advice(*prompt_tokens, *choices, *tokens_per_minute)
    )]
    ExceedsMinute {
        /// Its choices.
        choices: usize,
        /// Tokens of their prompts, all together.
        prompt_tokens: usize,
        /// Tokens that each may generate.
        max_tokens: usize,
        /// The tenant's limit.
        tokens_per_minute: u64,
    },
    /// The engine takes no more requests.
    #[error("the engine is shutting down")]
    Draining,
    /// The engine's thread ended.
    #[error("the engine has stopped")]
    EngineLost,
}

/// What makes a request fit its tenant's minute.
fn advice(prompt_tokens: usize, choices: usize, tokens_per_minute: u64) -> String {
    let room = tokens_per_minute.saturating_sub(prompt_tokens as u64);
    match room / choices.max(1) as u64 {
        0 => "shorten the prompt or ask for fewer choices".to_owned(),
        most => format!("lower max_tokens to at most {most}"),
    }
}

/// How the engine's loop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It waits for work, or finished a step lately.
    Alive,
    /// A step has been running for so long.
    Stalled(Duration),
    /// Its executor was lost, and another is being built.
    Restarting,
    /// Its thread ended.
    Lost,
    /// Its thread ended because the device answers no more: the process should end
    /// too, since nothing else in it can use the device.
    DeviceLost,
}

/// The way into the engine; clones share it. The engine's thread ends once the
/// last handle is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    inbox: SyncSender<Message>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    limits: EngineLimits,
}

impl EngineHandle {
    pub(crate) fn new(
        inbox: SyncSender<Message>,
        shared: Arc<Shared>,
        metrics: Arc<Metrics>,
        limits: EngineLimits,
    ) -> Self {
        Self { inbox, shared, metrics, limits }
    }

    /// What the engine accepts.
    #[must_use]
    pub fn limits(&self) -> &EngineLimits {
        &self.limits
    }

    /// The engine's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// When the phases of the last steps began and ended, the oldest first.
    #[must_use]
    pub fn step_times(&self) -> Vec<StepTimes> {
        self.shared.timeline.steps()
    }

    /// Requests taken and not yet ended.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.shared.unfinished.load(Ordering::Acquire)
    }

    /// Checks a request against the engine's limits, without submitting it.
    ///
    /// # Errors
    /// What [`EngineHandle::submit`] would refuse whatever the load.
    pub fn validate(&self, request: &EngineRequest) -> Result<(), SubmitError> {
        request.params.validate(self.limits.vocab_size)?;
        self.limits.check(&request.prompt, request.params.max_tokens)
    }

    /// Hands a request to the engine. Never waits.
    ///
    /// # Errors
    /// What cannot run, or not now; see [`SubmitError`].
    pub fn submit(&self, request: EngineRequest) -> Result<RequestStream, SubmitError> {
        self.submit_until(request, None)
    }

    /// The same of a request that is not ready to be scheduled, for this reason; it ends with
    /// [`RequestError::NotReady`](crate::RequestError::NotReady) unless the signal makes it
    /// ready within `timeout`.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub fn submit_not_ready(
        &self,
        request: EngineRequest,
        stop: Option<Box<dyn StopCheck>>,
        reason: NotReady,
        timeout: Duration,
    ) -> Result<(RequestStream, ReadySignal), SubmitError> {
        let stream = self.submit_with(request, stop, None, Some((reason, timeout)))?;
        let signal = ReadySignal::new(stream.id(), self.inbox.clone());
        Ok((stream, signal))
    }

    /// The same under a constraint.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub fn submit_constrained(
        &self,
        request: EngineRequest,
        stop: Option<Box<dyn StopCheck>>,
        constraint: Box<dyn TokenConstraint>,
    ) -> Result<RequestStream, SubmitError> {
        self.submit_with(request, stop, Some(constraint), None)
    }

    /// The same with something more to end it: then its last token has
    /// [`End::StopCheck`](crate::End::StopCheck).
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub fn submit_until(
        &self,
        request: EngineRequest,
        stop: Option<Box<dyn StopCheck>>,
    ) -> Result<RequestStream, SubmitError> {
        self.submit_with(request, stop, None, None)
    }

    fn submit_with(
        &self,
        request: EngineRequest,
        stop: Option<Box<dyn StopCheck>>,
        constraint: Option<Box<dyn TokenConstraint>>,
        not_ready: Option<(NotReady, Duration)>,
    ) -> Result<RequestStream, SubmitError> {
        let EngineRequest {
            prompt,
            params,
            tenant,
            priority,
            request_id,
            timeout,
            scores_prompt,
            clock,
        } = request;
        params.validate(self.limits.vocab_size)?;
        self.limits.check_vocabulary(&prompt)?;
        let prompt_events = if params.prompt_logprobs.is_some() { prompt.len() } else { 0 };
        let id = RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let request = self.limits.scheduler.check(Request {
            id,
            prompt,
            params: Arc::new(params),
            tenant,
            priority,
            // Tenants share no cached blocks: neither hits nor times tell one of them what
            // another computed.
            cache_salt: u64::from(tenant.0),
            is_constrained: constraint.is_some(),
            not_ready: not_ready.map(|(reason, _)| reason),
        })?;
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Draining);
        }
        let ask = Ask {
            id,
            tenant,
            prompt_len: request.get().prompt.len(),
            max_tokens: request.get().params.max_tokens as usize,
            timeout: timeout.map(|timeout| timeout.as_secs_f64()),
        };
        let arrived = Instant::now();
        let mut door = self.shared.door();
        let is_idle = self.unfinished() == 0;
        let taken = door.admission.take(&ask, is_idle, self.shared.seconds(arrived));
        let minute = match taken {
            Ok(admitted) => admitted.minute,
            Err(refused) => {
                let metric = door.refused(tenant);
                drop(door);
                return Err(self.refusal(&ask, &refused, metric));
            }
        };
        let permit = Permit::new(&self.shared, tenant, minute);
        if let Some(clock) = &clock {
            clock.note_arrival(arrived);
        }
        let capacity = ask.max_tokens + prompt_events + 1;
        let (events, receiver) = mpsc::channel(capacity);
        let submission = Submission {
            request,
            request_id,
            timeout,
            scores_prompt,
            clock,
            stop,
            constraint,
            not_ready,
            arrived,
            events,
            permit,
        };
        // Under the lock: requests are read in the order in which they were taken.
        let sent = self.inbox.try_send(Message::Submit(Box::new(submission)));
        if sent.is_err() {
            door.admission.withdraw();
        }
        // A submission that comes back has a permit, whose end needs the lock.
        drop(door);
        match sent {
            Ok(()) => Ok(RequestStream::new(id, receiver, self.inbox.clone())),
            Err(TrySendError::Full(_)) => Err(self.queue_full()),
            Err(TrySendError::Disconnected(_)) => Err(SubmitError::EngineLost),
        }
    }

    fn refusal(&self, ask: &Ask, refused: &Refused, metric: Option<IntCounter>) -> SubmitError {
        let reason = refused.shortage.name();
        self.metrics.admission_rejections.with_label_values(&[reason]).inc();
        if refused.shortage == Shortage::Places {
            return self.queue_full();
        }
        if let Some(metric) = metric {
            metric.inc();
        }
        admission::explain(ask, refused)
    }

    fn queue_full(&self) -> SubmitError {
        let limit = self.limits.scheduler.max_num_seqs + self.limits.scheduler.max_queued;
        let next_end = Duration::from_millis(self.shared.next_end_ms.load(Ordering::Relaxed));
        let retry_after = Duration::from_secs(next_end.as_secs_f64().ceil().max(1.0) as u64);
        SubmitError::QueueFull { unfinished: self.unfinished(), limit, retry_after }
    }

    /// Takes tenants as they are from now on: weights, limits, targets, prices. Requests of
    /// a tenant that is not named any more run to their end.
    ///
    /// # Errors
    /// The engine is too busy to listen, or has stopped.
    pub fn set_tenants(&self, tenants: &[Tenant]) -> Result<(), SubmitError> {
        let sent = self.inbox.try_send(Message::Tenants(tenants.to_vec()));
        sent.map_err(|error| self.unheard(&error))?;
        self.shared.door().set_tenants(tenants, &self.metrics);
        Ok(())
    }

    /// What a request of a tenant with a prompt of so many tokens may expect now.
    ///
    /// # Errors
    /// The engine is too busy to answer, or has stopped.
    pub async fn capacity(
        &self,
        tenant: TenantId,
        prompt_len: usize,
    ) -> Result<Capacity, SubmitError> {
        self.ask(|reply, permit| Message::Capacity(tenant, prompt_len, reply, permit)).await
    }

    /// The engine as it is between two steps, with each block's tenant. It takes the engine's
    /// thread the time to read the pool once: to be asked a few times a second.
    ///
    /// # Errors
    /// The engine is too busy to answer, or has stopped.
    pub async fn snapshot(&self) -> Result<Snapshot, SubmitError> {
        self.ask(Message::Snapshot).await
    }

    /// Asks the engine's thread, of which only so many may wait for an answer.
    async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<T>, OwnedSemaphorePermit) -> Message,
    ) -> Result<T, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let permit = Arc::clone(&self.shared.questions).try_acquire_owned();
        let permit = permit.map_err(|_| self.queue_full())?;
        let sent = self.inbox.try_send(question(reply, permit));
        sent.map_err(|error| self.unheard(&error))?;
        answer.await.map_err(|_| SubmitError::EngineLost)
    }

    /// Waits until the ledger has kept all that was used until now, and the metrics count it.
    ///
    /// # Errors
    /// The engine is too busy to listen, or has stopped.
    pub async fn settle(&self) -> Result<(), SubmitError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.inbox.try_send(Message::Settle(reply));
        sent.map_err(|error| self.unheard(&error))?;
        answer.await.map_err(|_| SubmitError::EngineLost)
    }

    fn unheard(&self, error: &TrySendError<Message>) -> SubmitError {
        match error {
            TrySendError::Full(_) => self.queue_full(),
            TrySendError::Disconnected(_) => SubmitError::EngineLost,
        }
    }

    /// How the engine's loop is; a step longer than `patience` counts as a stall.
    #[must_use]
    pub fn health(&self, patience: Duration) -> Health {
        if self.shared.lost.load(Ordering::Acquire) {
            let device_lost = self.shared.device_lost.load(Ordering::Acquire);
            return if device_lost { Health::DeviceLost } else { Health::Lost };
        }
        if self.shared.restarting.load(Ordering::Acquire) {
            return Health::Restarting;
        }
        let last_turn = Duration::from_millis(self.shared.last_turn_ms.load(Ordering::Relaxed));
        let since = self.shared.started.elapsed().saturating_sub(last_turn);
        if since > patience && !self.shared.idle.load(Ordering::Relaxed) {
            return Health::Stalled(since);
        }
        Health::Alive
    }

    /// Forgets what the prefix cache holds, before the next step is scheduled.
    pub fn reset_prefix_cache(&self) {
        self.shared.reset_prefix_cache.store(true, Ordering::Release);
    }

    /// Waits until the engine's thread has ended.
    pub async fn ended(&self) {
        let ended = self.shared.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if !self.shared.lost.load(Ordering::Acquire) {
            ended.await;
        }
    }

    /// Whether [`EngineHandle::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }

    /// Takes no more requests, and waits until those taken have ended.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        loop {
            let drained = self.shared.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.unfinished() == 0 || self.shared.lost.load(Ordering::Acquire) {
                return;
            }
            drained.await;
        }
    }
}
