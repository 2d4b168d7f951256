//! A response's body, of which somebody is told how much was sent and whether that was all.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

/// Who is told.
pub(crate) trait BodyWatcher: Send + Unpin + 'static {
    /// So many bytes more were taken.
    fn note_bytes(&mut self, _len: usize) {}

    /// The body ended as it was to end.
    fn note_whole(&mut self);
}

struct WatchedBody<W: BodyWatcher> {
    /// Dropped before the watcher: with it what generates the body ends.
    inner: Body,
    watcher: W,
}

/// The same body; its watcher is dropped with it.
pub(crate) fn watched(inner: Body, watcher: impl BodyWatcher) -> Body {
    Body::new(WatchedBody { inner, watcher })
}

impl<W: BodyWatcher> HttpBody for WatchedBody<W> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.watcher.note_bytes(frame.data_ref().map_or(0, Bytes::len));
            }
            Poll::Ready(None) => self.watcher.note_whole(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<W: BodyWatcher> Drop for WatchedBody<W> {
    fn drop(&mut self) {
        // A body of a known length is not asked once more after its last byte.
        if self.inner.is_end_stream() {
            self.watcher.note_whole();
        }
    }
}
