//! A choice's tokens as text, up to a stop string.

use sconce_engine::StopCheck;
use sconce_text::{Detokenizer, StopStrings};
use sconce_types::TokenId;

/// Turns a choice's tokens into text and finds its stop strings there. The engine has one
/// of its own, which ends the request in the step that completes a stop string; both see
/// the same tokens and find the same.
pub(super) struct Decoder {
    detokenizer: Detokenizer,
    stops: StopStrings,
    /// Kept for its memory.
    piece: String,
}

impl Decoder {
    pub(super) fn new(detokenizer: Detokenizer, stops: StopStrings) -> Self {
        Self { detokenizer, stops, piece: String::new() }
    }

    /// Appends what a token completes to `out`, or all that is left if it `is_last`; returns
    /// the index of the stop string that it completes.
    pub(super) fn push(
        &mut self,
        token: TokenId,
        is_last: bool,
        out: &mut String,
    ) -> Option<usize> {
        self.piece.clear();
        self.detokenizer.push(token, &mut self.piece);
        if is_last {
            self.detokenizer.finish(&mut self.piece);
        }
        let found = self.stops.push(&self.piece, out);
        if is_last && found.is_none() {
            self.stops.finish(out);
        }
        found
    }

    /// The stop string of an index.
    pub(super) fn stop(&self, index: usize) -> &str {
        self.stops.text(index)
    }
}

/// The engine's own, without the text.
pub(super) struct StopFinder {
    pub(super) decoder: Decoder,
    pub(super) text: String,
}

impl StopCheck for StopFinder {
    fn ends_with(&mut self, token: TokenId) -> bool {
        self.text.clear();
        self.decoder.push(token, false, &mut self.text).is_some()
    }
}
