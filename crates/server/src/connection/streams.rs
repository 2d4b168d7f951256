//! The streams of HTTP/2: one whose client does not read its answer is reset, and the others
//! of its connection go on.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::rt::Executor;
use tokio::time::{Instant, sleep_until};

tokio::task_local! {
    /// The stream that a task serves.
    static STREAM: Arc<Stream>;
}

/// How much of an answer waits for its client's flow-control window.
pub(super) struct Stream(Mutex<State>);

struct State {
    /// Pieces of the answer that hyper has and that are not written whole.
    unsent: usize,
    /// When the first of them was taken, or a part of them was written.
    progress: Instant,
    /// Who waits until all is written.
    waiter: Option<Waker>,
}

impl Stream {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { unsent: 0, progress: Instant::now(), waiter: None })))
    }

    /// That of the current task; none on HTTP/1.
    pub(super) fn current() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole, so a panic elsewhere is no matter.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_unsent(&self) -> bool {
        self.state().unsent > 0
    }

    /// Waits until all pieces are written.
    pub(super) fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.unsent == 0 {
            return Poll::Ready(());
        }
        state.waiter = Some(cx.waker().clone());
        Poll::Pending
    }

    /// When the client will have read nothing for so long, if it reads nothing from now on.
    fn stalled_at(&self, limit: Duration) -> Option<Instant> {
        let state = self.state();
        (state.unsent > 0).then(|| state.progress + limit)
    }
}

/// A piece of an answer. On HTTP/2 its stream learns when it is written.
pub(super) struct Piece {
    bytes: Bytes,
    stream: Option<Arc<Stream>>,
}

impl Piece {
    pub(super) fn new(bytes: Bytes, stream: Option<&Arc<Stream>>) -> Self {
        if let Some(stream) = stream {
            let mut state = stream.state();
            if state.unsent == 0 {
                state.progress = Instant::now();
            }
            state.unsent += 1;
        }
        Self { bytes, stream: stream.cloned() }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(stream) = &self.stream {
            stream.state().progress = Instant::now();
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let Some(stream) = &self.stream else { return };
        let mut state = stream.state();
        state.unsent -= 1;
        let waiter = if state.unsent == 0 { state.waiter.take() } else { None };
        drop(state);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

/// Spawns hyper's tasks, one for each stream of HTTP/2.
#[derive(Clone)]
pub(super) struct StreamExecutor {
    /// How long a client may read nothing of an answer before its stream is reset.
    pub(super) write_timeout: Duration,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(serve(task, self.write_timeout));
    }
}

/// Runs a stream's task until its client has read nothing for too long: h2 resets a stream
/// (with `CANCEL`) whose task is dropped, and throws away what waits in it.
async fn serve(task: impl Future, write_timeout: Duration) {
    let stream = Stream::new();
    let mut task = pin!(STREAM.scope(Arc::clone(&stream), task));
    let mut timer = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        if task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while let Some(at) = stream.stalled_at(write_timeout) {
            if at <= Instant::now() {
                tracing::debug!("a stream is reset: its client does not read");
                return Poll::Ready(());
            }
            // The limit moves with every write; the timer follows when it fires.
            if at < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                break;
            }
        }
        Poll::Pending
    })
    .await;
}
