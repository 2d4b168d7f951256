//! Running batches with what other requests leave idle.
//!
//! A thread of its own has the store: it takes up batches that have not ended, those of an
//! earlier process too, sends their requests through the server's own routes on behalf of
//! their tenants, and keeps the answers.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{
        Request, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
};
use rand::RngExt as _;
use sconce_batches::{Answer, Batch, Limits, Line, Run, Status, Store, StoreError};
use sconce_engine::EngineHandle;
use sconce_types::TenantId;
use serde_json::{Value, json};
use tokio::{runtime::Handle, time::sleep};
use tower::ServiceExt as _;

use crate::{
    TenantDirectory, caller::OnBehalf, error::ApiError, middleware::REQUEST_ID, state::unix_seconds,
};

/// How often it is looked whether the engine has become idle, while requests wait for that.
const LOOK: Duration = Duration::from_millis(20);
/// How often it is looked whether a batch's time is over.
const CLOCK: Duration = Duration::from_secs(1);
/// Seconds between attempts of a request that the server is too busy for, at most.
const MAX_PAUSE: u64 = 30;

/// Files and batches, and the thread that runs them.
#[derive(Debug)]
pub struct Batches {
    pub(crate) store: Store,
    events: Sender<Event>,
    received: Mutex<Option<Receiver<Event>>>,
}

#[derive(Debug)]
enum Event {
    /// There is a new batch, or one was given up.
    Changed,
    /// A request has ended; without an answer if it was not to go on.
    Ended { batch: String, answer: Option<Answer> },
}

impl Batches {
    /// Files and batches in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, StoreError> {
        let (events, received) = channel();
        let store = Store::open(folder, limits)?;
        Ok(Self { store, events, received: Mutex::new(Some(received)) })
    }

    /// Has the thread look for what changed.
    pub(crate) fn wake(&self) {
        // It fails where no thread was started, or it has ended.
        let _ = self.events.send(Event::Changed);
    }

    /// Starts the thread, once. It ends when the engine drains: what has no answer by then is
    /// run by the next process. Requests run on the current runtime.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn start(
        self: &Arc<Self>,
        router: Router,
        engine: EngineHandle,
        tenants: Arc<TenantDirectory>,
        max_body_bytes: usize,
    ) {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(received) = received else { return };
        let runner = Runner {
            batches: Arc::clone(self),
            runtime: Handle::current(),
            router,
            engine,
            tenants,
            max_body_bytes,
            active: VecDeque::new(),
            broken: Vec::new(),
        };
        let spawned = thread::Builder::new()
            .name("sconce-batches".to_owned())
            .spawn(move || runner.run(&received));
        if let Err(error) = spawned {
            tracing::error!("batches are not run: {error}");
        }
    }
}

struct Runner {
    batches: Arc<Batches>,
    runtime: Handle,
    router: Router,
    engine: EngineHandle,
    tenants: Arc<TenantDirectory>,
    max_body_bytes: usize,
    /// Served in turns, a request each.
    active: VecDeque<Active>,
    /// Batches whose files could not be read or written: the next process tries again.
    broken: Vec<String>,
}

/// A batch that is being run.
struct Active {
    run: Run,
    endpoint: String,
    expires_at: u64,
    in_flight: usize,
    /// The next request, read already.
    next: Option<Line>,
    /// Nothing more is begun, and what waits to be tried again is given up.
    stopped: Arc<AtomicBool>,
}

impl Runner {
    fn run(mut self, received: &Receiver<Event>) {
        loop {
            if self.engine.is_draining() {
                return;
            }
            self.take_up();
            self.look_at_clock();
            let waits = self.begin_requests();
            self.finish();
            let event = if waits {
                received.recv_timeout(LOOK).ok()
            } else if self.active.is_empty() {
                received.recv().ok()
            } else {
                received.recv_timeout(CLOCK).ok()
            };
            for event in event.into_iter().chain(received.try_iter()) {
                if let Event::Ended { batch, answer } = event {
                    self.take(&batch, answer);
                }
            }
        }
    }

    fn store(&self) -> &Store {
        &self.batches.store
    }

    /// Says that a batch cannot go on in this process.
    fn give_up(&mut self, id: &str, error: &StoreError) {
        tracing::error!("batch {id} is left as it is: {error}");
        self.broken.push(id.to_owned());
        self.active.retain(|active| active.run.id != id);
    }

    /// Begins batches that are new, or were left by an earlier process.
    fn take_up(&mut self) {
        for (tenant, id) in self.store().unfinished() {
            let is_known = self.active.iter().any(|active| active.run.id == id);
            if is_known || self.broken.contains(&id) {
                continue;
            }
            let begun = self.store().begin(&tenant, &id, self.max_body_bytes, unix_seconds());
            let batch = self.store().batch(&tenant, &id);
            match begun.and_then(|run| Ok((run, batch?))) {
                // Its input is wrong, which it says.
                Ok((None, _)) => {}
                Ok((Some(run), Batch { endpoint, expires_at, status, .. })) => {
                    tracing::info!("batch {id} of {tenant} is run: {status:?}");
                    let stopped = Arc::new(AtomicBool::new(false));
                    let (in_flight, next) = (0, None);
                    let active = Active { run, endpoint, expires_at, in_flight, next, stopped };
                    self.active.push_back(active);
                }
                Err(error) => self.give_up(&id, &error),
            }
        }
    }

