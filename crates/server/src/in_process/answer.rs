//! An answer as it comes, and as a whole.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;
use sconce_engine::RequestError;
use sconce_types::Metering;

use super::{Message, ToolCall, block_on};
use crate::generation::{
    answers::Part,
    choice::{Choice, FinishReason},
};

/// The parts of one answer as they come: a [`Stream`] for async code, and
/// [`Answer::blocking_next`] for other threads. Dropping it cancels the request.
pub struct Answer {
    choice: Choice,
    ready: VecDeque<AnswerPart>,
    /// The call whose arguments come.
    call: Option<ToolCall>,
    finish: Option<Finish>,
    metering: Metering,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPart {
    /// More of its text.
    Text(String),
    /// More of what the model thinks.
    Reasoning(String),
    /// A call, once it is whole.
    Call(ToolCall),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop text or token.
    Stop,
    /// It has as many tokens as it may have.
    Length,
    /// The model waits for what its calls come to.
    ToolCalls,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// Its text.
    pub text: String,
    /// What the model thought; empty if nothing.
    pub reasoning: String,
    /// What it called. Of an answer that was cut the last call may not be whole.
    pub calls: Vec<ToolCall>,
    /// Why it ended.
    pub finish: Finish,
    /// What it used: tokens, and time of the device.
    pub metering: Metering,
}

impl Answered {
    /// The message that it is in the conversation from now on.
    #[must_use]
    pub fn to_message(&self) -> Message {
        Message::Assistant {
            text: self.text.clone(),
            reasoning: (!self.reasoning.is_empty()).then(|| self.reasoning.clone()),
            calls: self.calls.clone(),
        }
    }
}

impl Answer {
    pub(super) fn new(choice: Choice) -> Self {
        Self {
            choice,
            ready: VecDeque::new(),
            call: None,
            finish: None,
            metering: Metering::default(),
        }
    }

    /// Waits for the next part; `None` once the answer has ended.
    ///
    /// # Errors
    /// The request ended without finishing.
    pub async fn next(&mut self) -> Option<Result<AnswerPart, RequestError>> {
        poll_fn(|cx| self.poll_part(cx)).await
    }

    /// [`Answer::next`] on a thread outside any async runtime.
    ///
    /// # Errors
    /// The request ended without finishing.
    pub fn blocking_next(&mut self) -> Option<Result<AnswerPart, RequestError>> {
        block_on(Self::next(self))
    }

    /// Waits for all of it.
    ///
    /// # Errors
    /// The request ended without finishing.
    pub async fn whole(mut self) -> Result<Answered, RequestError> {
        let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
        while let Some(part) = Self::next(&mut self).await {
            match part? {
                AnswerPart::Text(piece) => text += &piece,
                AnswerPart::Reasoning(piece) => reasoning += &piece,
                AnswerPart::Call(call) => calls.push(call),
            }
        }
        let finish = self.finish.expect("an answer without an error has finished");
        Ok(Answered { text, reasoning, calls, finish, metering: self.metering })
    }

    /// [`Answer::whole`] on a thread outside any async runtime.
    ///
    /// # Errors
    /// The request ended without finishing.
    pub fn blocking_whole(self) -> Result<Answered, RequestError> {
        block_on(self.whole())
    }

    /// Why it ended; `None` while it has not.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// What it has used so far.
    #[must_use]
    pub fn metering(&self) -> Metering {
        self.metering
    }

    fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<AnswerPart, RequestError>>> {
        loop {
            if let Some(part) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(part)));
            }
            let Some(delta) = ready!(self.choice.poll_delta(cx)) else { return Poll::Ready(None) };
            let mut delta = match delta {
                Ok(delta) => delta,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            for part in delta.take_parts() {
                self.take(part);
            }
            self.metering = delta.used.metering;
            self.finish = delta.finish.map(|finish| match finish.reason {
                FinishReason::Stop => Finish::Stop,
                FinishReason::Length => Finish::Length,
                FinishReason::ToolCalls => Finish::ToolCalls,
            });
            if self.finish.is_some() {
                // One that was cut is told as far as it came.
                self.end_call();
            }
        }
    }

    fn take(&mut self, part: Part) {
        match part {
            Part::Text(text) => self.ready.push_back(AnswerPart::Text(text)),
            Part::Reasoning(text) => self.ready.push_back(AnswerPart::Reasoning(text)),
            Part::CallStart { id, name, .. } => {
                self.end_call();
                self.call = Some(ToolCall { id, name, arguments: String::new() });
            }
            Part::CallArguments { json, .. } => {
                if let Some(call) = &mut self.call {
                    call.arguments += &json;
                }
            }
            Part::CallEnd { .. } => self.end_call(),
        }
    }

    fn end_call(&mut self) {
        self.ready.extend(self.call.take().map(AnswerPart::Call));
    }
}

impl Stream for Answer {
    type Item = Result<AnswerPart, RequestError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_part(cx)
    }
}
