//! The life of one connection.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{Instant, Sleep, sleep_until, timeout_at},
};

use super::{
    ConnectionConfig, Lifetime, Phase,
    activity::{Activity, Overdue},
    exchange::answer,
    slots::Slot,
    transport::{self, Transport},
};
use crate::error::ApiError;

/// Bytes of a request's head at most, and of an answer that hyper holds for a slow reader.
const BUFFER_BYTES: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// Bytes of a body that a client may send ahead on HTTP/2: a stream's, and all streams'.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of a request's head on HTTP/2.
const MAX_HEADER_LIST: u32 = 32 << 10;
/// Silence after which an HTTP/2 client is asked whether it is there, and its time to answer.
const PING: Duration = Duration::from_secs(20);
/// What is read and thrown away of a body that was refused, so that its client, which is
/// still sending, sees the answer: bytes and time at most.
const LINGER_BYTES: usize = 32 << 20;
const LINGER: Duration = Duration::from_secs(5);

/// What hyper is told.
pub(super) fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // `Activity` has the time limits.
    builder.http1().header_read_timeout(None).max_buf_size(BUFFER_BYTES).half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(BUFFER_BYTES)
        .max_header_list_size(MAX_HEADER_LIST)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

enum End {
    /// hyper is through with it.
    Done(Result<(), Box<dyn std::error::Error + Send + Sync>>),
    /// A time limit has passed.
    Overdue(Overdue),
    /// The server is closing, and nothing of this connection's is unfinished.
    Quiet,
}

/// Serves a connection to its end. Returns how many requests were cut off, which are none
/// unless the server stops.
pub(super) async fn serve(
    socket: TcpStream,
    router: Router,
    builder: Arc<auto::Builder<TokioExecutor>>,
    config: Arc<ConnectionConfig>,
    mut lifetime: Lifetime,
    slot: Slot,
) -> usize {
    let client = socket.peer_addr().ok().map(ConnectInfo);
    let socket = Arc::new(socket);
    let activity = Arc::new(Activity::new(config));
    let transport = Transport { socket: Arc::clone(&socket), activity: Arc::clone(&activity) };
    let service = {
        let (activity, lifetime) = (Arc::clone(&activity), lifetime.clone());
        service_fn(move |request| {
            answer(router.clone(), Arc::clone(&activity), lifetime.clone(), client, request)
        })
    };
    let connection = builder.serve_connection(TokioIo::new(transport), service);
    let mut connection = Box::pin(connection);
    let mut timer = pin!(sleep_until(Instant::now()));
    let mut is_closing = false;
    let end = loop {
        match lifetime.phase() {
            Phase::Stopped => return activity.unanswered(),
            Phase::Closing if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            Phase::Serving | Phase::Draining | Phase::Closing => {}
        }
        tokio::select! {
            biased;
            end = drive(connection.as_mut(), &activity, &socket, timer.as_mut(), is_closing) => {
                break end;
            }
            () = lifetime.changed() => {}
        }
    };
    // Whatever its requests hold is given back first.
    drop(connection);
    match end {
        End::Done(result) => {
            if let Err(error) = &result {
                tracing::debug!("a connection ended: {error}");
            }
            if activity.is_unread() {
                // It holds nothing up but its place.
                tokio::spawn(async move {
                    linger(&socket).await;
                    drop(slot);
                });
            }
        }
        End::Overdue(why) => {
            tracing::debug!("a connection is closed: {why:?}");
            if why == Overdue::Head && activity.may_refuse() {
                refuse(socket, &ApiError::slow("the request's head"), slot);
            }
        }
        End::Quiet => {}
    }
    0
}

/// Turns the connection until it ends or a time limit passes.
async fn drive(
    mut connection: Pin<
        &mut impl Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>>,
    >,
    activity: &Activity,
    socket: &TcpStream,
    mut timer: Pin<&mut Sleep>,
    is_closing: bool,
) -> End {
    poll_fn(|cx| {
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(End::Done(result));
        }
        if is_closing && activity.is_quiet() {
            return Poll::Ready(End::Quiet);
        }
        if activity.may_be_left() {
            let mut byte = [0];
            match socket.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
                Poll::Ready(Ok(0)) => activity.half_closed(),
                Poll::Ready(Err(_)) => return Poll::Ready(End::Overdue(Overdue::Gone)),
                // Another request, or nothing yet.
                Poll::Ready(Ok(_)) | Poll::Pending => {}
            }
        }
        loop {
            match activity.look(socket) {
                Err(why) => return Poll::Ready(End::Overdue(why)),
                // Time limits move on with every byte; the timer follows when it fires.
                Ok(at) if at < timer.deadline() || timer.is_elapsed() => timer.as_mut().reset(at),
                Ok(_) => {}
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Answers outside of hyper, and closes; then lets go of the connection's place.
pub(super) fn refuse(socket: Arc<TcpStream>, error: &ApiError, place: impl Send + 'static) {
    // An empty socket takes this at once; where not, its client is beyond being told.
    if socket.try_write(&error.on_the_wire()).is_ok() {
        tokio::spawn(async move {
            linger(&socket).await;
            drop(place);
        });
    }
}

/// Says that nothing follows, and reads what is still on its way: a socket that is closed
/// with data unread takes back what was sent.
async fn linger(socket: &TcpStream) {
    let deadline = Instant::now() + LINGER;
    let mut scratch = [0; 16 << 10];
    let mut left = LINGER_BYTES;
    if transport::shutdown(socket).is_err() {
        return;
    }
    while left > 0 && matches!(timeout_at(deadline, socket.readable()).await, Ok(Ok(()))) {
        match socket.try_read(&mut scratch) {
            Ok(0) => return,
            Ok(len) => left = left.saturating_sub(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
