//! Gemma 4's calls, after `<|tool_call>`: `call:NAME{k:<|"|>s<|"|>}`.

use super::{
    json::Progress,
    literal::{Dialect, Literal},
    mistral::is_name,
    python::send_rest,
    sink::{Broken, Flow, MAX_NAME, Sink},
};

pub(super) enum GemmaCall {
    Name(String),
    Arguments(Literal, String),
}

const CALL: &str = "call:";

impl GemmaCall {
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        match self {
            Self::Name(text) => {
                let name = text.strip_prefix(CALL);
                if c == '{' {
                    let name = name.filter(|name| !name.is_empty()).ok_or(Broken::Syntax)?;
                    sink.start(name.to_owned(), None)?;
                    *self = Self::Arguments(Literal::arguments(Dialect::Gemma), String::new());
                    return Ok(Flow::More);
                }
                let expected =
                    if name.is_some() { is_name(c) } else { CALL[text.len()..].starts_with(c) };
                text.push(c);
                match expected {
                    false => Err(Broken::Syntax),
                    true if text.len() > MAX_NAME => Err(Broken::Cap),
                    true => Ok(Flow::More),
                }
            }
            Self::Arguments(literal, text) => {
                let progress = literal.push(c, text)?;
                sink.arguments(text)?;
                text.clear();
                if progress == Progress::More {
                    return Ok(Flow::More);
                }
                sink.end(true);
                Ok(Flow::Done)
            }
        }
    }

    /// Sends what is held of the arguments: the text has ended.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        if let Self::Arguments(literal, text) = self {
            literal.finish(text);
            send_rest(text, sink);
        }
    }
}
