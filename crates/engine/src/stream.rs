//! What a request's owner holds while it runs.

use std::{
    pin::Pin,
    sync::mpsc::Sender,
    task::{Context, Poll},
};

use sconce_types::{RequestId, TokenId, TokenLogprobs};
use tokio::sync::mpsc::Receiver;

/// What happens to a request, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestEvent {
    /// Log-probabilities of prompt tokens, where asked for; all of them come
    /// before the first token.
    PromptLogprobs {
        /// The prompt position of the first; position 0 has none.
        start: usize,
        /// One for each position from `start`.
        logprobs: Vec<TokenLogprobs>,
    },
    /// A token was generated.
    Token(TokenEvent),
    /// The request ended without finishing. Nothing follows.
    Failed(RequestError),
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The token; an end token is reported too.
    pub token: TokenId,
    /// Its log-probabilities, where asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Prompt tokens that were found in the prefix cache.
    pub num_cached_tokens: usize,
    /// Set on the last token.
    pub finish: Option<FinishReason>,
}

/// Why a request finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end token, or one of the request's stop tokens.
    Stop {
        /// Which of the request's own `stop_token_ids`, if it was one.
        stop_token: Option<TokenId>,
    },
    /// `max_tokens` were generated.
    Length,
}

/// Why a request ended without finishing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The model's output for this request was not a number.
    #[error("the model's logits for this request were not finite")]
    NonFiniteLogits,
    /// The step that computed this request failed.
    #[error("a step failed: {0}")]
    StepFailed(String),
    /// The scheduler refused it.
    #[error("{0}")]
    Refused(String),
    /// The engine's thread ended.
    #[error("the engine has stopped")]
    EngineLost,
}

/// The events of one request. Dropping it cancels the request: its blocks are
/// free before the next step is scheduled.
///
/// The channel has room for every event the request can have, so a slow reader
/// never holds the engine up, and memory is bounded by `max_tokens`.
#[derive(Debug)]
pub struct RequestStream {
    id: RequestId,
    events: Receiver<RequestEvent>,
    cancels: Sender<RequestId>,
    ended: bool,
}

impl RequestStream {
    pub(crate) fn new(
        id: RequestId,
        events: Receiver<RequestEvent>,
        cancels: Sender<RequestId>,
    ) -> Self {
        Self { id, events, cancels, ended: false }
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Waits for the next event; `None` once the request has ended.
    pub async fn next(&mut self) -> Option<RequestEvent> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next event if one is there already, without waiting.
    pub fn try_next(&mut self) -> Option<RequestEvent> {
        let event = self.events.try_recv().ok()?;
        self.ended = ends(&event);
        Some(event)
    }

    /// Waits for the next event on a thread outside any async runtime; `None`
    /// once the request has ended.
    pub fn blocking_next(&mut self) -> Option<RequestEvent> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.note(event))
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<RequestEvent>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.events.poll_recv(cx).map(|event| Some(self.note(event)))
    }

    /// A channel that closes before its request ended lost its engine.
    fn note(&mut self, event: Option<RequestEvent>) -> RequestEvent {
        let event = event.unwrap_or(RequestEvent::Failed(RequestError::EngineLost));
        self.ended = ends(&event);
        event
    }
}

fn ends(event: &RequestEvent) -> bool {
    match event {
        RequestEvent::Token(token) => token.finish.is_some(),
        RequestEvent::Failed(_) => true,
        RequestEvent::PromptLogprobs { .. } => false,
    }
}

impl futures::Stream for RequestStream {
    type Item = RequestEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx)
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if !self.ended {
            // Closed first: whoever has read the cancellation sees the closed channel.
            self.events.close();
            // An engine that is gone has nothing left to cancel.
            let _ = self.cancels.send(self.id);
        }
    }
}
