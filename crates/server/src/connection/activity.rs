//! What a connection is doing, and since when: what its time limits go by.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use tokio::{net::TcpStream, time::Instant};

use super::ConnectionConfig;

/// The pause after the first check of whether a half-closed client is still there. It
/// doubles with each check, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two checks of whether a client is still there.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(1);
/// What every answer of HTTP/1 begins with.
const PROBE: &[u8] = b"H";
/// What a client of HTTP/2 sends first, and the part of it that no request of HTTP/1 begins
/// with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_METHOD: usize = b"PRI ".len();

/// The state of one connection, shared by its socket, its requests and its driver.
pub(super) struct Activity {
    state: Mutex<State>,
    config: Arc<ConnectionConfig>,
}

struct State {
    http2: bool,
    /// Bytes of HTTP/2's preface so far; `None` once the client sent anything else.
    preface: Option<usize>,
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
    /// The driver, where it waits for the last exchange to end.
    driver: Option<Waker>,
}

/// A request and its answer.
struct Exchange {
    id: u64,
    /// The request is here whole.
    received: bool,
    /// The answer has begun.
    answered: bool,
}

/// A client that has closed its side for writing.
struct HalfClosed {
    next_check: Instant,
    pause: Duration,
    probe: Probe,
}

#[derive(Clone, Copy, PartialEq)]
enum Probe {
    Unsent,
    /// The answer's first byte is sent, and hyper has not written it yet.
    Sent,
    /// hyper has written that byte too, and its copy was discarded.
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
            preface: Some(0),
            exchanges: Vec::new(),
            begun: 0,
            idle_since: Instant::now(),
            head_since: None,
            blocked_since: None,
            flushed: true,
            wrote: false,
            unread: false,
            half_closed: None,
            driver: None,
        };
        Self { state: Mutex::new(state), config }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole, so a panic elsewhere is no matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what the client sent.
    pub(super) fn read(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.recognise(bytes);
        if !bytes.is_empty()
            && state.exchanges.is_empty()
            && state.head_since.is_none()
            && !state.http2
        {
            state.head_since = Some(Instant::now());
        }
    }

    /// Whether an answer is due and its client is not known to have closed its side: hyper
    /// does not read, so would not notice, while it answers.
    pub(super) fn may_be_left(&self) -> bool {
        let state = self.state();
        let mut exchanges = state.exchanges.iter();
        !state.http2 && state.half_closed.is_none() && exchanges.any(|exchange| exchange.received)
    }

    /// The client has closed its side for writing.
    pub(super) fn half_closed(&self) {
        let now = Instant::now();
        let client = HalfClosed { next_check: now, pause: FIRST_PAUSE, probe: Probe::Unsent };
        self.state().half_closed = Some(client);
    }

    /// Whether the next byte that hyper writes was sent as the probe already.
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
        state.exchanges.push(Exchange { id, received, answered: false });
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

    pub(super) fn end(&self, id: u64) {
        let mut state = self.state();
        state.exchanges.retain(|exchange| exchange.id != id);
        if state.exchanges.is_empty() {
            state.idle_since = Instant::now();
            if let Some(driver) = state.driver.take() {
                driver.wake();
            }
        }
    }

    /// Wakes the driver when no exchange is left.
    pub(super) fn wake_at_end(&self, driver: &Waker) {
        self.state().driver = Some(driver.clone());
    }

    /// When to look again; or why the connection is to be closed.
    pub(super) fn look(&self, socket: &TcpStream) -> Result<Instant, Overdue> {
        let now = Instant::now();
        let config = &self.config;
        let mut state = self.state();
        if state.half_closed.as_ref().is_some_and(|client| client.next_check <= now) {
            state.look_for_client(socket, now)?;
        }
        let blocked = state.blocked_since.map(|since| since + config.write_timeout);
        let next = if state.exchanges.is_empty() {
            Some(match state.head_since {
                Some(since) => (since + config.head_timeout, Overdue::Head),
                None if state.begun == 0 => (state.idle_since + config.head_timeout, Overdue::Idle),
                None => (state.idle_since + config.keep_alive_timeout, Overdue::Idle),
            })
        } else {
            None
        };
        let blocked = blocked.map(|at| (at, Overdue::Blocked));
        let first = blocked.into_iter().chain(next).min_by_key(|(at, _)| *at);
        if let Some((_, why)) = first.filter(|(at, _)| *at <= now) {
            return Err(why);
        }
        let look = state.half_closed.as_ref().map(|client| client.next_check);
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

    /// Whether the connection may be closed without cutting anything off: no answer is due
    /// and all is written. On HTTP/2 a request that is not received whole is answered first.
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state();
        let mut exchanges = state.exchanges.iter();
        state.flushed && !exchanges.any(|exchange| exchange.received || state.http2)
    }

    /// Whether the client speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.state().http2
    }

    /// How long the client has been sending a request's head.
    pub(super) fn head_age(&self) -> Duration {
        self.state().head_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether an error may be sent in HTTP/1 outside of hyper: the client does not speak
    /// HTTP/2, and nothing else is being sent.
    pub(super) fn may_refuse(&self) -> bool {
        let state = self.state();
        let is_http2 = state.http2 || state.preface.is_some_and(|seen| seen >= PREFACE_METHOD);
        !is_http2 && state.flushed && state.exchanges.is_empty()
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

    /// Compares the connection's first bytes with HTTP/2's preface.
    fn recognise(&mut self, bytes: &[u8]) {
        let Some(seen) = self.preface.filter(|seen| *seen < PREFACE.len()) else { return };
        let rest = PREFACE.get(seen..).unwrap_or_default();
        let len = bytes.len().min(rest.len());
        if bytes[..len] != rest[..len] {
            self.preface = None;
            return;
        }
        self.preface = Some(seen + len);
        if seen + len == PREFACE.len() {
            self.http2 = true;
            self.head_since = None;
        }
    }

    /// A FIN alone does not tell a closed socket from a half-closed one: only a write does,
    /// which a closed socket's system answers with a reset. So where an answer has not begun,
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
        client.next_check = now + client.pause;
        client.pause = (2 * client.pause).min(MAX_PAUSE);
        Ok(())
    }
}
