//! Harmony, GPT-OSS's format: messages of a header and a body, each in a channel.

use super::{
    json::{Arguments, Progress, is_space},
    markers::Markers,
    mistral::is_name,
    sink::{Broken, MAX_NAME, Sink},
};

const MESSAGE: &str = "<|message|>";
const CHANNEL: &str = "<|channel|>";
const START: &str = "<|start|>";
/// What a header or a body may end with.
pub(super) const MARKERS: [&str; 6] =
    [CHANNEL, START, MESSAGE, "<|end|>", "<|return|>", "<|call|>"];
/// Stands in headers, before the type of a call's arguments.
pub(super) const CONSTRAIN: &str = "<|constrain|>";

/// What a header begins with after the role, if not with a channel.
const RECIPIENT: &str = "to=";
/// Headers are short; a longer one is text.
const MAX_HEADER: usize = MAX_NAME;

pub(super) struct Harmony {
    split_calls: bool,
    split_reasoning: bool,
    state: State,
    markers: Markers,
    decided: String,
    no_more_calls: bool,
    /// Whether text has a form: all that follows its beginning is text.
    is_form: bool,
}

enum State {
    /// Between messages: white space, or text of no channel.
    Between,
    /// A header, with the markers in it.
    Header(Header),
    Text,
    Reasoning,
    Call(Arguments),
    /// After a call's arguments.
    CallEnd,
}

/// A header that is being read.
#[derive(Default)]
struct Header {
    text: String,
    /// How much of it is the prompt's, if any.
    of_prompt: Option<usize>,
}

impl Header {
    /// What the model wrote of it, if that can be no header.
    fn plain(&self, has_ended: bool) -> Option<&str> {
        let own = &self.text[self.of_prompt.unwrap_or(0)..];
        let begun = own.trim_start();
        let is_header = match self.of_prompt {
            Some(_) if !own.contains(CHANNEL) => {
                !has_ended && (RECIPIENT.starts_with(begun) || begun.starts_with(RECIPIENT))
            }
            _ => true,
        };
        (!is_header || own.len() > MAX_HEADER).then_some(own)
    }
}

impl Harmony {
    pub(super) fn new(
        split_calls: bool,
        split_reasoning: bool,
        prompt_end: &str,
        is_form: bool,
    ) -> Self {
        let mut harmony = Self {
            split_calls,
            split_reasoning,
            state: State::Between,
            markers: Markers::new(MARKERS),
            decided: String::new(),
            no_more_calls: false,
            is_form,
        };
        // The prompt has the header's beginning, or all of it and some of the body.
        let prompt = prompt_end.rsplit_once(START).map_or("", |(_, header)| header);
        harmony.state = match prompt.split_once(MESSAGE) {
            Some((header, _)) => harmony.text_of(header),
            None => {
                State::Header(Header { text: prompt.to_owned(), of_prompt: Some(prompt.len()) })
            }
        };
        harmony
    }

    pub(super) fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning)
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) {
        if self.is_form && matches!(self.state, State::Text) {
            return sink.text(c.encode_utf8(&mut [0; 4]));
        }
        if let State::Call(arguments) = &mut self.state {
            let is_end = arguments.is_empty() && c == '<';
            let progress = if is_end { Ok(Progress::DoneBefore) } else { arguments.push(c, sink) };
            match progress {
                Ok(Progress::More) => return,
                Ok(progress) => {
                    sink.end(true);
                    self.state = State::CallEnd;
                    if progress == Progress::Done {
                        return;
                    }
                }
                Err(broken) => {
                    self.no_more_calls |= broken == Broken::Cap;
                    sink.abandon();
                    self.state = State::Text;
                }
            }
        }
        let mut decided = std::mem::take(&mut self.decided);
        let found = self.markers.push(c, &mut decided).map(|index| self.markers.text(index));
        self.plain(&decided, sink);
        decided.clear();
        let is_text = self.is_form && matches!(self.state, State::Text);
        if is_text {
            // What was held back is no marker, whatever it would have become.
            self.markers.finish(&mut decided);
            decided.push_str(found.unwrap_or_default());
            sink.text(&decided);
            decided.clear();
        }
        self.decided = decided;
        if let Some(marker) = found.filter(|_| !is_text) {
            self.marker(marker, sink);
        }
    }

    pub(super) fn finish(&mut self, sink: &mut Sink) {
        let mut rest = String::new();
        self.markers.finish(&mut rest);
        self.plain(&rest, sink);
        if let State::Header(header) = &self.state {
            sink.text(header.plain(true).unwrap_or_default());
        }
        sink.end(false);
    }

    /// Takes what is no marker.
    fn plain(&mut self, text: &str, sink: &mut Sink) {
        for c in text.chars() {
            match &mut self.state {
                State::Between | State::CallEnd if is_space(c) => {}
                State::Between | State::CallEnd => {
                    self.state = State::Text;
                    sink.text(c.encode_utf8(&mut [0; 4]));
                }
                State::Header(header) => {
                    header.text.push(c);
                    if let Some(text) = header.plain(false) {
                        sink.text(text);
                        self.state = State::Text;
                    }
                }
                State::Reasoning => sink.reasoning(c.encode_utf8(&mut [0; 4])),
                State::Text | State::Call(_) => sink.text(c.encode_utf8(&mut [0; 4])),
            }
        }
    }

    fn marker(&mut self, marker: &str, sink: &mut Sink) {
        let state = std::mem::replace(&mut self.state, State::Between);
        self.state = match (state, marker) {
            (State::Header(header), MESSAGE) => self.body(&header.text, sink),
            (State::Header(mut header), CHANNEL) => {
                header.text.push_str(CHANNEL);
                State::Header(header)
            }
            (_, CHANNEL) => State::Header(Header { text: CHANNEL.to_owned(), of_prompt: None }),
            (_, START) => State::Header(Header::default()),
            // A body without a header.
            (_, MESSAGE) => State::Text,
            _ => State::Between,
        };
    }

    /// What a header says of the body.
    fn body(&mut self, header: &str, sink: &mut Sink) -> State {
        let name = header.split("to=functions.").nth(1);
        let name = name.map(|rest| rest.split(|c| !is_name(c)).next().unwrap_or_default());
        let name = name.filter(|name| !name.is_empty() && self.split_calls && !self.no_more_calls);
        match name.map(|name| sink.start(name.to_owned(), None)) {
            Some(Ok(())) => State::Call(Arguments::default()),
            Some(Err(_)) => {
                self.no_more_calls = true;
                State::Text
            }
            None => self.text_of(header),
        }
    }

    fn text_of(&self, header: &str) -> State {
        let channel = header.split(CHANNEL).nth(1).unwrap_or_default();
        let is_analysis = channel.trim_start().starts_with("analysis");
        if is_analysis && self.split_reasoning { State::Reasoning } else { State::Text }
    }
}
