//! Text from tokens as they come.

use std::sync::Arc;

use sconce_types::TokenId;
use tokenizers::Tokenizer;

use crate::{
    TextError, TokenText,
    token_table::{self, TokenTable},
    window::Window,
};

/// A tokenizer with its table of bytes, if there can be one.
pub(crate) struct Pieces {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) table: Option<TokenTable>,
}

impl Pieces {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        let table = TokenTable::new(&tokenizer);
        Self { tokenizer, table }
    }

    pub(crate) fn token_text(&self, id: TokenId) -> TokenText {
        let bytes = match &self.table {
            Some(table) => table.get(id).map(|token| token.bytes.to_vec()).unwrap_or_default(),
            None => {
                let byte = self.token(id).and_then(|token| token_table::fallback_byte(&token));
                let text = self.decode(&[id], false).unwrap_or_default();
                // A decoder that knows of such tokens does not show their names.
                byte.filter(|_| !text.starts_with("<0x"))
                    .map_or_else(|| text.into_bytes(), |byte| vec![byte])
            }
        };
        TokenText { text: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }

    /// A token's own string, as decoders get it.
    pub(crate) fn token(&self, id: TokenId) -> Option<String> {
        token_table::token_string(&self.tokenizer, id)
    }

    /// Whether a token stands for text, here and now.
    pub(crate) fn is_shown(&self, id: TokenId, skip_special_tokens: bool) -> bool {
        match &self.table {
            Some(table) => {
                table.get(id).is_some_and(|token| !(token.special && skip_special_tokens))
            }
            None => self.token(id).is_some_and(|token| {
                !(skip_special_tokens && token_table::is_special(&self.tokenizer, &token))
            }),
        }
    }

    /// The tokenizer's own decoder. Some decoders panic where there is nothing to decode.
    pub(crate) fn decode(
        &self,
        ids: &[TokenId],
        skip_special_tokens: bool,
    ) -> Result<String, TextError> {
        if !ids.iter().any(|&id| self.is_shown(id, skip_special_tokens)) {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode(ids, skip_special_tokens);
        text.map_err(|error| TextError::Decode(error.to_string()))
    }
}

/// Turns tokens into text one by one, as the tokenizer's decoder turns all of them.
/// It never splits a character: bytes of an unfinished one wait for the rest.
///
/// Bytes that are not UTF-8 become U+FFFD: with byte-level BPE one for each sequence
/// that cannot become a character, with byte fallback (tokens like `<0xF0>`) one for
/// each byte, as `tokenizers` has it. In one thing this differs from `tokenizers`: there,
/// one invalid byte in a run of byte tokens takes the run's valid characters with it,
/// those before it too, so nothing could be shown before a run has ended. Here valid
/// characters come out.
#[derive(Clone)]
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    skip_special_tokens: bool,
    /// Special tokens that are not skipped all the same.
    shown: Arc<[TokenId]>,
    state: State,
}

#[derive(Clone)]
enum State {
    Bytes(Bytes),
    Window(Window),
}

impl Detokenizer {
    /// Continues after `prompt`. If the prompt ends inside a character, the tokens that
    /// complete it give the whole character. Its bytes that stay invalid give no U+FFFD.
    pub(crate) fn new(pieces: Arc<Pieces>, prompt: &[TokenId], skip_special_tokens: bool) -> Self {
        let state = match &pieces.table {
            Some(table) => {
                let mut bytes = Bytes::new(table);
                bytes.skip(&pieces.tokenizer, table, prompt, skip_special_tokens);
                State::Bytes(bytes)
            }
            None => State::Window(Window::new(&pieces, prompt, skip_special_tokens)),
        };
        Self { pieces, skip_special_tokens, shown: Arc::default(), state }
    }

    /// Takes a token and appends to `out` the text that it completes.
    pub fn push(&mut self, token: TokenId, out: &mut String) {
        let skip_special = self.skips(token);
        match (&mut self.state, &self.pieces.table) {
            (State::Bytes(bytes), Some(table)) => {
                bytes.push(&self.pieces.tokenizer, table, token, skip_special, out);
            }
            (State::Window(window), _) => {
                if self.pieces.is_shown(token, skip_special) {
                    window.push(&self.pieces, token, out);
                }
            }
            (State::Bytes(_), None) => unreachable!("bytes are pushed only with a table"),
        }
    }

    /// Appends what is left at the end of the text: an unfinished character
    /// becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        match (&mut self.state, &self.pieces.table) {
            (State::Bytes(bytes), Some(table)) => bytes.finish(table, out),
            (State::Window(window), _) => window.finish(&self.pieces, out),
            (State::Bytes(_), None) => unreachable!("bytes are pushed only with a table"),
        }
    }

    /// Shows or skips special tokens from here on.
    pub fn set_skip_special_tokens(&mut self, skip: bool) {
        self.skip_special_tokens = skip;
    }

    /// Shows these special tokens even where others are skipped: the markers of a format.
    pub fn show(&mut self, tokens: Arc<[TokenId]>) {
        self.shown = tokens;
    }

    #[inline]
    fn skips(&self, token: TokenId) -> bool {
        self.skip_special_tokens && (self.shown.is_empty() || !self.shown.contains(&token))
    }

    /// The text of a special token that [`Detokenizer::push`] skips.
    #[must_use]
    pub fn skipped(&self, token: TokenId) -> Option<String> {
        if !self.skips(token) || self.pieces.is_shown(token, true) {
            return None;
        }
        self.pieces.is_shown(token, false).then(|| self.pieces.token(token)).flatten()
    }
}

