//! Calls written as elements: Qwen3-Coder's `<function=f><parameter=k>`, GLM's
//! `<arg_key>k</arg_key><arg_value>v</arg_value>`.

use std::sync::Arc;

use super::{
    AnswerTool,
    json::{escape, is_space, quote},
    markers::Markers,
    python::send_rest,
    schema::Kinds,
    sink::{Broken, Flow, MAX_ARGUMENTS, MAX_NAME, Sink},
};

/// Whose elements they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Qwen,
    Glm,
}

pub(super) struct XmlCall {
    dialect: Dialect,
    tools: Arc<[AnswerTool]>,
    state: State,
    /// The tag, or GLM's name or key, that is being read.
    text: String,
    name: String,
    key: Option<String>,
    has_parameters: bool,
    value: Value,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// GLM's name.
    Name,
    /// Before a tag.
    Between,
    Tag,
    /// GLM's key.
    Key,
    Value,
}

/// A parameter's value.
struct Value {
    end: Markers,
    kinds: Kinds,
    /// The text of a value that is not a string, or not surely.
    text: String,
    /// Qwen writes a line break after the opening tag and before the closing one.
    line_breaks: bool,
    is_begun: bool,
    line_break: bool,
}

const KEY_END: &str = "</arg_key>";

impl Dialect {
    /// The tags, those that have a name as far as that.
    fn tags(self) -> &'static [&'static str] {
        match self {
            Self::Qwen => &["<function=", "<parameter=", "</function>", "</tool_call>"],
            Self::Glm => &["<arg_key>", "<arg_value>", "</tool_call>"],
        }
    }
}

impl XmlCall {
    /// A call that begins; `text` is what was read of its first tag.
    pub(super) fn new(dialect: Dialect, text: &str, tools: Arc<[AnswerTool]>) -> Self {
        let state = match dialect {
            Dialect::Glm => State::Name,
            Dialect::Qwen if text.is_empty() => State::Between,
            Dialect::Qwen => State::Tag,
        };
        let end = if dialect == Dialect::Qwen { "</parameter>" } else { "</arg_value>" };
        Self {
            dialect,
            tools,
            state,
            text: text.to_owned(),
            name: String::new(),
            key: None,
            has_parameters: false,
            value: Value {
                end: Markers::new([end]),
                kinds: Kinds::default(),
                text: String::new(),
                line_breaks: dialect == Dialect::Qwen,
                is_begun: false,
                line_break: false,
            },
        }
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        match self.state {
            State::Name => return self.glm_name(c, sink),
            State::Between if is_space(c) => {}
            State::Between => {
                self.text.clear();
                self.state = State::Tag;
                return self.tag(c, sink);
            }
            State::Tag => return self.tag(c, sink),
            State::Key => {
                self.text.push(c);
                if let Some(key) = self.text.strip_suffix(KEY_END) {
                    self.key = Some(key.trim().to_owned());
                    self.state = State::Between;
                } else if self.text.len() > MAX_NAME {
                    return Err(Broken::Cap);
                }
            }
            State::Value => {
                if self.value.push(c, sink)? {
                    self.state = State::Between;
                }
            }
        }
        Ok(Flow::More)
    }

    fn glm_name(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        match c {
            _ if is_space(c) && self.name.is_empty() => {}
            '<' | '\n' if !self.name.is_empty() => {
                sink.start(self.name.trim_end().to_owned(), None)?;
                self.name = self.name.trim_end().to_owned();
                self.state = State::Between;
                if c == '<' {
                    let flow = self.push(c, sink);
                    sink.held.push(c);
                    return flow;
                }
            }
            // A name is not a sentence.
            _ if c.is_control() || matches!(c, '<' | '>' | '{' | '}' | '"' | ' ') => {
                return Err(Broken::Syntax);
            }
            _ if self.name.len() > MAX_NAME => return Err(Broken::Cap),
            _ => self.name.push(c),
        }
        Ok(Flow::More)
    }

