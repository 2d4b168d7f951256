//! What a connection is doing, and since when: what its time limits go by.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{net::TcpStream, time::Instant};

use super::ConnectionConfig;

/// The first look at whether a half-closed client is there, and the longest time between
/// two looks; each waits twice as long as the one before.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(1);
/// What every answer of HTTP/1 begins with.
const PROBE: &[u8] = b"H";

/// The state of one connection, shared by its socket, its requests and its driver.
pub(super) struct Activity {
    state: Mutex<State>,
    config: Arc<ConnectionConfig>,
}

struct State {
    http2: bool,
    exchanges: Vec<Exchange>,
    /// Requests so far; their ids.
    begun: u64,
    /// When the last exchange ended.
    idle_since: Instant,
    /// When the first byte of the next request's head came.
    head_since: Option<Instant>,
    /// Since when the socket takes nothing.
    blocked_since: Option<Instant>,
    /// Everything that was to be written is written.
    flushed: bool,
    /// Something was written since the request began.
    wrote: bool,
    /// A request's body was not read to its end.
    unread: bool,
    half_closed: Option<HalfClosed>,
}

/// A request and its answer.
struct Exchange {
    id: u64,
    /// The request is here whole.
    received: bool,
    /// The answer has begun.
    answered: bool,
    /// Since when a frame of the answer is taken, but the next is not asked for.
    paused_since: Option<Instant>,
}

/// A client that has said it will send no more.
struct HalfClosed {
    next_look: Instant,
    pause: Duration,
    probe: Probe,
}

