//! What may be wrong with a grammar.

use std::time::Duration;

/// Why there is no grammar for a source, or why a constraint cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A place in the source is not what it may be.
    #[error("at {}: {what}", if pointer.is_empty() { "the top" } else { pointer })]
    At {
        /// The JSON pointer of the place in the source; empty at the top.
        pointer: String,
        /// What is wrong there, and what is accepted.
        what: String,
    },
    /// The compiler refused the source, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The source is too long.
    #[error("it has {bytes} bytes; at most {limit} are accepted")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The most that is accepted.
        limit: usize,
    },
    /// It took too long to compile.
    #[error("it takes more than {} ms to compile; simplify it", limit.as_millis())]
    TooSlow {
        /// The time that it may take.
        limit: Duration,
    },
    /// Its masks became too costly while an answer was generated.
    #[error("the grammar became too complex for the answer so far: {0}")]
    TooComplex(String),
    /// The model's tokenizer names no end token, so no answer could end.
    #[error("the model's tokenizer names no end token, which a grammar needs")]
    NoEndToken,
    /// Compilations that took too long have not ended yet.
    #[error("too many grammars are being compiled; try again later")]
    Busy,
    /// A fault of the server.
    #[error("the grammar's compiler failed")]
    Bug,
}

impl GrammarError {
    pub(crate) fn at(pointer: impl Into<String>, what: impl Into<String>) -> Self {
        Self::At { pointer: pointer.into(), what: what.into() }
    }

    /// The same below another place.
    pub(crate) fn below(self, parent: &str) -> Self {
        match self {
            Self::At { pointer, what } => Self::At { pointer: format!("{parent}{pointer}"), what },
            Self::Refused(what) => Self::At { pointer: parent.to_owned(), what },
            other => other,
        }
    }

    /// An error of the compiler, whose messages may have more lines than one.
    pub(crate) fn of_compiler(error: &dyn std::fmt::Display) -> String {
        /// Characters of a message; some quote the grammar.
        const MAX_CHARS: usize = 400;
        let text = error.to_string();
        let text = text.split("\n<non-verbose/>").next().unwrap_or_default().trim();
        let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((at, _)) = line.char_indices().nth(MAX_CHARS) {
            line.truncate(at);
            line.push_str(" ...");
        }
        line
    }
}