    fn tag(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        self.text.push(c);
        let tag = self.text.as_str();
        let known = self.dialect.tags().iter();
        if !known
            .clone()
            .any(|known| known.starts_with(tag) || known.ends_with('=') && tag.starts_with(known))
        {
            return Err(Broken::Syntax);
        }
        if tag.len() > MAX_NAME {
            return Err(Broken::Cap);
        }
        if c != '>' {
            return Ok(Flow::More);
        }
        self.state = State::Between;
        let named = |tag: &str, kind| {
            tag.strip_prefix(kind)?.strip_suffix('>').map(|name| name.trim().to_owned())
        };
        if let Some(name) = named(tag, "<function=") {
            if sink.is_open() || name.is_empty() {
                return Err(Broken::Syntax);
            }
            self.name = name.clone();
            sink.start(name, None)?;
        } else if !sink.is_open() {
            return Err(Broken::Syntax);
        } else if let Some(key) = named(tag, "<parameter=") {
            self.begin_value(&key, sink)?;
        } else if tag == "<arg_key>" {
            self.text.clear();
            self.state = State::Key;
        } else if tag == "<arg_value>" {
            let key = self.key.take().ok_or(Broken::Syntax)?;
            self.begin_value(&key, sink)?;
        } else {
            if self.has_parameters {
                sink.arguments("}")?;
            }
            sink.end(true);
            return Ok(Flow::Done);
        }
        Ok(Flow::More)
    }

    fn begin_value(&mut self, key: &str, sink: &mut Sink) -> Result<(), Broken> {
        let before = if self.has_parameters { ',' } else { '{' };
        let kinds = Kinds::of(&self.tools, &self.name, key);
        let quotes = if kinds.is_string() { "\"" } else { "" };
        sink.arguments(&format!("{before}{}:{quotes}", quote(key)))?;
        self.has_parameters = true;
        self.value.kinds = kinds;
        self.value.text.clear();
        (self.value.is_begun, self.value.line_break) = (false, false);
        self.state = State::Value;
        Ok(())
    }

    /// Sends what is held of a value: the text has ended.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        if self.state == State::Value {
            let mut rest = String::new();
            self.value.end.finish(&mut rest);
            // Sending may only fail beyond the limit, where there is nothing more to send.
            let _ = self.value.text(&rest, sink);
            send_rest(&self.value.text, sink);
        }
    }
}

impl Value {
    /// Takes a character; says whether it was the last of the closing tag.
    fn push(&mut self, c: char, sink: &mut Sink) -> Result<bool, Broken> {
        let mut decided = String::new();
        let ended = self.end.push(c, &mut decided).is_some();
        self.text(&decided, sink)?;
        if !ended {
            return Ok(false);
        }
        if self.kinds.is_string() {
            sink.arguments("\"")?;
        } else {
            sink.arguments(&self.kinds.json(&self.text))?;
            self.text.clear();
        }
        Ok(true)
    }

    fn text(&mut self, text: &str, sink: &mut Sink) -> Result<(), Broken> {
        for c in text.chars() {
            let is_first = !std::mem::replace(&mut self.is_begun, true);
            if self.line_breaks && c == '\n' && is_first {
                continue;
            }
            if std::mem::take(&mut self.line_break) {
                self.character('\n', sink)?;
            }
            if self.line_breaks && c == '\n' {
                self.line_break = true;
            } else {
                self.character(c, sink)?;
            }
        }
        Ok(())
    }

    fn character(&mut self, c: char, sink: &mut Sink) -> Result<(), Broken> {
        if self.kinds.is_string() {
            let mut escaped = String::new();
            escape(c, &mut escaped);
            return sink.arguments(&escaped);
        }
        self.text.push(c);
        if self.text.len() > MAX_ARGUMENTS { Err(Broken::Cap) } else { Ok(()) }
    }
}
