//! Mistral's calls after `[TOOL_CALLS]`: an array of objects (tokenizers up to v7), or
//! `NAME[ARGS]{…}` (from v11), with `[CALL_ID]…` before `[ARGS]` in between.

use std::sync::Arc;

use super::{
    AnswerTool,
    json::{Arguments, Progress, is_space},
    json_call::{JsonCalls, Place},
    sink::{Broken, Flow, MAX_NAME, Sink},
};

pub(super) enum Mistral {
    Begin(Arc<[AnswerTool]>),
    Objects(JsonCalls),
    Name(String),
    Arguments(Arguments),
}

const CALL_ID: &str = "[CALL_ID]";
const ARGS: &str = "[ARGS]";

impl Mistral {
    pub(super) fn push(&mut self, c: char, sink: &mut Sink) -> Result<Flow, Broken> {
        match self {
            Self::Begin(tools) => match c {
                _ if is_space(c) => {}
                '[' => *self = Self::Objects(JsonCalls::new(Place::Array, Arc::clone(tools))),
                '{' => {
                    let mut object = JsonCalls::new(Place::AfterMarker, Arc::clone(tools));
                    object.push(c, sink)?;
                    *self = Self::Objects(object);
                }
                _ if is_name(c) => *self = Self::Name(c.into()),
                _ => return Err(Broken::Syntax),
            },
            Self::Objects(calls) => return calls.push(c, sink),
            Self::Name(text) => {
                text.push(c);
                let (name, rest) = text.split_at(text.find(['[', '{']).unwrap_or(text.len()));
                let id = rest.strip_prefix(CALL_ID).and_then(|rest| rest.strip_suffix(ARGS));
                if rest == "{" || rest == ARGS || id.is_some() {
                    sink.start(name.to_owned(), id.map(str::to_owned))?;
                    let mut arguments = Arguments::default();
                    if c == '{' {
                        arguments.push(c, sink)?;
                    }
                    *self = Self::Arguments(arguments);
                } else if !name.chars().all(is_name)
                    || !(ARGS.starts_with(rest)
                        || CALL_ID.starts_with(rest)
                        || rest.starts_with(CALL_ID))
                {
                    return Err(Broken::Syntax);
                } else if text.len() > MAX_NAME {
                    return Err(Broken::Cap);
                }
            }
            Self::Arguments(arguments) => {
                let progress = arguments.push(c, sink)?;
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
        Ok(Flow::More)
    }
}

/// Names of functions are of letters, digits, `_`, `-`, `.`.
pub(super) fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.')
}