#[derive(Clone, Copy, PartialEq)]
enum Probe {
    Unsent,
    /// The answer's first byte is sent, which hyper does not know.
    Sent,
    Taken,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Overdue {
    /// A request's head did not come in time.
    Head,
    /// No request came.
    Idle,
    /// The client does not read.
    Blocked,
    /// The client is gone.
    Gone,
}

impl Activity {
    pub(super) fn new(config: Arc<ConnectionConfig>) -> Self {
        let state = State {
            http2: false,
            exchanges: Vec::new(),
            begun: 0,
            idle_since: Instant::now(),
            head_since: None,
            blocked_since: None,
            flushed: true,
            wrote: false,
            unread: false,
            half_closed: None,
        };
        Self { state: Mutex::new(state), config }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole, so a panic elsewhere is no matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read(&self, len: usize) {
        let mut state = self.state();
        if len > 0 && state.exchanges.is_empty() && state.head_since.is_none() && !state.http2 {
            state.head_since = Some(Instant::now());
        }
    }

    /// Whether an answer is due, and nothing is known of its client's going away: hyper does
    /// not look for that while it answers.
    pub(super) fn may_be_left(&self) -> bool {
        let state = self.state();
        let mut exchanges = state.exchanges.iter();
        !state.http2 && state.half_closed.is_none() && exchanges.any(|exchange| exchange.received)
    }

    /// The client sends no more.
    pub(super) fn half_closed(&self) {
        let now = Instant::now();
        let client = HalfClosed { next_look: now, pause: FIRST_LOOK, probe: Probe::Unsent };
        self.state().half_closed = Some(client);
    }

    /// Whether the next byte that hyper writes is on its way already.
    pub(super) fn take_probe(&self) -> bool {
        let mut state = self.state();
        match &mut state.half_closed {
            Some(HalfClosed { probe: probe @ Probe::Sent, .. }) => {
                *probe = Probe::Taken;
                state.flushed = false;
                state.wrote = true;
                true
            }
            _ => false,
        }
    }

    pub(super) fn wrote(&self) {
        let mut state = self.state();
        state.blocked_since = None;
        state.flushed = false;
        state.wrote = true;
    }

    pub(super) fn write_is_blocked(&self) {
        let mut state = self.state();
        state.flushed = false;
        state.blocked_since.get_or_insert_with(Instant::now);
    }

    pub(super) fn flushed(&self) {
        let mut state = self.state();
        state.flushed = true;
        state.blocked_since = None;
    }

    /// Takes note of a request; gives its id.
    pub(super) fn begin(&self, http2: bool, received: bool) -> u64 {
        let mut state = self.state();
        let id = state.begun;
        state.begun += 1;
        state.http2 = http2;
        state.head_since = None;
        state.wrote = !state.flushed;
        state.exchanges.push(Exchange { id, received, answered: false, paused_since: None });
        id
    }

    /// The request's body is here to its end.
    pub(super) fn received(&self, id: u64) {
        let mut state = self.state();
        let flushed = state.flushed;
        let Some(exchange) = state.exchange(id) else { return };
        exchange.received = true;
        if !exchange.answered && flushed {
            // What was written was no more than "100 Continue".
            state.wrote = false;
        }
    }

    /// The request's body is not read further.
    pub(super) fn left_unread(&self) {
        self.state().unread = true;
    }

    /// The answer's head is there. Says whether the request came to its end before.
    pub(super) fn answered(&self, id: u64) -> bool {
        let mut state = self.state();
        let Some(exchange) = state.exchange(id) else { return false };
        exchange.answered = true;
        exchange.received
    }

    /// A frame of the answer is taken (or, with `None`, asked for).
    pub(super) fn paused(&self, id: u64, since: Option<Instant>) {
        if let Some(exchange) = self.state().exchange(id) {
            exchange.paused_since = since;
        }
    }

    pub(super) fn end(&self, id: u64) {
        let mut state = self.state();
        state.exchanges.retain(|exchange| exchange.id != id);
        if state.exchanges.is_empty() {
            state.idle_since = Instant::now();
        }
    }

    /// When to look again; or why the connection is to be closed.
    pub(super) fn look(&self, socket: &TcpStream) -> Result<Instant, Overdue> {
        let now = Instant::now();
        let config = &self.config;
        let mut state = self.state();
        if state.half_closed.as_ref().is_some_and(|client| client.next_look <= now) {
            state.look_for_client(socket, now)?;
        }
        let blocked = state.blocked_since.map(|since| since + config.write_timeout);
        let paused = state.exchanges.iter().filter_map(|exchange| exchange.paused_since).min();
        let paused = paused.map(|since| since + config.write_timeout);
        let next = if state.exchanges.is_empty() {
            Some(match state.head_since {
                Some(since) => (since + config.head_timeout, Overdue::Head),
                None if state.begun == 0 => (state.idle_since + config.head_timeout, Overdue::Idle),
                None => (state.idle_since + config.keep_alive_timeout, Overdue::Idle),
            })
        } else {
            None
        };
        let limits = [blocked, paused].into_iter().flatten().map(|at| (at, Overdue::Blocked));
        let limits = limits.chain(next);
        let first = limits.min_by_key(|(at, _)| *at);
        if let Some((_, why)) = first.filter(|(at, _)| *at <= now) {
            return Err(why);
        }
        let look = state.half_closed.as_ref().map(|client| client.next_look);
        let at = first.map(|(at, _)| at).into_iter().chain(look).min();
        // Nothing is due while a request is computed; writing may begin at any time.
        Ok(at.unwrap_or(now + config.write_timeout))
    }

    /// Requests whose answers are not out yet.
    pub(super) fn unanswered(&self) -> usize {
        let state = self.state();
        let due = state.exchanges.iter().filter(|exchange| exchange.received).count();
        due.max(usize::from(!state.flushed))
    }

    /// Whether hyper has nothing to do for this connection but to wait for its client.
    pub(super) fn is_quiet(&self) -> bool {
        !self.state().http2 && self.unanswered() == 0
    }

    /// Whether the client may be told of a failure: nothing else is on its way to it.
    pub(super) fn may_refuse(&self) -> bool {
        let state = self.state();
        !state.http2 && state.flushed && state.exchanges.is_empty()
    }

    /// Whether the client may be sending what will not be read.
    pub(super) fn is_unread(&self) -> bool {
        let state = self.state();
        state.unread && state.half_closed.is_none()
    }
}

impl State {
    fn exchange(&mut self, id: u64) -> Option<&mut Exchange> {
        self.exchanges.iter_mut().find(|exchange| exchange.id == id)
    }

    /// A client that closed its socket looks like one that only sends no more, until it is
    /// written to: then its system resets the connection. So where an answer is not begun,
    /// its first byte is sent ahead of it.
    fn look_for_client(&mut self, socket: &TcpStream, now: Instant) -> Result<(), Overdue> {
        let Some(client) = &mut self.half_closed else { return Ok(()) };
        if !matches!(socket.take_error(), Ok(None)) {
            return Err(Overdue::Gone);
        }
        let is_due = self.exchanges.iter().any(|exchange| exchange.received);
        if client.probe == Probe::Unsent && !self.wrote && self.flushed && is_due {
            match socket.try_write(PROBE) {
                Ok(0) => {}
                Ok(_) => client.probe = Probe::Sent,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Overdue::Gone),
            }
        }
        client.next_look = now + client.pause;
        client.pause = (2 * client.pause).min(LAST_LOOK);
        Ok(())
    }
}
