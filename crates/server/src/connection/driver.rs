//! The life of one connection.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{Router, extract::ConnectInfo, response::IntoResponse as _};
use futures::FutureExt as _;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until, timeout_at},
};

use super::{
    ConnectionConfig, Lifetime, Phase,
    activity::{Activity, MAX_PAUSE, Overdue},
    exchange::answer,
    slots::Slot,
    streams::StreamExecutor,
    transport::{self, Transport},
};
use crate::{
    access_log::{self, Refused},
    error::ApiError,
};

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

/// How hyper serves connections.
pub(super) type Builder = auto::Builder<StreamExecutor>;

/// hyper's settings.
pub(super) fn builder(config: &ConnectionConfig) -> Builder {
    let executor = StreamExecutor { write_timeout: config.write_timeout };
    let mut builder = auto::Builder::new(executor);
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
    builder: Arc<Builder>,
    config: Arc<ConnectionConfig>,
    mut lifetime: Lifetime,
    slot: Slot,
) -> usize {
    let client = socket.peer_addr().ok().map(ConnectInfo);
    let socket = Arc::new(socket);
    let is_logged = config.access_log;
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
    // Told of the end: HTTP/2 with GOAWAY, HTTP/1 after the answer that is due.
    let mut is_ending = false;
    let mut is_closing = false;
    let end = loop {
        match lifetime.phase() {
            Phase::Stopped => return activity.unanswered(),
            Phase::Closing => is_closing = true,
            Phase::Serving | Phase::Draining => {}
        }
        // On HTTP/1 an idle connection's next request is still answered while others run.
        let is_told = lifetime.phase() >= Phase::Draining && activity.is_http2();
        if (is_closing || is_told) && !is_ending {
            is_ending = true;
            connection.as_mut().graceful_shutdown();
        }
        tokio::select! {
            biased;
            end = drive(connection.as_mut(), &activity, &socket, timer.as_mut(), is_closing) => {
                if matches!(end, End::Overdue(Overdue::Idle)) && activity.is_http2() && !is_closing {
                    is_closing = true;
                    continue;
                }
                break end;
            }
            () = lifetime.changed() => {}
        }
    };
    let is_refusable = activity.may_refuse();
    // Whatever its requests hold is given back first.
    drop(connection);
    match end {
        End::Done(result) => {
            if let Err(error) = &result {
                tracing::debug!("a connection ended: {error}");
                if let Some(status) = hyper_status(error.as_ref()).filter(|_| is_logged) {
                    let client = client.map(|ConnectInfo(client)| client);
                    access_log::refused(Refused {
                        client,
                        status,
                        bytes: 0,
                        took: activity.head_age(),
                    });
                }
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
            if why == Overdue::Head && is_refusable {
                let took = activity.head_age();
                let refused =
                    Refusal { took, is_logged, error: ApiError::slow("the request's head") };
                refuse(socket, refused, slot);
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
        if is_closing {
            activity.wake_at_end(cx.waker());
        }
        loop {
            // hyper may hold an answer's end that it has not written: it must have been quiet
            // before hyper had its turn, too.
            let was_quiet = activity.is_quiet();
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(End::Done(result));
            }
            match (is_closing && activity.is_quiet(), was_quiet) {
                (true, true) => return Poll::Ready(End::Quiet),
                (true, false) => {}
                (false, _) => break,
            }
        }
        let mut hides_end = false;
        if activity.may_be_left() {
            let mut byte = [0];
            match socket.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
                Poll::Ready(Ok(0)) => activity.half_closed(),
                Poll::Ready(Err(_)) => return Poll::Ready(End::Overdue(Overdue::Gone)),
                // Another request, say. It hides the end of what the client sends, of which
                // only the socket's readiness tells, and that wakes nobody.
                Poll::Ready(Ok(_)) if is_read_closed(socket) => activity.half_closed(),
                Poll::Ready(Ok(_)) => hides_end = true,
                Poll::Pending => {}
            }
        }
        loop {
            let at = match activity.look(socket) {
                Err(why) => return Poll::Ready(End::Overdue(why)),
                Ok(at) if hides_end => at.min(Instant::now() + MAX_PAUSE),
                Ok(at) => at,
            };
            // Time limits move on with every byte; the timer follows when it fires.
            if at < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if hides_end && is_read_closed(socket) {
                hides_end = false;
                activity.half_closed();
            }
        }
    })
    .await
}

/// Whether the client has closed its side, or the connection is reset, even if not all that
/// it sent before is read.
fn is_read_closed(socket: &TcpStream) -> bool {
    match socket.ready(Interest::READABLE).now_or_never() {
        Some(Ok(ready)) => ready.is_read_closed(),
        Some(Err(_)) => true,
        None => false,
    }
}

/// The status that hyper answered with before it gave a connection up, if it did.
fn hyper_status(error: &(dyn std::error::Error + 'static)) -> Option<u16> {
    let error = error.downcast_ref::<hyper::Error>()?;
    if error.is_parse_too_large() {
        Some(431)
    } else {
        (error.is_parse() && !error.is_parse_version_h2()).then_some(400)
    }
}

/// What is answered outside of hyper.
pub(super) struct Refusal {
    pub(super) error: ApiError,
    /// How long the client had been sending its request.
    pub(super) took: Duration,
    pub(super) is_logged: bool,
}

/// Answers outside of hyper, and closes; then lets go of the connection's place.
pub(super) fn refuse(socket: Arc<TcpStream>, refusal: Refusal, place: impl Send + 'static) {
    let answer = refusal.error.on_the_wire();
    let client = socket.peer_addr().ok();
    // An empty socket takes this at once; where not, its client cannot be told.
    let sent = socket.try_write(&answer);
    if refusal.is_logged {
        let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |end| end + 4);
        let bytes = sent.as_ref().map_or(0, |sent| sent.saturating_sub(body));
        let status = refusal.error.into_response().status().as_u16();
        access_log::refused(Refused { client, status, bytes, took: refusal.took });
    }
    if sent.is_ok() {
        tokio::spawn(async move {
            linger(&socket).await;
            drop(place);
        });
    }
}

/// Closes the socket's side for writing and reads what the client still sends: closing a
/// socket with unread data resets the connection, and the client may lose the answer.
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
