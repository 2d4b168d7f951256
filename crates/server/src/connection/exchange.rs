//! One request on its way to the router, and its answer on its way back.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderValue, Request, Response, Version, header::CONNECTION},
};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tower::Service as _;

use super::{
    Lifetime,
    activity::Activity,
    streams::{Piece, Stream},
};

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
    let mut request = request.map(|body| Body::new(Received::new(body, &activity, id)));
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
    Ok(response.map(|body| Answer { body, stream: Stream::current(), _exchange: exchange }))
}

/// A request's body as it comes.
struct Received<B: HttpBody = Incoming> {
    body: B,
    activity: Arc<Activity>,
    id: u64,
    /// It was read to its end, which a chunked body does not say of itself afterwards.
    is_whole: bool,
}

impl<B: HttpBody> Received<B> {
    fn new(body: B, activity: &Arc<Activity>, id: u64) -> Self {
        let is_whole = body.is_end_stream();
        Self { body, activity: Arc::clone(activity), id, is_whole }
    }
}

impl<B: HttpBody + Unpin> HttpBody for Received<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if !self.is_whole && (matches!(frame, Poll::Ready(None)) || self.body.is_end_stream()) {
            self.is_whole = true;
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

impl<B: HttpBody> Drop for Received<B> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.activity.left_unread();
        }
    }
}

/// An answer's body as it is taken.
pub(super) struct Answer {
    body: Body,
    /// On HTTP/2, where the end is held back until all else is written: with it hyper would
    /// let go of the stream, and what its client does not read would stay in h2.
    stream: Option<Arc<Stream>>,
    _exchange: Exchange,
}

impl HttpBody for Answer {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let stream = self.stream.as_ref();
        let Some(frame) = frame else {
            if let Some(stream) = stream {
                ready!(stream.poll_sent(cx));
            }
            return Poll::Ready(None);
        };
        Poll::Ready(Some(frame.map(|frame| frame.map_data(|bytes| Piece::new(bytes, stream)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && !self.stream.as_ref().is_some_and(|stream| stream.has_unsent())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
