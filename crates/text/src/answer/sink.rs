//! Where the parsers of the formats put what they find, within their limits.

use super::AnswerEvent;

/// Bytes of one call's arguments at most.
pub(super) const MAX_ARGUMENTS: usize = 1 << 20;
/// How deep arguments may be nested.
pub(super) const MAX_DEPTH: u32 = 128;
/// Calls of an answer at most.
pub(super) const MAX_CALLS: usize = 64;
/// Bytes of a name at most, with its identifier where there is one.
pub(super) const MAX_NAME: usize = 1024;
/// Bytes that may wait for a call to begin: arguments may come before its name.
pub(super) const MAX_HELD: usize = MAX_ARGUMENTS + (64 << 10);

/// Why something is no call, or no longer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// It is not what the format writes.
    Syntax,
    /// It is more than is accepted.
    Cap,
}

/// What a call's parser says of a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// It was taken.
    More,
    /// It was taken and text follows.
    Done,
    /// It was not taken: text had begun before.
    DoneBefore,
}

/// The events of a push, and the call that is being written.
#[derive(Default)]
pub(super) struct Sink {
    events: Vec<AnswerEvent>,
    /// What was read since the last event: text, should there be no call in it.
    pub(super) held: String,
    /// Whether this character led to an event.
    pub(super) moved: bool,
    calls: usize,
    /// Bytes of arguments of the open call.
    open: Option<usize>,
}

impl Sink {
    pub(super) fn take(&mut self, out: &mut Vec<AnswerEvent>) {
        out.append(&mut self.events);
    }

    pub(super) fn text(&mut self, text: &str) {
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(AnswerEvent::Text(last)) => last.push_str(text),
            _ => self.events.push(AnswerEvent::Text(text.to_owned())),
        }
    }

    pub(super) fn reasoning(&mut self, text: &str) {
        match self.events.last_mut() {
            _ if text.is_empty() => {}
            Some(AnswerEvent::Reasoning(last)) => last.push_str(text),
            _ => self.events.push(AnswerEvent::Reasoning(text.to_owned())),
        }
    }

    /// A call begins.
    pub(super) fn start(&mut self, name: String, id: Option<String>) -> Result<(), Broken> {
        if self.calls == MAX_CALLS {
            return Err(Broken::Cap);
        }
        self.events.push(AnswerEvent::CallStart { index: self.calls, name, id });
        self.calls += 1;
        self.open = Some(0);
        self.settle();
        Ok(())
    }

    /// More of the open call's arguments.
    pub(super) fn arguments(&mut self, json: &str) -> Result<(), Broken> {
        let sent = self.open.as_mut().expect("a call is open");
        if json.is_empty() {
            return Ok(());
        }
        if *sent + json.len() > MAX_ARGUMENTS {
            return Err(Broken::Cap);
        }
        *sent += json.len();
        match self.events.last_mut() {
            Some(AnswerEvent::CallArguments { json: last, .. }) => last.push_str(json),
            _ => self
                .events
                .push(AnswerEvent::CallArguments { index: self.calls - 1, json: json.to_owned() }),
        }
        self.settle();
        Ok(())
    }

    /// Ends the open call; one without arguments gets `{}` if it is complete.
    pub(super) fn end(&mut self, is_complete: bool) {
        if is_complete && self.open == Some(0) {
            self.arguments("{}").expect("two bytes are below the limit");
        }
        if self.open.take().is_some() {
            self.events.push(AnswerEvent::CallEnd { index: self.calls - 1, is_complete });
            self.settle();
        }
    }

    /// Gives up what is being read: the open call is cut, what was held is text.
    pub(super) fn abandon(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.end(false);
        self.text(&held);
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn settle(&mut self) {
        self.held.clear();
        self.moved = true;
    }
}
