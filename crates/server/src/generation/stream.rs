//! Server-sent events.

use std::{
    convert::Infallible,
    future::{Future as _, poll_fn},
    io::Write as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use futures::{Stream, StreamExt as _, stream};
use sconce_engine::RequestError;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use super::choice::{Choice, Delta};
use crate::error::ApiError;

/// After so long without a word, or at most twice that, something is sent, lest proxies and
/// clients take the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Turns deltas into an endpoint's events.
pub(crate) trait Chunks: Send + 'static {
    /// Writes the events before the first delta of any choice.
    fn open(&mut self, out: &mut Events);
    /// Writes the events of one delta.
    fn delta(&mut self, choice: usize, delta: Delta, out: &mut Events);
    /// Writes the events after the last.
    fn close(&mut self, out: &mut Events);

    /// Writes what ends a stream that fails.
    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        out.push(&error.json());
    }

    /// Writes something that says nothing.
    fn keep_alive(&mut self, out: &mut Events) {
        out.comment("waiting");
    }
}

/// Events in wire form, gathered for one write.
#[derive(Default)]
pub(crate) struct Events(Vec<u8>);

impl Events {
    /// An event without a name.
    pub(crate) fn push(&mut self, chunk: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, chunk)
            .expect("chunks have string keys, and a vector takes every write");
        self.0.extend_from_slice(b"\n\n");
    }

    /// An event with a name.
    pub(crate) fn push_named(&mut self, name: &str, event: &impl Serialize) {
        writeln!(self.0, "event: {name}").expect("a vector takes every write");
        self.push(event);
    }

    /// What ends OpenAI's older streams.
    pub(crate) fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn comment(&mut self, text: &str) {
        write!(self.0, ": {text}\n\n").expect("a vector takes every write");
    }
}

/// How many choices' deltas go out in one write at most.
const MERGED: usize = 64;

/// Streams the choices' deltas as they come; deltas that are ready together go
/// out in one write. The head is sent once the first delta is there, so that
/// what fails before it is a proper error, or after [`KEEP_ALIVE`]; what fails later ends the
/// stream with an error event. Dropping the response cancels every choice.
pub(crate) async fn respond(
    choices: Vec<Choice>,
    chunks: impl Chunks,
) -> Result<Response, ApiError> {
    let mut deltas = Deltas::new(choices);
    let first = deltas.next().await;
    // An error that is ready together with the first delta comes after it all the same.
    if let Turn::Deltas(first) = &first
        && let Some((_, Err(error))) = first.first()
    {
        return Err(error.clone().into());
    }
    // In a box: it goes from turn to turn.
    let streamed =
        Box::new(Streamed { deltas, chunks, next: Some(first), is_open: false, is_over: false });
    let body = stream::unfold(streamed, |mut streamed| async move {
        let bytes = streamed.next().await?;
        Some((Ok::<_, Infallible>(bytes), streamed))
    })
    // The connection may ask again.
    .fuse();
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// What comes next of a response.
enum Turn {
    Deltas(Vec<Indexed>),
    /// Nothing for a while.
    Silence,
    End,
}

/// The choices' deltas, and silences.
struct Deltas {
    stream: stream::BoxStream<'static, Vec<Indexed>>,
    /// One timer for the whole response, which is looked at only when there is no delta.
    silence: Pin<Box<Sleep>>,
    /// Whether there was a delta since it was set.
    has_spoken: bool,
}

impl Deltas {
    fn new(choices: Vec<Choice>) -> Self {
        let stream = merge(choices).ready_chunks(MERGED).boxed();
        Self { stream, silence: Box::pin(sleep(KEEP_ALIVE)), has_spoken: false }
    }

    async fn next(&mut self) -> Turn {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        if let Poll::Ready(deltas) = self.stream.poll_next_unpin(cx) {
            self.has_spoken = true;
            return Poll::Ready(deltas.map_or(Turn::End, Turn::Deltas));
        }
        loop {
            ready!(self.silence.as_mut().poll(cx));
            self.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
            if !std::mem::take(&mut self.has_spoken) {
                return Poll::Ready(Turn::Silence);
            }
        }
    }
}

/// A response that is being streamed.
struct Streamed<C> {
    deltas: Deltas,
    chunks: C,
    /// What was waited for already.
    next: Option<Turn>,
    is_open: bool,
    is_over: bool,
}

impl<C: Chunks> Streamed<C> {
    /// Waits for what goes out in the next write.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Events::default();
        while out.0.is_empty() && !self.is_over {
            let turn = match self.next.take() {
                Some(turn) => turn,
                None => self.deltas.next().await,
            };
            if !self.is_open && !matches!(turn, Turn::Silence) {
                self.is_open = true;
                self.chunks.open(&mut out);
            }
            match turn {
                Turn::Deltas(deltas) => self.write(deltas, &mut out),
                Turn::Silence => self.chunks.keep_alive(&mut out),
                Turn::End => {
                    self.chunks.close(&mut out);
                    self.is_over = true;
                }
            }
        }
        (!out.0.is_empty()).then(|| Bytes::from(out.0))
    }

    fn write(&mut self, deltas: Vec<Indexed>, out: &mut Events) {
        for (index, delta) in deltas {
            match delta {
                Ok(delta) => self.chunks.delta(index, delta, out),
                Err(error) => {
                    self.chunks.fail(&error.into(), out);
                    self.is_over = true;
                    return;
                }
            }
        }
    }
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
