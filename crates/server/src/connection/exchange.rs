//! One request on its way to the router, and its answer on its way back.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ConnectInfo,
    http::{HeaderValue, Request, Response, Version, header::CONNECTION},
};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::Instant;
use tower::Service as _;

use super::{Lifetime, activity::Activity};

/// Counts a request until its answer has been taken.
struct Exchange {
    activity: Arc<Activity>,
    id: u64,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.activity.end(self.id);
    }
}

/// Answers one request.
pub(super) async fn answer(
    mut router: Router,
    activity: Arc<Activity>,
    lifetime: Lifetime,
    client: Option<ConnectInfo<SocketAddr>>,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let http2 = request.version() == Version::HTTP_2;
    let id = activity.begin(http2, request.body().is_end_stream());
    let exchange = Exchange { activity: Arc::clone(&activity), id };
    let mut request =
        request.map(|body| Body::new(Received { body, activity: Arc::clone(&activity), id }));
    request.extensions_mut().insert(lifetime.clone());
    if let Some(client) = client {
        request.extensions_mut().insert(client);
    }
    let mut response = router.call(request).await?;
    let received = activity.answered(id);
    // What is left of a body is not read, so no other request can follow it.
    if (!received || lifetime.is_ending()) && !http2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Answer { body, exchange, http2 }))
}

/// A request's body as it comes.
struct Received {
    body: Incoming,
    activity: Arc<Activity>,
    id: u64,
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.activity.received(self.id);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            self.activity.left_unread();
        }
    }
}

/// An answer's body as it is taken.
pub(super) struct Answer {
    body: Body,
    exchange: Exchange,
    http2: bool,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if self.http2 {
            // On HTTP/1 a client that does not read blocks the socket, on HTTP/2 its stream:
            // then the next frame is not asked for.
            let is_taken = matches!(frame, Poll::Ready(Some(_)));
            self.exchange.activity.paused(self.exchange.id, is_taken.then(Instant::now));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
