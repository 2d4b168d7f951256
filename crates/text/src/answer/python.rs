//! Calls written as Python: Llama 4's `[f(a=1), g()]` and Gemma 3's `tool_code` block.

use super::{
    json::{Progress, is_space},
    literal::{Dialect, Literal},
    sink::{Broken, Flow, MAX_NAME, Sink},
};

/// What the calls stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A list, whose bracket was read: it is one of calls once a keyword argument of the
    /// first has come, or its end.
    List,
    /// A fenced block, one call a line.
    Fence,
}

pub(super) struct PythonCalls {
    place: Place,
    state: State,
    name: String,
    arguments: Literal,
    text: String,
    has_calls: bool,
}

#[derive(Clone, Copy)]
enum State {
    Name,
    Arguments,
    Between,
    Fence(u8),
}

impl PythonCalls {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            state: State::Name,
            name: String::new(),
            arguments: Literal::arguments(Dialect::Python),
            text: String::new(),
            has_calls: false,
        }
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        let fenced = self.place == Place::Fence;
        match (self.state, c) {
            (State::Name, '(') if !self.name.is_empty() => {
                self.arguments = Literal::arguments(Dialect::Python);
                self.state = State::Arguments;
            }
            (State::Name, _) if is_identifier(c, self.name.is_empty()) => {
                self.name.push(c);
                if self.name.len() > MAX_NAME {
                    return Err(Broken::Cap);
                }
            }
            (State::Arguments, _) => {
                let progress = self.arguments.push(c, &mut self.text)?;
                if !self.text.is_empty() {
                    if !sink.is_open() {
                        sink.start(std::mem::take(&mut self.name), None)?;
                        self.has_calls = true;
                    }
                    sink.arguments(&self.text)?;
                    self.text.clear();
                }
                if progress == Progress::Done {
                    sink.end(true);
                    self.state = State::Between;
                }
            }
            _ if is_space(c) && self.name.is_empty() => {}
            (State::Between | State::Name, ']') if self.has_calls && !fenced => {
                return Ok(Flow::Done);
            }
            (State::Between, ',') => self.state = State::Name,
            (State::Name | State::Between, '[' | ']' | ';') if fenced && self.name.is_empty() => {}
            (State::Between, _) if fenced && is_identifier(c, true) => {
                self.name.push(c);
                self.state = State::Name;
            }
            (State::Between | State::Name, '`') if fenced && self.has_calls => {
                self.state = State::Fence(1);
            }
            (State::Fence(2), '`') => return Ok(Flow::Done),
            (State::Fence(ticks), '`') => self.state = State::Fence(ticks + 1),
            _ => return Err(Broken::Syntax),
        }
        Ok(Flow::More)
    }

    /// Sends what is held of the arguments: the text has ended.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        self.arguments.finish(&mut self.text);
        send_rest(&self.text, sink);
    }
}

/// Sends the last of a cut call's arguments.
pub(super) fn send_rest(text: &str, sink: &mut Sink) {
    if sink.is_open() {
        // Beyond the limit there is nothing more to send.
        let _ = sink.arguments(text);
    }
}

fn is_identifier(c: char, first: bool) -> bool {
    c.is_alphabetic() || c == '_' || !first && (c.is_alphanumeric() || c == '.' || c == '-')
}
