//! `/v1/responses`: the response, of which a stream's events tell.

use std::mem;

use sconce_engine::RequestError;

use super::{
    store::Keeper,
    wire::{
        Assistant, Echo, Event, Failure, IncompleteDetails, MaxOutputTokens, OutputItem,
        OutputPart, ResponseBody, ResponseObject, ResponseUsage, ServerError, Status,
    },
};
use crate::{
    error::ApiError,
    generation::{
        answers::Part,
        choice::{Choice, Delta, Finish, FinishReason, ended},
        conversation::{Message, Role},
        stream::Events,
        tools::{ToolCall, parse_arguments},
        usage::Counts,
    },
    openai::{TokenLogprob, token_logprobs},
    state::AppState,
};

/// What a response says, and how.
pub(super) struct Shape {
    pub(super) model: String,
    /// What of the request the response repeats.
    pub(super) echo: Echo,
    pub(super) is_stored: bool,
    pub(super) wants_logprobs: bool,
}

/// A response that is being made.
pub(super) struct Answer {
    state: AppState,
    id: String,
    shape: Shape,
    created_at: u64,
    counts: Counts,
    keep: Option<Keeper>,
    /// Whole items.
    output: Vec<OutputItem>,
    open: Option<Open>,
    /// What the answer adds to the conversation.
    said: Message,
    /// Counts events.
    sequence_number: u64,
}

/// The item that is being made.
struct Open {
    kind: Kind,
    id: String,
    /// Text, thought, or arguments.
    text: String,
    logprobs: Vec<TokenLogprob>,
    call: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
    Call,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Text => "msg_",
            Self::Reasoning => "rs_",
            Self::Call => "fc_",
        }
    }
}

impl Open {
    fn item(&self, status: Status) -> OutputItem {
        let id = self.id.clone();
        match (self.kind, &self.call) {
            (Kind::Call, Some((call_id, name))) => OutputItem::FunctionCall {
                id,
                call_id: call_id.clone(),
                name: name.clone(),
                arguments: self.text.clone(),
                status,
            },
            (Kind::Reasoning, _) => {
                OutputItem::Reasoning { id, summary: Vec::new(), content: self.content(), status }
            }
            _ => OutputItem::Message { id, status, role: Assistant::Word, content: self.content() },
        }
    }

    /// Nothing yet, or the one part.
    fn content(&self) -> Vec<OutputPart> {
        if self.text.is_empty() { Vec::new() } else { vec![self.part()] }
    }

    fn part(&self) -> OutputPart {
        let text = self.text.clone();
        if self.kind == Kind::Reasoning {
            return OutputPart::ReasoningText { text };
        }
        OutputPart::OutputText { text, annotations: Vec::new(), logprobs: self.logprobs.clone() }
    }
}

impl Answer {
    pub(super) fn new(
        state: &AppState,
        shape: Shape,
        counts: Counts,
        created_at: u64,
        keep: Option<Keeper>,
    ) -> Self {
        Self {
            state: state.clone(),
            id: state.next_id("resp_"),
            shape,
            created_at,
            counts,
            keep,
            output: Vec::new(),
            open: None,
            said: Message::new(Role::Assistant, ""),
            sequence_number: 0,
        }
    }

    /// The whole response, of the same deltas as a stream.
    pub(super) async fn of(mut self, mut choice: Choice) -> Result<ResponseBody, RequestError> {
        while let Some(delta) = choice.next().await {
            if let Some(response) = self.take(delta?, &mut Events::default()) {
                return Ok(response);
            }
        }
        Err(RequestError::EngineLost)
    }

    /// Sends that the response has begun.
    pub(super) fn begin(&mut self, out: &mut Events) {
        let response = self.response(Status::InProgress, None);
        self.send(|sequence_number| Event::Created { response: &response, sequence_number }, out);
        self.send(
            |sequence_number| Event::InProgress { response: &response, sequence_number },
            out,
        );
    }

    /// Takes a delta; gives back the response if that was its last.
    pub(super) fn take(&mut self, mut delta: Delta, out: &mut Events) -> Option<ResponseBody> {
        self.counts.note(0, &delta);
        let mut logprobs = if self.shape.wants_logprobs {
            token_logprobs(&self.state.text, delta.text_logprobs(), false)
        } else {
            Vec::new()
        };
        for part in delta.take_parts() {
            self.part(part, &mut logprobs, out);
        }
        let Finish { reason, .. } = ended(Some(delta.finish?));
        if let Some(open) = self.open.as_mut().filter(|open| open.kind == Kind::Text) {
            // The end token's.
            open.logprobs.append(&mut logprobs);
        }
        let is_cut = reason == FinishReason::Length;
        let status = if is_cut { Status::Incomplete } else { Status::Completed };
        self.end_item(status, out);
        let response = self.response(status, None);
        if let Some(keep) = self.keep.take() {
            let said = mem::replace(&mut self.said, Message::new(Role::Assistant, ""));
            keep.keep(&self.id, &response, vec![said]);
        }
        let event = |sequence_number| match status {
            Status::Incomplete => Event::Incomplete { response: &response, sequence_number },
            _ => Event::Completed { response: &response, sequence_number },
        };
        self.send(event, out);
        Some(response)
    }

