//! A choice's tokens as text, up to a stop string.

use sconce_engine::{End, StopCheck};
use sconce_text::{Detokenizer, StopStrings};
use sconce_types::TokenId;

use super::answers::AnswerReader;

/// Turns a choice's tokens into text and finds its stop strings there. The engine has one
/// of its own, which ends the request in the step that completes a stop string; both see
/// the same tokens and find the same.
pub(crate) struct Decoder {
    detokenizer: Detokenizer,
    stops: StopStrings,
    /// Tokens before which no stop string counts.
    min_tokens: usize,
    num_tokens: usize,
    /// The text of the last token; kept for its memory.
    piece: String,
}

impl Decoder {
    pub(crate) fn new(detokenizer: Detokenizer, stops: StopStrings, min_tokens: usize) -> Self {
        Self { detokenizer, stops, min_tokens, num_tokens: 0, piece: String::new() }
    }

    /// Appends what a token completes to `out`, or all that is left if it is the last one;
    /// returns the index of the stop string that it completes.
    pub(crate) fn push(
        &mut self,
        token: TokenId,
        finish: Option<End>,
        out: &mut String,
    ) -> Option<usize> {
        self.num_tokens += 1;
        let may_stop = self.num_tokens > self.min_tokens;
        let mut found = None;
        self.piece.clear();
        // A token that ends the choice is no part of its text.
        let is_end = matches!(finish, Some(End::Stop { .. }));
        if !is_end || self.stops.include_in_output() {
            self.detokenizer.push(token, &mut self.piece);
            if !self.stops.is_empty()
                && let Some(special) = self.detokenizer.skipped(token)
            {
                found = self.stops.push_hidden(&special, may_stop, out);
            }
        }
        if finish.is_some() {
            self.detokenizer.finish(&mut self.piece);
        }
        found = found.or_else(|| self.stops.push(&self.piece, may_stop, out));
        if finish.is_some() && found.is_none() {
            self.stops.finish(out);
        }
        found
    }

    /// The text that the last token completed, before stop strings hold any of it back.
    pub(crate) fn piece(&self) -> &str {
        &self.piece
    }

    /// The stop string of an index.
    pub(crate) fn stop(&self, index: usize) -> &str {
        self.stops.text(index)
    }
}

/// The engine's own, without the text.
pub(crate) struct StopFinder {
    pub(crate) decoder: Decoder,
    pub(crate) text: String,
    /// Where an answer ends with its first call.
    pub(crate) reader: Option<AnswerReader>,
}

impl StopCheck for StopFinder {
    fn ends_with(&mut self, token: TokenId) -> bool {
        self.text.clear();
        let is_found = self.decoder.push(token, None, &mut self.text).is_some();
        let Some(reader) = &mut self.reader else { return is_found };
        reader.push(&self.text, false, &mut Vec::new());
        is_found || reader.is_over
    }
}