    /// Stops batches that were given up, or whose time is over.
    fn look_at_clock(&mut self) {
        let now = unix_seconds();
        let store = &self.batches.store;
        for active in &mut self.active {
            let batch = store.batch(&active.run.tenant, &active.run.id);
            let is_over = batch.is_ok_and(|batch| batch.status == Status::Cancelling);
            if is_over || now >= active.expires_at {
                active.run.stop();
                active.next = None;
                active.stopped.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Requests that may run beside those of others: all that the engine has room for where
    /// there are no others, else half of what they leave.
    fn room(&self) -> usize {
        let own = self.active.iter().map(|active| active.in_flight).sum::<usize>();
        let slots = self.engine.limits().scheduler.max_num_seqs;
        let others = self.engine.unfinished().saturating_sub(own);
        let most = if others == 0 { slots } else { slots.saturating_sub(others) / 2 };
        most.saturating_sub(own)
    }

    /// Begins requests, a batch after another; says whether some wait for room.
    fn begin_requests(&mut self) -> bool {
        // What was begun just now may not be counted by the engine yet.
        let mut room = self.room();
        let mut without = 0;
        while without < self.active.len() {
            let Some(mut active) = self.active.pop_front() else { return false };
            if active.next.is_none() {
                match active.run.next_line() {
                    Ok(line) => active.next = line,
                    Err(error) => {
                        self.give_up(&active.run.id, &error);
                        continue;
                    }
                }
            }
            match active.next.take() {
                None => without += 1,
                Some(line) if room == 0 => {
                    active.next = Some(line);
                    self.active.push_front(active);
                    return true;
                }
                Some(line) => {
                    (room, without) = (room - 1, 0);
                    active.in_flight += 1;
                    self.begin(&active, line);
                }
            }
            self.active.push_back(active);
        }
        false
    }

    fn begin(&self, active: &Active, line: Line) {
        let tenants = self.tenants.current();
        let tenant = tenants.iter().find(|entry| *entry.tenant.name == *active.run.tenant);
        let ask = Ask {
            router: self.router.clone(),
            engine: self.engine.clone(),
            tenant: tenant.map(|entry| entry.tenant.id),
            endpoint: active.endpoint.clone(),
            stopped: Arc::clone(&active.stopped),
            line,
        };
        let (events, batch) = (self.batches.events.clone(), active.run.id.clone());
        self.runtime.spawn(async move {
            let answer = ask.answer().await;
            let _ = events.send(Event::Ended { batch, answer });
        });
    }

    fn take(&mut self, id: &str, answer: Option<Answer>) {
        let active = self.active.iter_mut().find(|active| active.run.id == id);
        let Some(active) = active else { return };
        active.in_flight -= 1;
        if let Some(answer) = answer
            && let Err(error) = self.batches.store.answer(&mut active.run, &answer)
        {
            self.give_up(id, &error);
        }
    }

    /// Ends batches that have all their answers.
    fn finish(&mut self) {
        let mut rest = VecDeque::with_capacity(self.active.len());
        for active in std::mem::take(&mut self.active) {
            if active.in_flight > 0 || active.next.is_some() || active.run.has_next() {
                rest.push_back(active);
                continue;
            }
            let id = active.run.id.clone();
            match self.store().finish(active.run, unix_seconds()) {
                Ok(batch) => tracing::info!("batch {id} has ended: {:?}", batch.status),
                Err(error) => self.give_up(&id, &error),
            }
        }
        self.active = rest;
    }
}

/// A request of a batch.
struct Ask {
    router: Router,
    engine: EngineHandle,
    /// `None` if the tenant is gone.
    tenant: Option<TenantId>,
    endpoint: String,
    stopped: Arc<AtomicBool>,
    line: Line,
}

impl Ask {
    /// Asks until the server has time for it; `None` if it is not to go on.
    async fn answer(self) -> Option<Answer> {
        let body = Value::Object(self.line.body.clone()).to_string();
        let mut attempt = 0;
        loop {
            let (status, request_id, body, retry_after) = self.ask(body.clone()).await;
            let is_busy = status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::SERVICE_UNAVAILABLE;
            if !is_busy {
                let id = format!("batch_req_{:032x}", rand::rng().random::<u128>());
                let custom_id = self.line.custom_id;
                return Some(Answer { custom_id, id, status: status.as_u16(), request_id, body });
            }
            attempt += 1;
            let mut left = Duration::from_secs(retry_after.max(attempt).min(MAX_PAUSE));
            while !left.is_zero() {
                if self.stopped.load(Ordering::Relaxed) || self.engine.is_draining() {
                    return None;
                }
                let pause = left.min(CLOCK);
                sleep(pause).await;
                left -= pause;
            }
        }
    }

    /// The status, the request's id, the body, and the seconds after which to ask again.
    async fn ask(&self, body: String) -> (StatusCode, String, Value, u64) {
        let Some(tenant) = self.tenant else {
            let error = ApiError::unauthorized();
            return (error.status(), String::new(), json!(error.json()), 0);
        };
        let request = Request::post(&self.endpoint)
            .header(CONTENT_TYPE, "application/json")
            .extension(OnBehalf(tenant))
            .body(Body::from(body));
        let request = request.expect("an endpoint is one of a few paths");
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let (head, body) = response.into_parts();
        let text = |name| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (request_id, retry_after) = (text(&REQUEST_ID), text(&RETRY_AFTER).parse());
        let bytes = axum::body::to_bytes(body, usize::MAX).await;
        let body = bytes.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(body) = body else {
            // Its request failed after its head was out.
            let error = ApiError::bug();
            return (error.status(), request_id, json!(error.json()), 0);
        };
        (head.status, request_id, body, retry_after.unwrap_or(0))
    }
}
