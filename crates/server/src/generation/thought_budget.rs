//! How long a model may think: its thought is closed for it once it has had its tokens.

use std::sync::Arc;

use sconce_engine::TokenConstraint;
use sconce_text::Detokenizer;
use sconce_types::TokenId;

use super::{answers::AnswerReader, choice::Start, settings::Settings};

/// Tokens that a thought may still have, and then the ones that close it.
#[derive(Clone, Debug)]
pub(crate) struct ThoughtBudget {
    left: u32,
    closing: Arc<[TokenId]>,
    /// How many of the closing tokens were written.
    written: usize,
}

impl ThoughtBudget {
    pub(crate) fn new(tokens: u32, closing: Arc<[TokenId]>) -> Self {
        Self { left: tokens, closing, written: 0 }
    }

    /// The one token that may come next, if the thought is over its budget.
    pub(crate) fn forced(&self) -> Option<TokenId> {
        if self.left > 0 { None } else { self.closing.get(self.written).copied() }
    }

    /// Counts a token of the thought.
    pub(crate) fn note(&mut self) {
        if self.left > 0 {
            self.left -= 1;
        } else {
            self.written += 1;
        }
    }
}

/// Leaves only this token.
fn allow_only(token: TokenId, words: &mut [u32]) {
    words.fill(0);
    if let Some(word) = words.get_mut(token as usize / 32) {
        *word = 1 << (token % 32);
    }
}

/// Bounds an answer's thoughts, beside what else bounds it.
pub(crate) struct BoundedThoughts {
    budget: ThoughtBudget,
    reader: AnswerReader,
    detokenizer: Detokenizer,
    text: String,
    inner: Option<Box<dyn TokenConstraint>>,
}

impl BoundedThoughts {
    /// Those of a choice, where its request bounds them.
    pub(crate) fn of(settings: &Settings, start: &Start) -> Option<Self> {
        let (budget, reading) = (settings.thought_budget.clone()?, start.reading.as_ref()?);
        let (reader, detokenizer) = (AnswerReader::new(reading), start.detokenizer.clone());
        Some(Self { budget, reader, detokenizer, text: String::new(), inner: None })
    }

    /// The same beside another constraint.
    pub(crate) fn around(self, inner: Box<dyn TokenConstraint>) -> Box<dyn TokenConstraint> {
        Box::new(Self { inner: Some(inner), ..self })
    }
}

impl TokenConstraint for BoundedThoughts {
    fn fill_mask(&mut self, words: &mut [u32]) -> bool {
        let forced = self.budget.forced().filter(|_| self.reader.is_reasoning());
        match (forced, &mut self.inner) {
            (Some(token), _) => allow_only(token, words),
            (None, Some(inner)) => return inner.fill_mask(words),
            (None, None) => words.fill(u32::MAX),
        }
        true
    }

    fn accept(&mut self, token: TokenId) {
        if self.reader.is_reasoning() {
            self.budget.note();
        }
        self.text.clear();
        self.detokenizer.push(token, &mut self.text);
        self.reader.push(&self.text, false, &mut Vec::new());
        if let Some(inner) = &mut self.inner {
            inner.accept(token);
        }
    }

    fn failure(&self) -> Option<String> {
        self.inner.as_ref().and_then(|inner| inner.failure())
    }
}