    /// The response fails.
    pub(super) fn fail(&mut self, error: &ApiError, out: &mut Events) {
        self.end_item(Status::Incomplete, out);
        let message = error.message().to_owned();
        let response =
            self.response(Status::Failed, Some(Failure { code: ServerError::Word, message }));
        self.send(|sequence_number| Event::Failed { response: &response, sequence_number }, out);
    }

    fn response(&self, status: Status, error: Option<Failure>) -> ResponseBody {
        let details = IncompleteDetails { reason: MaxOutputTokens::Word };
        let has_ended = status != Status::InProgress;
        ResponseBody {
            id: self.id.clone(),
            object: ResponseObject::Word,
            created_at: self.created_at,
            status,
            error,
            incomplete_details: (status == Status::Incomplete).then_some(details),
            model: self.shape.model.clone(),
            output: self.output.clone(),
            usage: has_ended.then(|| ResponseUsage::new(self.counts.tokens())),
            echo: self.shape.echo.clone(),
        }
    }

    fn send<'a>(&mut self, event: impl FnOnce(u64) -> Event<'a>, out: &mut Events) {
        let event = event(self.sequence_number);
        self.sequence_number += 1;
        out.push_named(event.name(), &event);
    }

    fn part(&mut self, part: Part, logprobs: &mut Vec<TokenLogprob>, out: &mut Events) {
        match part {
            Part::Text(text) => self.text(Kind::Text, &text, logprobs, out),
            Part::Reasoning(text) => self.text(Kind::Reasoning, &text, logprobs, out),
            Part::CallStart { id, name, .. } => self.begin_item(Kind::Call, Some((id, name)), out),
            Part::CallArguments { json, .. } => self.text(Kind::Call, &json, logprobs, out),
            Part::CallEnd { .. } => self.end_item(Status::Completed, out),
        }
    }

    fn begin_item(&mut self, kind: Kind, call: Option<(String, String)>, out: &mut Events) {
        self.end_item(Status::Completed, out);
        let id = self.state.next_id(kind.prefix());
        let open = Open { kind, id, text: String::new(), logprobs: Vec::new(), call };
        let (item, part, output_index) =
            (open.item(Status::InProgress), open.part(), self.output.len());
        self.send(
            |sequence_number| Event::ItemAdded { output_index, item: &item, sequence_number },
            out,
        );
        if kind != Kind::Call {
            let event = |sequence_number| Event::PartAdded {
                item_id: &open.id,
                output_index,
                content_index: 0,
                part: &part,
                sequence_number,
            };
            self.send(event, out);
        }
        self.open = Some(open);
    }

    fn text(
        &mut self,
        kind: Kind,
        delta: &str,
        logprobs: &mut Vec<TokenLogprob>,
        out: &mut Events,
    ) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.begin_item(kind, None, out);
        }
        let mut open = self.open.take().expect("it was begun");
        open.text += delta;
        let (item_id, output_index, content_index) = (&*open.id, self.output.len(), 0);
        let logprobs = if kind == Kind::Text { mem::take(logprobs) } else { Vec::new() };
        let event = |sequence_number| match kind {
            Kind::Text => Event::TextDelta {
                item_id,
                output_index,
                content_index,
                delta,
                logprobs: &logprobs,
                sequence_number,
            },
            Kind::Reasoning => Event::ReasoningDelta {
                item_id,
                output_index,
                content_index,
                delta,
                sequence_number,
            },
            Kind::Call => Event::ArgumentsDelta { item_id, output_index, delta, sequence_number },
        };
        self.send(event, out);
        open.logprobs.extend(logprobs);
        self.open = Some(open);
    }

    fn end_item(&mut self, status: Status, out: &mut Events) {
        let Some(open) = self.open.take() else { return };
        let (item_id, output_index, content_index) = (&*open.id, self.output.len(), 0);
        let (text, logprobs) = (&*open.text, &*open.logprobs);
        let event = |sequence_number| match (open.kind, &open.call) {
            (Kind::Call, Some((_, name))) => Event::ArgumentsDone {
                item_id,
                output_index,
                name,
                arguments: text,
                sequence_number,
            },
            (Kind::Reasoning, _) => {
                Event::ReasoningDone { item_id, output_index, content_index, text, sequence_number }
            }
            _ => Event::TextDone {
                item_id,
                output_index,
                content_index,
                text,
                logprobs,
                sequence_number,
            },
        };
        self.send(event, out);
        if open.kind != Kind::Call {
            let part = open.part();
            let event = |sequence_number| Event::PartDone {
                item_id,
                output_index,
                content_index,
                part: &part,
                sequence_number,
            };
            self.send(event, out);
        }
        let item = open.item(status);
        let event =
            |sequence_number| Event::ItemDone { output_index, item: &item, sequence_number };
        self.send(event, out);
        self.output.push(item);
        self.note(open, status);
    }

    /// Adds an item to what the conversation will have of it.
    fn note(&mut self, open: Open, status: Status) {
        match (open.kind, open.call) {
            (Kind::Reasoning, _) => {
                self.said.reasoning.get_or_insert_default().push_str(&open.text);
            }
            (Kind::Call, Some((id, name))) if status == Status::Completed => {
                match parse_arguments(&open.text, "arguments") {
                    Ok(arguments) => self.said.calls.push(ToolCall { id, name, arguments }),
                    // They were cut.
                    Err(_) => self.said.text += &open.text,
                }
            }
            _ => self.said.text += &open.text,
        }
    }
}