/// Text by a table of bytes.
#[derive(Clone)]
struct Bytes {
    /// Bytes that are not a whole character yet, at most three.
    pending: Vec<u8>,
    /// How many of those are the prompt's.
    of_prompt: usize,
    /// Whether there was a token that is not skipped.
    begun: bool,
    /// Characters to leave out still, should the text begin with them.
    strip: usize,
}

impl Bytes {
    fn new(table: &TokenTable) -> Self {
        let strip = table.strip().map_or(0, |(_, count)| count);
        Self { pending: Vec::new(), of_prompt: 0, begun: false, strip }
    }

    /// Takes tokens whose text is not wanted. Only the first of them and the last
    /// few bytes matter to what follows.
    fn skip(
        &mut self,
        tokenizer: &Tokenizer,
        table: &TokenTable,
        tokens: &[TokenId],
        skip_special_tokens: bool,
    ) {
        let mut unwanted = String::new();
        let mut tokens = tokens.iter();
        while !self.begun || self.strip > 0 {
            let Some(&token) = tokens.next() else { break };
            self.push(tokenizer, table, token, skip_special_tokens, &mut unwanted);
        }
        let rest = tokens.as_slice();
        let (mut from, mut len) = (rest.len(), 0);
        while from > 0 && len < 4 {
            from -= 1;
            let shown = |token: &&token_table::TokenBytes| !(token.special && skip_special_tokens);
            len += table.get(rest[from]).filter(shown).map_or(0, |token| token.bytes.len());
        }
        if from > 0 {
            self.pending.clear();
        }
        for &token in &rest[from..] {
            self.push(tokenizer, table, token, skip_special_tokens, &mut unwanted);
            unwanted.clear();
        }
        self.of_prompt = self.pending.len();
    }

    fn push(
        &mut self,
        tokenizer: &Tokenizer,
        table: &TokenTable,
        id: TokenId,
        skip_special_tokens: bool,
        out: &mut String,
    ) {
        let Some(token) = table.get(id) else { return };
        if token.special && skip_special_tokens {
            return;
        }
        let from = out.len();
        let is_first = !std::mem::replace(&mut self.begun, true);
        if table.has_byte_runs() && !token.is_byte {
            self.end_run(table, out);
        }
        if is_first && table.first_differs() && !token.is_byte {
            let bytes = table.first(tokenizer, id);
            self.take(table, bytes.as_deref().unwrap_or(&token.bytes), out);
        } else {
            self.take(table, &token.bytes, out);
        }
        if self.strip > 0 {
            self.strip(table, from, out);
        }
    }

    fn finish(&mut self, table: &TokenTable, out: &mut String) {
        let from = out.len();
        self.end_run(table, out);
        self.strip(table, from, out);
    }

    /// Appends all whole characters of `pending` and `bytes`; what can still become
    /// one stays in `pending`.
    fn take(&mut self, table: &TokenTable, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            out.push_str(text);
            return;
        }
        self.pending.extend_from_slice(bytes);
        let mut rest = &self.pending[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                    // The prompt's bytes come first.
                    self.of_prompt = self.of_prompt.saturating_sub(valid.len());
                    rest = after;
                    if let Some(len) = error.error_len() {
                        replace(table, len, &mut self.of_prompt, &mut self.strip, out);
                        rest = &rest[len..];
                        continue;
                    }
                }
            }
            break;
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
        self.of_prompt = self.of_prompt.min(kept);
    }

    /// No byte follows: what is pending never becomes a character.
    fn end_run(&mut self, table: &TokenTable, out: &mut String) {
        if !self.pending.is_empty() {
            replace(table, self.pending.len(), &mut self.of_prompt, &mut self.strip, out);
            self.pending.clear();
        }
    }

    /// Leaves out what a text must not begin with.
    fn strip(&mut self, table: &TokenTable, from: usize, out: &mut String) {
        let Some((content, _)) = table.strip() else { return };
        while self.strip > 0
            && let Some(first) = out[from..].chars().next()
        {
            if first != content {
                self.strip = 0;
                break;
            }
            out.replace_range(from..from + first.len_utf8(), "");
            self.strip -= 1;
        }
    }
}

/// Appends what stands for `len` invalid bytes, unless they were the prompt's.
fn replace(
    table: &TokenTable,
    len: usize,
    of_prompt: &mut usize,
    strip: &mut usize,
    out: &mut String,
) {
    let theirs = len.min(*of_prompt);
    let shown = len - theirs;
    if theirs > 0 {
        *of_prompt -= theirs;
        // The text begins with what stands for them.
        *strip = 0;
    }
    let count = if table.has_byte_runs() { shown } else { shown.min(1) };
    out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
}
