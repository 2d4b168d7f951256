//! Calls written as JSON objects: `{"name": "f", "arguments": {…}}`, alone or in an array.

use std::sync::Arc;

use super::{
    AnswerTool,
    json::{Arguments, JsonScanner, Progress, is_space},
    sink::{Broken, Flow, MAX_NAME, Sink},
};

/// Where the objects stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One object follows a marker.
    AfterMarker,
    /// An object among text, whose brace was read: it is a call only if it has a name
    /// and an object of arguments, or the name of a tool alone.
    InText,
    /// The same where an answer is calls or JSON of another form: a call is exactly what the
    /// format's grammar writes, with the name of a tool.
    Instead,
    /// An array of them, whose bracket was read.
    Array,
}

pub(super) struct JsonCalls {
    place: Place,
    tools: Arc<[AnswerTool]>,
    state: State,
    scanner: JsonScanner,
    /// What the scanner has copied of a key, a name or a value that is not used.
    text: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    /// The arguments, once they are sent.
    arguments: Option<Arguments>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    KeyOrEnd,
    Key,
    KeyText,
    Colon,
    BeforeValue(Role),
    Value(Role),
    AfterValue,
    Between,
}

/// What a key says of its value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    /// Arguments, before the name.
    Early,
    Unused,
}

impl JsonCalls {
    pub(super) fn new(place: Place, tools: Arc<[AnswerTool]>) -> Self {
        let state = match place {
            Place::InText | Place::Instead => State::KeyOrEnd,
            Place::AfterMarker | Place::Array => State::Open,
        };
        Self {
            place,
            tools,
            state,
            scanner: JsonScanner::default(),
            text: String::new(),
            name: None,
            early: None,
            arguments: None,
        }
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        if let State::Value(role) = self.state {
            let progress = self.value(role, c, sink)?;
            if progress != Progress::DoneBefore {
                return Ok(Flow::More);
            }
        }
        if is_space(c) && self.state != State::KeyText {
            return Ok(Flow::More);
        }
        self.state = match (self.state, c) {
            (State::Open, '{') => State::KeyOrEnd,
            (State::Open | State::Between, ']') if self.place == Place::Array => {
                return Ok(Flow::Done);
            }
            (State::KeyOrEnd, '}') | (State::AfterValue, '}') => return self.close(sink),
            (State::KeyOrEnd | State::Key, '"') => {
                self.begin(c)?;
                State::KeyText
            }
            (State::KeyText, _) => match self.scanner.push(c, &mut self.text)? {
                Progress::Done => State::Colon,
                _ if self.text.len() > MAX_NAME => return Err(Broken::Cap),
                _ => State::KeyText,
            },
            (State::Colon, ':') => State::BeforeValue(self.role()?),
            (State::BeforeValue(role), _) => {
                self.begin_value(role, c, sink)?;
                State::Value(role)
            }
            (State::AfterValue, ',') => State::Key,
            (State::Between, ',') => State::Open,
            _ => return Err(Broken::Syntax),
        };
        Ok(Flow::More)
    }

    /// A string or a value that is not sent begins.
    fn begin(&mut self, c: char) -> Result<(), Broken> {
        self.scanner = JsonScanner::default();
        self.text.clear();
        self.scanner.push(c, &mut self.text).map(|_| ())
    }

    fn role(&self) -> Result<Role, Broken> {
        let key: String = serde_json::from_str(&self.text).map_err(|_| Broken::Syntax)?;
        let has_arguments = self.arguments.is_some() || self.early.is_some();
        if self.place == Place::Instead && !has_arguments {
            return match (key.as_str(), &self.name) {
                ("name", None) => Ok(Role::Name),
                ("parameters", Some(_)) => Ok(Role::Arguments),
                _ => Err(Broken::Syntax),
            };
        }
        Ok(match key.as_str() {
            "name" if self.name.is_none() => Role::Name,
            "arguments" | "parameters" if has_arguments => Role::Unused,
            "arguments" | "parameters" if self.name.is_some() => Role::Arguments,
            "arguments" | "parameters" => Role::Early,
            // Other JSON among text is given back as soon as it is seen to be that.
            "type" | "id" => Role::Unused,
            _ if self.place == Place::InText && self.arguments.is_none() => {
                return Err(Broken::Syntax);
            }
            _ => Role::Unused,
        })
    }

    fn begin_value(&mut self, role: Role, c: char, sink: &mut Sink) -> Result<(), Broken> {
        match role {
            Role::Name if c != '"' => Err(Broken::Syntax),
            Role::Arguments | Role::Early if self.is_among_text() && c != '{' => {
                Err(Broken::Syntax)
            }
            Role::Name | Role::Unused | Role::Early => self.begin(c),
            Role::Arguments => {
                self.start(sink)?;
                self.arguments.insert(Arguments::default()).push(c, sink).map(|_| ())
            }
        }
    }

    fn value(&mut self, role: Role, c: char, sink: &mut Sink) -> Result<Progress, Broken> {
        let progress = match (role, &mut self.arguments) {
            (Role::Arguments, Some(arguments)) => arguments.push(c, sink)?,
            _ => self.scanner.push(c, &mut self.text)?,
        };
        if progress == Progress::More {
            if role == Role::Unused {
                self.text.clear();
            } else if role == Role::Name && self.text.len() > MAX_NAME {
                return Err(Broken::Cap);
            }
            return Ok(progress);
        }
        self.state = State::AfterValue;
        match role {
            Role::Name => {
                let name: String = serde_json::from_str(&self.text).map_err(|_| Broken::Syntax)?;
                if self.place == Place::Instead && !self.is_tool(&name) {
                    return Err(Broken::Syntax);
                }
                self.name = Some(name);
                if !self.is_among_text() || self.early.is_some() {
                    self.start(sink)?;
                }
            }
            Role::Early => self.early = Some(std::mem::take(&mut self.text)),
            Role::Arguments | Role::Unused => {}
        }
        Ok(progress)
    }

    /// Sends the name, once, and arguments that came before it.
    fn start(&mut self, sink: &mut Sink) -> Result<(), Broken> {
        if sink.is_open() {
            return Ok(());
        }
        let name = self.name.clone().filter(|name| !name.is_empty()).ok_or(Broken::Syntax)?;
        sink.start(name, None)?;
        match &self.early {
            Some(early) if early != "null" => sink.arguments(early),
            _ => Ok(()),
        }
    }

    /// Whether what is read may be no call at all.
    fn is_among_text(&self) -> bool {
        matches!(self.place, Place::InText | Place::Instead)
    }

    fn is_tool(&self, name: &str) -> bool {
        self.tools.iter().any(|tool| tool.name == name)
    }

    /// The object ends.
    fn close(&mut self, sink: &mut Sink) -> Result<Flow, Broken> {
        let is_call = match self.place {
            Place::AfterMarker | Place::Array => true,
            Place::InText => {
                sink.is_open() || self.name.as_ref().is_some_and(|name| self.is_tool(name))
            }
            Place::Instead => sink.is_open(),
        };
        if !is_call {
            return Err(Broken::Syntax);
        }
        self.start(sink)?;
        sink.end(true);
        (self.name, self.early, self.arguments) = (None, None, None);
        if self.place != Place::Array {
            return Ok(Flow::Done);
        }
        self.state = State::Between;
        Ok(Flow::More)
    }
}
