//! What an answer of a form may go on with: the form's tokens, and before them a thought.
//!
//! A thought is no part of the form, whether the prompt has opened it or the model opens it
//! itself: it is free, and the form begins behind it.

use std::sync::Arc;

use sconce_engine::TokenConstraint;
use sconce_grammar::{Constraint, Grammar};
use sconce_text::Detokenizer;
use sconce_types::TokenId;

use super::{
    answers::{AnswerReader, AnswerReading},
    choice::Start,
};

/// An answer that has a form. The engine asks it for masks.
pub(crate) struct Formed {
    /// For the form behind a thought, where its beginning was taken for the form's.
    grammar: Grammar,
    constraint: Constraint,
    before: Before,
}

/// What may come before the form.
pub(crate) enum Before {
    Nothing,
    /// The marker that opens a thought.
    Opening(Box<Thought>, Marker),
    Thought(Box<Thought>),
    /// The line break behind one.
    LineBreak(Marker),
}

/// A model's thought, as long as it has not ended.
pub(crate) struct Thought {
    reader: AnswerReader,
    detokenizer: Detokenizer,
    text: String,
    /// Not before the answer.
    end_tokens: Arc<[TokenId]>,
    /// What may stand between it and the form.
    line_break: Arc<[TokenId]>,
}

/// Tokens of which all may come before the form, or none.
pub(crate) struct Marker {
    tokens: Arc<[TokenId]>,
    written: usize,
    /// Whether what is written of it may be the form's beginning instead.
    may_be_form: bool,
    /// Whether the form goes on with its next token too, by the last mask.
    form_allows_next: bool,
    /// Whether the form's constraint has taken a part of it.
    is_in_form: bool,
}

/// What a token was, where a marker may be written.
enum Taken {
    /// A token of the marker, which it ends or not.
    Marker {
        is_whole: bool,
    },
    Form,
}

impl Before {
    /// What the answers to a prompt may begin with; they end with none of `end_tokens` before
    /// their form is whole.
    pub(crate) fn of(start: &Start, end_tokens: &Arc<[TokenId]>) -> Self {
        let Some(reading) = &start.reading else { return Self::Nothing };
        let AnswerReading { opening, line_break, .. } = reading;
        let thought = Thought {
            reader: AnswerReader::new(reading),
            detokenizer: start.detokenizer.clone(),
            text: String::new(),
            end_tokens: Arc::clone(end_tokens),
            line_break: Arc::clone(line_break),
        };
        if thought.reader.is_reasoning() {
            return Self::Thought(Box::new(thought));
        }
        match Marker::new(opening) {
            Some(opening) => Self::Opening(Box::new(thought), opening),
            None => Self::Nothing,
        }
    }
}

impl Thought {
    /// Takes a token; says whether it ends the thought.
    fn ends_with(&mut self, token: TokenId) -> bool {
        self.text.clear();
        self.detokenizer.push(token, &mut self.text);
        self.reader.push(&self.text, false, &mut Vec::new());
        !self.reader.is_reasoning()
    }

    fn fill_mask(&self, words: &mut [u32]) {
        words.fill(u32::MAX);
        for &token in self.end_tokens.iter() {
            if let Some(word) = words.get_mut(token as usize / 32) {
                *word &= !(1 << (token % 32));
            }
        }
    }
}

impl Marker {
    /// `None` for one of no tokens.
    fn new(tokens: &Arc<[TokenId]>) -> Option<Self> {
        let tokens = (!tokens.is_empty()).then(|| Arc::clone(tokens))?;
        Some(Self {
            tokens,
            written: 0,
            may_be_form: true,
            form_allows_next: false,
            is_in_form: false,
        })
    }

    /// As [`TokenConstraint::fill_mask`].
    fn fill_mask(&mut self, constraint: &mut Constraint, words: &mut [u32]) -> bool {
        if self.may_be_form {
            if !constraint.fill_mask(words) {
                return false;
            }
            if constraint.failure().is_some() {
                return true;
            }
        }
        let next = self.tokens[self.written];
        if let Some(word) = words.get_mut(next as usize / 32) {
            let bit = 1 << (next % 32);
            self.form_allows_next = *word & bit != 0;
            *word |= bit;
        }
        true
    }

    fn take(&mut self, token: TokenId, constraint: &mut Constraint) -> Taken {
        if token != self.tokens[self.written] {
            constraint.accept(token);
            return Taken::Form;
        }
        self.may_be_form &= self.form_allows_next;
        if self.may_be_form {
            constraint.accept(token);
            self.is_in_form = true;
        }
        self.written += 1;
        Taken::Marker { is_whole: self.written == self.tokens.len() }
    }
}

impl Formed {
    pub(crate) fn new(grammar: Grammar, before: Before) -> Self {
        Self { constraint: grammar.constraint(), grammar, before }
    }
}

impl TokenConstraint for Formed {
    fn fill_mask(&mut self, words: &mut [u32]) -> bool {
        match &mut self.before {
            Before::Nothing => self.constraint.fill_mask(words),
            Before::Opening(_, marker) | Before::LineBreak(marker) => {
                marker.fill_mask(&mut self.constraint, words)
            }
            Before::Thought(thought) => {
                thought.fill_mask(words);
                true
            }
        }
    }

    fn accept(&mut self, token: TokenId) {
        let Self { grammar, constraint, before } = self;
        *before = match std::mem::replace(before, Before::Nothing) {
            Before::Nothing => {
                constraint.accept(token);
                Before::Nothing
            }
            Before::Opening(mut thought, mut marker) => {
                thought.ends_with(token);
                match marker.take(token, constraint) {
                    Taken::Form => Before::Nothing,
                    Taken::Marker { is_whole: false } => Before::Opening(thought, marker),
                    // A form that begins so has the thought in it.
                    Taken::Marker { is_whole: true } if marker.may_be_form => Before::Nothing,
                    Taken::Marker { is_whole: true } => {
                        if marker.is_in_form {
                            *constraint = grammar.constraint();
                        }
                        Before::Thought(thought)
                    }
                }
            }
            Before::Thought(mut thought) => {
                if thought.ends_with(token) {
                    Marker::new(&thought.line_break).map_or(Before::Nothing, Before::LineBreak)
                } else {
                    Before::Thought(thought)
                }
            }
            Before::LineBreak(mut marker) => match marker.take(token, constraint) {
                Taken::Marker { is_whole: false } => Before::LineBreak(marker),
                Taken::Marker { is_whole: true } if marker.is_in_form && !marker.may_be_form => {
                    *constraint = grammar.constraint();
                    Before::Nothing
                }
                Taken::Marker { .. } | Taken::Form => Before::Nothing,
            },
        };
    }

    fn failure(&self) -> Option<String> {
        self.constraint.failure().map(|error| error.to_string())
    }
}
