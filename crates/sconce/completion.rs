//! A completion as text.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;
use sconce_engine::{End, RequestError, RequestEvent, RequestStream};
use sconce_text::Detokenizer;

/// The text of one completion as it comes: a [`Stream`] for async code, and
/// [`Completion::blocking_next`] for other threads. Dropping it cancels the request.
pub struct Completion {
    stream: RequestStream,
    detokenizer: Detokenizer,
    text: String,
    finish: Option<End>,
    num_tokens: usize,
}

impl Completion {
    pub(crate) fn new(stream: RequestStream, detokenizer: Detokenizer) -> Self {
        Self { stream, detokenizer, text: String::new(), finish: None, num_tokens: 0 }
    }

    /// Waits for the next piece of text; `None` once the completion has ended.
    ///
    /// # Errors
    /// The request ended without finishing.
    pub async fn next(&mut self) -> Option<Result<String, RequestError>> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<String, RequestError>>> {
        loop {
            let event = ready!(Pin::new(&mut self.stream).poll_next(cx));
            match self.take(event) {
                None => return Poll::Ready(None),
                Some(None) => {}
                Some(piece) => return Poll::Ready(piece),
            }
        }
    }

    /// [`Completion::next`] on a thread outside any async runtime.
    ///
    /// # Errors
    /// The request ended without finishing.
    pub fn blocking_next(&mut self) -> Option<Result<String, RequestError>> {
        loop {
            let event = self.stream.blocking_next();
            if let Some(piece) = self.take(event)? {
                return Some(piece);
            }
        }
    }

    /// Why it finished; `None` while it runs.
    #[must_use]
    pub fn finish_reason(&self) -> Option<End> {
        self.finish
    }

    /// Tokens generated so far, the end token included.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// The outer `None` ends the completion; the inner one has no text yet.
    #[expect(clippy::option_option, reason = "end and not-yet are two things")]
    fn take(
        &mut self,
        event: Option<RequestEvent>,
    ) -> Option<Option<Result<String, RequestError>>> {
        match event? {
            RequestEvent::Embedding(_) | RequestEvent::PromptLogprobs { .. } => Some(None),
            RequestEvent::Failed(error) => Some(Some(Err(error))),
            RequestEvent::Token(event) => {
                self.num_tokens += 1;
                self.finish = event.finish;
                // A token that ends the completion is no part of its text.
                if !matches!(event.finish, Some(End::Stop { .. })) {
                    self.detokenizer.push(event.token, &mut self.text);
                }
                if self.finish.is_some() {
                    self.detokenizer.finish(&mut self.text);
                }
                let piece = std::mem::take(&mut self.text);
                Some((!piece.is_empty()).then_some(Ok(piece)))
            }
        }
    }
}

impl Stream for Completion {
    type Item = Result<String, RequestError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_piece(cx)
    }
}
