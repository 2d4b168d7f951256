//! Answers with calls and reasoning between markers: all formats but Harmony.

use std::sync::Arc;

use super::{
    AnswerTool, ReasoningFormat, ToolFormat,
    call::{Call, Start},
    json::is_space,
    markers::Markers,
    sink::{Broken, Flow, MAX_HELD, Sink},
};

pub(super) struct Tagged {
    tools: Arc<[AnswerTool]>,
    mode: Mode,
    in_text: Scanner,
    in_reasoning: Scanner,
    /// What the scanner let pass.
    decided: String,
    gap: Gap,
    /// White space that waits for what follows.
    space: String,
    /// Whether there was anything of this reasoning.
    has_thought: bool,
    /// Line breaks of the reasoning, which are left out at its end.
    line_breaks: usize,
    /// Whether a limit was passed: what follows is text.
    no_more_calls: bool,
    /// Whether text has a form: it then begins with the answer, or after a thought, and is all
    /// that follows.
    is_form: bool,
}

enum Mode {
    Text,
    Reasoning,
    Call(Box<Call>),
    /// Text with no marker in it.
    Form,
}

/// A set of markers and what each means.
struct Scanner {
    markers: Markers,
    meanings: Vec<Meaning>,
}

#[derive(Clone, Copy)]
enum Meaning {
    OpenReasoning,
    CloseReasoning,
    Call(Start),
    Frame,
    End,
}

/// What white space here belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// The text.
    None,
    /// To the text, should one follow: before the answer or after a call.
    Start,
    AfterCall,
    /// Nothing: it follows reasoning.
    AfterReasoning,
}

/// White space that is kept back at most.
const MAX_SPACE: usize = 256;

impl Scanner {
    fn new(meanings: Vec<(&'static str, Meaning)>) -> Self {
        let markers = Markers::new(meanings.iter().map(|(marker, _)| *marker));
        Self { markers, meanings: meanings.into_iter().map(|(_, meaning)| meaning).collect() }
    }
}

impl Tagged {
    pub(super) fn new(
        tools_format: Option<ToolFormat>,
        reasoning: Option<ReasoningFormat>,
        tools: Arc<[AnswerTool]>,
        prompt_end: &str,
        is_form: bool,
    ) -> Self {
        let tags = reasoning.and_then(ReasoningFormat::tags);
        let mut in_text = Vec::new();
        in_text.extend(tags.map(|(open, _)| (open, Meaning::OpenReasoning)));
        let mut in_reasoning = Vec::new();
        in_reasoning.extend(tags.map(|(open, _)| (open, Meaning::OpenReasoning)));
        in_reasoning.extend(tags.map(|(_, close)| (close, Meaning::CloseReasoning)));
        if let Some(format) = tools_format {
            let starts = format.starts().iter();
            let calls =
                starts.map(|&(marker, start)| (marker, Meaning::Call(start.within(is_form))));
            let mut calls: Vec<_> = calls.collect();
            calls.extend(format.frames().iter().map(|&marker| (marker, Meaning::Frame)));
            if format.ends_reasoning() {
                in_reasoning.extend(calls.iter().copied());
            }
            in_text.extend(calls);
            in_text.extend(format.ends().iter().map(|&marker| (marker, Meaning::End)));
        }
        let inside = reasoning.is_some_and(|reasoning| reasoning.begins_inside(prompt_end));
        Self {
            tools,
            mode: if inside { Mode::Reasoning } else { Mode::Text },
            in_text: Scanner::new(in_text),
            in_reasoning: Scanner::new(in_reasoning),
            decided: String::new(),
            gap: Gap::Start,
            space: String::new(),
            has_thought: false,
            line_breaks: 0,
            no_more_calls: false,
            is_form,
        }
    }

    pub(super) fn is_reasoning(&self) -> bool {
        matches!(self.mode, Mode::Reasoning)
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) {
        let call = match &mut self.mode {
            Mode::Call(call) => call,
            Mode::Form => return sink.text(c.encode_utf8(&mut [0; 4])),
            Mode::Text | Mode::Reasoning => return self.scan(c, sink),
        };
        sink.moved = false;
        match call.push(c, sink) {
            Ok(Flow::More) => {
                if !sink.moved {
                    sink.held.push(c);
                }
                if sink.held.len() > MAX_HELD {
                    self.abandon(Broken::Cap, sink);
                }
            }
            Ok(Flow::Done) => self.after_call(sink),
            Ok(Flow::DoneBefore) => {
                self.after_call(sink);
                self.scan(c, sink);
            }
            Err(broken) => {
                self.abandon(broken, sink);
                self.push(c, sink);
            }
        }
    }

