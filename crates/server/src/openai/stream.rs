//! Server-sent events.

use std::{convert::Infallible, future::ready};

use axum::{
    body::{Body, Bytes},
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use futures::{Stream, StreamExt as _, stream};
use sconce_engine::RequestError;
use serde::Serialize;

use super::choice::{Choice, Delta};
use crate::error::ApiError;

/// Turns deltas into an endpoint's chunks.
pub(super) trait Chunks: Send + 'static {
    /// Writes the chunks before the first delta of any choice.
    fn open(&mut self, out: &mut Events);
    /// Writes the chunks of one delta.
    fn delta(&mut self, choice: usize, delta: Delta, out: &mut Events);
    /// Writes the chunks after the last.
    fn close(&mut self, out: &mut Events);
}

/// Events in wire form, gathered for one write.
#[derive(Default)]
pub(super) struct Events(Vec<u8>);

impl Events {
    pub(super) fn push(&mut self, chunk: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, chunk)
            .expect("chunks have string keys, and a vector takes every write");
        self.0.extend_from_slice(b"\n\n");
    }
}

/// How many choices' deltas go out in one write at most.
const MERGED: usize = 64;

/// Streams the choices' deltas as they come; deltas that are ready together go
/// out in one write. The head is sent once the first delta is there, so that
/// what fails before it is a proper error; what fails later ends the stream
/// with an error event. Dropping the response cancels every choice.
pub(super) async fn respond(
    choices: Vec<Choice>,
    mut chunks: impl Chunks,
) -> Result<Response, ApiError> {
    let mut deltas = merge(choices).ready_chunks(MERGED);
    let first = deltas.next().await.unwrap_or_default();
    if let Some(error) = first.iter().find_map(|(_, delta)| delta.as_ref().err()) {
        return Err(error.clone().into());
    }
    let mut opening = Events::default();
    chunks.open(&mut opening);
    let body = stream::once(ready(first))
        .chain(deltas)
        .map(Some)
        .chain(stream::once(ready(None)))
        .scan((chunks, opening, false), |(chunks, opening, failed), deltas| {
            if *failed {
                return ready(None);
            }
            let mut out = std::mem::take(opening);
            match deltas {
                Some(deltas) => *failed = write(chunks, deltas, &mut out),
                None => {
                    chunks.close(&mut out);
                    out.0.extend_from_slice(b"data: [DONE]\n\n");
                }
            }
            ready(Some(Ok::<_, Infallible>(Bytes::from(out.0))))
        })
        .filter(|bytes| ready(bytes.as_ref().is_ok_and(|bytes| !bytes.is_empty())));
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(body)).into_response())
}

type Indexed = (usize, Result<Delta, RequestError>);

fn merge(choices: Vec<Choice>) -> impl Stream<Item = Indexed> + Send + 'static {
    let streams = choices.into_iter().enumerate().map(|(index, choice)| {
        stream::unfold(choice, move |mut choice| async move {
            let delta = choice.next().await?;
            Some(((index, delta), choice))
        })
        .boxed()
    });
    stream::select_all(streams)
}

/// Writes deltas; says whether one of them was a failure.
fn write(chunks: &mut impl Chunks, deltas: Vec<Indexed>, out: &mut Events) -> bool {
    for (index, delta) in deltas {
        match delta {
            Ok(delta) => chunks.delta(index, delta, out),
            Err(error) => {
                out.push(&ApiError::from(error).json());
                return true;
            }
        }
    }
    false
}
