//! A completion as text.

use sconce_engine::{End, RequestError, RequestEvent, RequestStream};
use sconce_text::Detokenizer;

/// The text of one completion as it comes. Dropping it cancels the request.
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
        loop {
            let event = self.stream.next().await;
            if let Some(piece) = self.take(event)? {
                return Some(piece);
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
            RequestEvent::PromptLogprobs { .. } => Some(None),
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
