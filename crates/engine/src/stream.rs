//! What a request's owner holds while it runs.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, mpsc::SyncSender},
    task::{Context, Poll},
    time::Duration,
};

use sconce_types::{End, Metering, NotReady, RequestId, TokenId, TokenLogprobs};
use tokio::sync::mpsc::Receiver;

use crate::shared::Message;

/// What happens to a request, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestEvent {
    /// The prompt's embedding, from a model that makes them; the token after it means nothing.
    Embedding(Arc<[f32]>),
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
    /// What the request has used, this token and its step included.
    pub usage: Metering,
    /// The price of that, in billionths of the currency; `None` without prices.
    pub price_nano: Option<u64>,
    /// Set on the last token.
    pub finish: Option<End>,
}

/// Why a request ended without finishing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The model's output for this request was not a number.
    #[error("the model's logits for this request were not finite")]
    NonFiniteLogits,
    /// What bounds its tokens leaves none.
    #[error(
        "no token is left that the request may generate: its constraint allows none, or only end \
         tokens before min_tokens"
    )]
    NothingAllowed,
    /// The step that computed this request failed.
    #[error("a step failed: {0}")]
    StepFailed(String),
    /// The scheduler refused it.
    #[error("{0}")]
    Refused(String),
    /// It cannot be served in time, or not now.
    #[error("{reason}; try again in {} s", retry_after.as_secs())]
    Overloaded {
        /// What stands in the way.
        reason: Overload,
        /// When it no longer should, in whole seconds.
        retry_after: Duration,
    },
    /// The time that its client gave it has passed.
    #[error("the request's timeout of {} s has passed", timeout.as_secs_f64())]
    TimedOut {
        /// That time.
        timeout: Duration,
    },
    /// It was not ready to be scheduled within the time that it may wait for that.
    #[error(
        "what the request waits for ({}) was not ready within {} s",
        reason.name(), timeout.as_secs_f64()
    )]
    NotReady {
        /// What it waited for.
        reason: NotReady,
        /// How long it might.
        timeout: Duration,
    },
    /// What it waited for cannot be had.
    #[error("{reason}")]
    CannotRun {
        /// Why.
        reason: String,
    },
    /// The engine's thread ended.
    #[error("the engine has stopped")]
    EngineLost,
}

/// A time to two digits: more would let a tenant infer other tenants' requests.
struct About(Duration);

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "about {} ms", two_digits(self.0).as_millis())
    }
}

/// The first two digits of a time.
pub(crate) fn two_digits(time: Duration) -> Duration {
    let ns = time.as_nanos();
    let unit = 10_u128.pow(ns.checked_ilog10().unwrap_or(0).saturating_sub(1));
    Duration::from_nanos(u64::try_from(ns / unit * unit).unwrap_or(u64::MAX))
}

/// Why a request is not taken now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overload {
    /// The tenant's own queue is full.
    #[error("{max_queued} requests of this tenant wait already, which is its limit")]
    QueueFull {
        /// The tenant's limit.
        max_queued: usize,
    },
    /// The queue of all tenants is full.
    #[error("the server's queue is full")]
    EngineQueueFull,
    /// What the tenant's requests of the last minute used, or may still use, leaves no room.
    #[error("this tenant's limit of {tokens_per_minute} tokens a minute is reached")]
    TokensPerMinute {
        /// The tenant's limit.
        tokens_per_minute: u64,
    },
    /// The first token would come too late.
    #[error(
        "the first token is to be expected after {}, later than the {} ms that it may take",
        About(*expected), limit.as_millis()
    )]
    TooLate {
        /// When the first token is to be expected.
        expected: Duration,
        /// The tenant's target, or the client's timeout.
        limit: Duration,
    },
    /// It would wait too long.
    #[error(
        "the request would wait in the queue for {}, longer than the {} s that one may wait",
        About(*expected), limit.as_secs_f64()
    )]
    QueueTooLong {
        /// The wait that is to be expected.
        expected: Duration,
        /// The engine's limit.
        limit: Duration,
    },
    /// The answer would not end in time.
    #[error(
        "the whole answer is to be expected after {}, later than the {} ms that the request \
         may take",
        About(*expected), limit.as_millis()
    )]
    EndsTooLate {
        /// When the answer's end is to be expected.
        expected: Duration,
        /// The client's timeout.
        limit: Duration,
    },
    /// Requests that were taken before would not end in time.
    #[error("requests that were taken before would not end in time")]
    Promised,
    /// How long steps take is not known yet.
    #[error("how long the request would take is not known before the first steps have ended")]
    Unmeasured,
    /// Tokens would come too slowly.
    #[error(
        "a token is to be expected every {}, more than the {} ms that this tenant aims at",
        About(*expected), target.as_millis()
    )]
    TooSlow {
        /// The time from token to token that is to be expected.
        expected: Duration,
        /// The tenant's target.
        target: Duration,
    },
    /// It was taken, and its first token did not come in time after all.
    #[error("no token came within the {} ms that the first may take", limit.as_millis())]
    Late {
        /// The tenant's target.
        limit: Duration,
    },
}

/// The events of one request. Dropping it cancels the request: its blocks are
/// free before the next step is scheduled.
///
/// The channel has room for every event the request can have, so a slow reader
/// never holds the engine up, and memory is bounded by `max_tokens`.
pub struct RequestStream {
    id: RequestId,
    events: Receiver<RequestEvent>,
    inbox: SyncSender<Message>,
    ended: bool,
}

impl fmt::Debug for RequestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestStream").field("id", &self.id).finish_non_exhaustive()
    }
}

impl RequestStream {
    pub(crate) fn new(
        id: RequestId,
        events: Receiver<RequestEvent>,
        inbox: SyncSender<Message>,
    ) -> Self {
        Self { id, events, inbox, ended: false }
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
        RequestEvent::Embedding(_) | RequestEvent::PromptLogprobs { .. } => false,
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
            // Closed first: the engine's thread, once it has read the cancellation, must see
            // that the channel is closed.
            self.events.close();
            // The inbox has room for it. It fails only if the engine has stopped, and then there
            // is nothing to cancel.
            let _ = self.inbox.try_send(Message::Cancel(self.id));
        }
    }
}
