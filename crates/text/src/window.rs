//! Text from tokens by decoding the last few of them again, for decoders that look at
//! more than one token.

use sconce_types::TokenId;

use crate::{detokenizer::Pieces, token_table};

/// Tokens of a prompt that decoding goes on from.
const LOOK_BACK: usize = 6;
/// Tokens that are waited for before text that seems unfinished is passed on.
const MAX_WAIT: usize = 16;
/// Tokens that may be the beginning of a character.
const MAX_UNFINISHED: usize = 3;

/// Tokens whose text is not passed on whole yet, and those before them that decide,
/// for instance, on a space between. It begins where text was passed on before, which
/// is never inside a character.
#[derive(Clone)]
pub(crate) struct Window {
    tokens: Vec<TokenId>,
    /// How many tokens' text was passed on.
    passed: usize,
    /// The length of that text.
    len: usize,
}

impl Window {
    pub(crate) fn new(pieces: &Pieces, prompt: &[TokenId], skip_special_tokens: bool) -> Self {
        let is_byte = |id| pieces.token(id).and_then(|token| token_table::fallback_byte(&token));
        let shown = prompt.iter().rev().filter(|&&id| pieces.is_shown(id, skip_special_tokens));
        // A run of bytes is taken whole: cut anywhere, it may be other characters.
        let mut tokens = Vec::new();
        for &id in shown {
            tokens.push(id);
            if tokens.len() >= LOOK_BACK && is_byte(id).is_none() {
                break;
            }
        }
        tokens.reverse();
        let mut window = Self { passed: tokens.len(), tokens, len: 0 };
        let all = window.tokens.len();
        let whole = |&passed: &usize| !is_unfinished(&decode(pieces, &window.tokens[..passed]));
        let passed = (all.saturating_sub(MAX_UNFINISHED)..=all).rev().find(whole);
        window.pass(pieces, 0, passed.unwrap_or(all));
        window
    }

    /// Takes a token that is not skipped.
    pub(crate) fn push(&mut self, pieces: &Pieces, token: TokenId, out: &mut String) {
        self.tokens.push(token);
        let waiting = self.tokens.len() - self.passed;
        let text = decode(pieces, &self.tokens);
        if text.len() > self.len && !is_unfinished(&text) {
            out.push_str(text.get(self.len..).unwrap_or_default());
            self.pass(pieces, self.passed, self.tokens.len());
        } else if waiting >= MAX_WAIT {
            let passed = self.tokens.len() - MAX_UNFINISHED;
            let text = decode(pieces, &self.tokens[..passed]);
            out.push_str(text.get(self.len..).unwrap_or_default());
            self.pass(pieces, self.passed, passed);
        }
    }

    pub(crate) fn finish(&mut self, pieces: &Pieces, out: &mut String) {
        let text = decode(pieces, &self.tokens);
        out.push_str(text.get(self.len..).unwrap_or_default());
        self.len = text.len();
    }

    /// The text of the first `passed` tokens was passed on; `drop` of them are
    /// needed no more.
    fn pass(&mut self, pieces: &Pieces, drop: usize, passed: usize) {
        self.tokens.drain(..drop);
        self.passed = passed - drop;
        self.len = decode(pieces, &self.tokens[..self.passed]).len();
    }
}

/// An unfinished character shows as a replacement at the end.
fn is_unfinished(text: &str) -> bool {
    text.ends_with(char::REPLACEMENT_CHARACTER)
}

fn decode(pieces: &Pieces, tokens: &[TokenId]) -> String {
    pieces.decode(tokens, false).unwrap_or_default()
}