    pub(super) fn finish(&mut self, sink: &mut Sink) {
        self.decided.clear();
        match &mut self.mode {
            Mode::Text => {
                self.in_text.markers.finish(&mut self.decided);
                self.text(sink);
            }
            Mode::Reasoning => {
                self.in_reasoning.markers.finish(&mut self.decided);
                self.reasoning(sink);
                sink.reasoning(&"\n".repeat(std::mem::take(&mut self.line_breaks)));
            }
            Mode::Form => {}
            Mode::Call(call) => {
                call.finish(sink);
                if sink.is_open() {
                    sink.end(false);
                } else {
                    sink.abandon();
                }
            }
        }
        if self.gap == Gap::Start {
            sink.text(&std::mem::take(&mut self.space));
        }
    }

    /// Takes a character of text or reasoning.
    fn scan(&mut self, c: char, sink: &mut Sink) {
        self.decided.clear();
        let in_reasoning = matches!(self.mode, Mode::Reasoning);
        let scanner = if in_reasoning { &mut self.in_reasoning } else { &mut self.in_text };
        let found = scanner.markers.push(c, &mut self.decided);
        let found = found.map(|index| (scanner.markers.text(index), scanner.meanings[index]));
        if in_reasoning {
            self.reasoning(sink)
        } else {
            self.text(sink)
        }
        let Some((marker, meaning)) = found else { return };
        let is_plain = match meaning {
            _ if matches!(self.mode, Mode::Form) => true,
            Meaning::OpenReasoning => in_reasoning && self.has_thought,
            Meaning::CloseReasoning => false,
            Meaning::Call(_) | Meaning::Frame => self.no_more_calls,
            Meaning::End => self.gap != Gap::AfterCall,
        };
        if is_plain {
            self.decided.replace_range(.., marker);
            return if in_reasoning { self.reasoning(sink) } else { self.text(sink) };
        }
        match meaning {
            Meaning::OpenReasoning => {
                self.space.clear();
                (self.has_thought, self.line_breaks) = (false, 0);
                self.mode = Mode::Reasoning;
            }
            Meaning::CloseReasoning => self.begin_text(Gap::AfterReasoning),
            Meaning::Frame => self.begin_text(Gap::AfterCall),
            Meaning::End => self.space.clear(),
            Meaning::Call(start) => {
                sink.held.push_str(&std::mem::take(&mut self.space));
                sink.held.push_str(marker);
                self.begin_text(Gap::None);
                self.mode = Mode::Call(Box::new(Call::new(start, &self.tools)));
            }
        }
    }

    fn begin_text(&mut self, gap: Gap) {
        self.space.clear();
        self.line_breaks = 0;
        self.gap = gap;
        self.mode = Mode::Text;
    }

    fn after_call(&mut self, sink: &mut Sink) {
        sink.held.clear();
        self.begin_text(Gap::AfterCall);
    }

    /// What was read is no call, or none that goes on.
    fn abandon(&mut self, broken: Broken, sink: &mut Sink) {
        sink.abandon();
        self.begin_text(Gap::None);
        if self.is_form {
            self.mode = Mode::Form;
        }
        self.no_more_calls |= broken == Broken::Cap;
    }

    /// Gives out the text that was decided.
    fn text(&mut self, sink: &mut Sink) {
        for c in self.decided.chars() {
            if self.gap == Gap::None {
                sink.text(c.encode_utf8(&mut [0; 4]));
            } else if !is_space(c) || self.space.len() >= MAX_SPACE {
                self.gap = Gap::None;
                sink.text(&std::mem::take(&mut self.space));
                sink.text(c.encode_utf8(&mut [0; 4]));
            } else if self.gap != Gap::AfterReasoning {
                self.space.push(c);
            }
        }
        if self.is_form && self.gap == Gap::None && matches!(self.mode, Mode::Text) {
            // What was held back is no marker, whatever it would have become.
            self.decided.clear();
            self.in_text.markers.finish(&mut self.decided);
            sink.text(&self.decided);
            self.mode = Mode::Form;
        }
    }

    /// Gives out the reasoning that was decided.
    fn reasoning(&mut self, sink: &mut Sink) {
        for c in self.decided.chars() {
            if c == '\n' {
                self.line_breaks += usize::from(self.has_thought);
                continue;
            }
            self.has_thought = true;
            (0..std::mem::take(&mut self.line_breaks)).for_each(|_| sink.reasoning("\n"));
            sink.reasoning(c.encode_utf8(&mut [0; 4]));
        }
    }
}
