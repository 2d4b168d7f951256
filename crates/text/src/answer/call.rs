//! The parser of the call that is being read, whatever its format.

use std::sync::Arc;

use super::{
    AnswerTool,
    gemma::GemmaCall,
    json_call,
    json_call::JsonCalls,
    mistral::Mistral,
    named,
    named::Named,
    python,
    python::PythonCalls,
    sink::{Broken, Flow, Sink},
    xml,
    xml::XmlCall,
};

/// What a marker begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Json(json_call::Place),
    Mistral,
    Named(named::Layout),
    Python(python::Place),
    Gemma,
    /// An element, after what its marker has of the first tag.
    Xml(xml::Dialect, &'static str),
}

impl Start {
    /// The same in an answer whose text has a form, if it has.
    pub(super) fn within(self, is_form: bool) -> Self {
        match self {
            Self::Json(json_call::Place::InText) if is_form => {
                Self::Json(json_call::Place::Instead)
            }
            other => other,
        }
    }
}

pub(super) enum Call {
    Json(JsonCalls),
    Mistral(Mistral),
    Named(Named),
    Python(PythonCalls),
    Gemma(GemmaCall),
    Xml(XmlCall),
}

impl Call {
    pub(super) fn new(start: Start, tools: &Arc<[AnswerTool]>) -> Self {
        let tools = Arc::clone(tools);
        match start {
            Start::Json(place) => Self::Json(JsonCalls::new(place, tools)),
            Start::Mistral => Self::Mistral(Mistral::Begin(tools)),
            Start::Named(layout) => Self::Named(Named::new(layout)),
            Start::Python(place) => Self::Python(PythonCalls::new(place)),
            Start::Gemma => Self::Gemma(GemmaCall::Name(String::new())),
            Start::Xml(dialect, text) => Self::Xml(XmlCall::new(dialect, text, tools)),
        }
    }

    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        match self {
            Self::Json(call) => call.push(c, sink),
            Self::Mistral(call) => call.push(c, sink),
            Self::Named(call) => call.push(c, sink),
            Self::Python(call) => call.push(c, sink),
            Self::Gemma(call) => call.push(c, sink),
            Self::Xml(call) => call.push(c, sink),
        }
    }

    /// Sends what is decided now that the text has ended.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        match self {
            Self::Python(call) => call.finish(sink),
            Self::Gemma(call) => call.finish(sink),
            Self::Xml(call) => call.finish(sink),
            // JSON is sent as it comes.
            Self::Json(_) | Self::Mistral(_) | Self::Named(_) => {}
        }
    }
}
