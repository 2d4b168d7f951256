//! Calls of a name, a marker and JSON: Kimi K2, DeepSeek V3 (and R1), DeepSeek V3.1.

use super::{
    json::{Arguments, Progress, is_space},
    sink::{Broken, Flow, MAX_NAME, Sink},
};

/// How the parts are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `functions.NAME:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`
    KimiK2,
    /// `function<｜tool▁sep｜>NAME`, a line break, and the JSON in a fence.
    DeepSeekV3,
    /// `NAME<｜tool▁sep｜>{…}`
    DeepSeekV31,
}

pub(super) struct Named {
    layout: Layout,
    state: State,
    text: String,
    arguments: Arguments,
}

#[derive(Clone, Copy)]
enum State {
    Type,
    Name,
    Fence,
    Arguments,
}

const SEPARATOR: &str = "<｜tool▁sep｜>";
const FENCE: &str = "```json";

impl Layout {
    fn name_end(self) -> &'static str {
        match self {
            Self::KimiK2 => "<|tool_call_argument_begin|>",
            Self::DeepSeekV3 => "\n",
            Self::DeepSeekV31 => SEPARATOR,
        }
    }

    fn call_end(self) -> &'static str {
        match self {
            Self::KimiK2 => "<|tool_call_end|>",
            Self::DeepSeekV3 | Self::DeepSeekV31 => "<｜tool▁call▁end｜>",
        }
    }
}

impl Named {
    pub(super) fn new(layout: Layout) -> Self {
        let state = if layout == Layout::DeepSeekV3 { State::Type } else { State::Name };
        Self { layout, state, text: String::new(), arguments: Arguments::default() }
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        match self.state {
            State::Type => {
                self.text.push(c);
                if self.text.ends_with(SEPARATOR) {
                    self.text.clear();
                    self.state = State::Name;
                }
            }
            State::Name => {
                self.text.push(c);
                if let Some(name) = self.text.strip_suffix(self.layout.name_end()) {
                    self.start(name, sink)?;
                    self.text.clear();
                    let fenced = self.layout == Layout::DeepSeekV3;
                    self.state = if fenced { State::Fence } else { State::Arguments };
                } else if let Some(name) = self.text.strip_suffix(self.layout.call_end()) {
                    self.start(name, sink)?;
                    sink.end(true);
                    return Ok(Flow::Done);
                }
            }
            State::Fence if c == '{' => {
                self.state = State::Arguments;
                self.arguments.push(c, sink)?;
            }
            State::Fence => {
                if !is_space(c) {
                    self.text.push(c);
                }
                if !FENCE.starts_with(&self.text) {
                    return self.end_without(&FENCE[..self.text.len() - c.len_utf8()], c, sink);
                }
            }
            State::Arguments => {
                if self.arguments.is_empty() && (c == '<' || c == '`') {
                    return self.end_without("", c, sink);
                }
                let progress = self.arguments.push(c, sink)?;
                if progress != Progress::More {
                    sink.end(true);
                }
                return Ok(match progress {
                    Progress::More => Flow::More,
                    Progress::Done => Flow::Done,
                    Progress::DoneBefore => Flow::DoneBefore,
                });
            }
        }
        if self.text.len() > MAX_NAME { Err(Broken::Cap) } else { Ok(Flow::More) }
    }

    /// What comes instead of arguments may only be the end of the call, or of its fence.
    fn end_without(&self, before: &str, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        let is_end = c == '<' && before.is_empty() || before == FENCE && (c == '`' || c == '<');
        if !is_end {
            return Err(Broken::Syntax);
        }
        sink.end(true);
        Ok(Flow::DoneBefore)
    }

    fn start(&self, text: &str, sink: &mut Sink) -> Result<(), Broken> {
        let text = text.trim();
        let (name, id) = match self.layout {
            Layout::KimiK2 => (kimi_name(text), Some(text.to_owned())),
            Layout::DeepSeekV3 | Layout::DeepSeekV31 => (text, None),
        };
        if name.is_empty() {
            return Err(Broken::Syntax);
        }
        sink.start(name.to_owned(), id)
    }
}

/// `NAME` of `functions.NAME:0`.
fn kimi_name(id: &str) -> &str {
    let name = id.strip_prefix("functions.").unwrap_or(id);
    match name.rsplit_once(':') {
        Some((name, index)) if index.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => name,
    }
}
