//! What bounds a request from outside the scheduler: masks, stops, and readiness.

use std::sync::mpsc::SyncSender;

use sconce_types::{RequestId, TokenId};

use crate::shared::Message;

/// Ends a request by its tokens, as a stop string does. Asked on the engine's thread, in the
/// step that generated a token, so that nothing is generated after the end: it must be quick.
pub trait StopCheck: Send {
    /// Takes the next token; says whether it is the last.
    fn ends_with(&mut self, token: TokenId) -> bool;
}

/// Bounds what a request may generate, as a grammar does. Asked on the engine's thread while
/// the device computes the logits that the mask is for.
pub trait TokenConstraint: Send {
    /// Writes the tokens that may come next over `words`, all zero: token `t` as bit `t % 32` of
    /// word `t / 32`. Where it says `false` the mask is not ready yet, and is asked for again.
    /// If no token is left the request ends with what [`TokenConstraint::failure`] says, else
    /// with [`RequestError::NothingAllowed`](crate::RequestError::NothingAllowed).
    fn fill_mask(&mut self, words: &mut [u32]) -> bool;

    /// Takes the token that was generated.
    fn accept(&mut self, token: TokenId);

    /// Why it cannot go on, where that is no fault of the tokens so far.
    fn failure(&self) -> Option<String> {
        None
    }
}

/// Says once that a request is ready to be scheduled. Dropping it ends the request.
#[must_use = "a request that is not made ready ends"]
pub struct ReadySignal {
    id: RequestId,
    inbox: Option<SyncSender<Message>>,
}

impl ReadySignal {
    pub(crate) fn new(id: RequestId, inbox: SyncSender<Message>) -> Self {
        Self { id, inbox: Some(inbox) }
    }

    /// The request is ready; it generates under this constraint, if any.
    pub fn ready(mut self, constraint: Option<Box<dyn TokenConstraint>>) {
        self.send(Ok(constraint));
    }

    /// The request cannot be made ready: it ends with
    /// [`RequestError::CannotRun`](crate::RequestError::CannotRun).
    pub fn fail(mut self, reason: impl Into<String>) {
        self.send(Err(reason.into()));
    }

    fn send(&mut self, outcome: Result<Option<Box<dyn TokenConstraint>>, String>) {
        if let Some(inbox) = self.inbox.take() {
            // The inbox has room for it; only an engine that has stopped takes nothing.
            let _ = inbox.try_send(Message::Ready(self.id, outcome));
        }
    }
}

impl Drop for ReadySignal {
    fn drop(&mut self) {
        self.send(Err("what was to make the request ready was given up".to_owned()));
    }
}
