//! Text from tokens as they come.

use std::{collections::HashMap, sync::Arc};

use sconce_types::TokenId;
use serde_json::json;
use tokenizers::{DecoderWrapper, Tokenizer};

use crate::TokenText;

/// Tokens of the prompt that decoding goes on from, where a decoder looks back.
const LOOK_BACK: usize = 6;

/// A tokenizer with its table of bytes, if its tokens are bytes.
pub(crate) struct Pieces {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) table: Option<ByteTable>,
}

impl Pieces {
    pub(crate) fn token_text(&self, id: TokenId) -> TokenText {
        let bytes = match self.table.as_ref().and_then(|table| table.get(id)) {
            Some(token) => token.bytes.to_vec(),
            None => self.tokenizer.decode(&[id], false).unwrap_or_default().into_bytes(),
        };
        TokenText { text: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }
}

/// The bytes of every token of a byte-level BPE vocabulary, so that a token
/// costs one look-up.
pub(crate) struct ByteTable {
    tokens: Vec<Option<TokenBytes>>,
}

struct TokenBytes {
    bytes: Box<[u8]>,
    special: bool,
}

impl ByteTable {
    /// The table, if the tokenizer's decoder is byte-level.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Option<Self> {
        if !matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return None;
        }
        let byte_of = byte_of_char();
        let added = tokenizer.get_added_tokens_decoder();
        let vocab = tokenizer.get_vocab(true);
        let len = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let mut tokens: Vec<Option<TokenBytes>> = (0..len).map(|_| None).collect();
        for (token, id) in vocab {
            let added = added.get(&id);
            let bytes: Option<Box<[u8]>> = match added {
                Some(added) => Some(added.content.as_bytes().into()),
                None => token.chars().map(|c| byte_of.get(&c).copied()).collect(),
            };
            // A token that is no sequence of bytes stands for its own text.
            let bytes = bytes.unwrap_or_else(|| token.as_bytes().into());
            let special = added.is_some_and(|added| added.special);
            tokens[id as usize] = Some(TokenBytes { bytes, special });
        }
        Some(Self { tokens })
    }

    fn get(&self, id: TokenId) -> Option<&TokenBytes> {
        self.tokens.get(id as usize)?.as_ref()
    }
}

/// GPT-2's printable stand-ins for bytes, reversed: printable Latin-1
/// characters stand for themselves, the others follow from U+0100 on.
fn byte_of_char() -> HashMap<char, u8> {
    let mut next = 0x100;
    (0..=u8::MAX)
        .map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let code = if printable {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            (char::from_u32(code).expect("codes below U+0200 are characters"), byte)
        })
        .collect()
}

/// A tokenizer.json whose tokens are the bytes and, as 256, an end token.
pub(crate) fn byte_tokenizer() -> Vec<u8> {
    let vocab: HashMap<String, u8> =
        byte_of_char().into_iter().map(|(c, byte)| (c.to_string(), byte)).collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    let end = json!({
        "id": 256, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [end], "pre_tokenizer": byte_level,
        "decoder": byte_level, "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    tokenizer.to_string().into_bytes()
}

/// Turns tokens into text one by one. It never splits a character: bytes of an
/// unfinished one wait for the rest.
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    skip_special_tokens: bool,
    state: State,
}

enum State {
    /// Bytes that are not a whole character yet, at most three.
    Bytes { pending: Vec<u8> },
    /// Tokens whose text is not passed on whole yet, and those before them
    /// that decide, for instance, on a leading space.
    Window { tokens: Vec<TokenId>, emitted: usize },
}

impl Detokenizer {
    pub(crate) fn new(pieces: Arc<Pieces>, prompt: &[TokenId], skip_special_tokens: bool) -> Self {
        let state = if pieces.table.is_some() {
            State::Bytes { pending: Vec::new() }
        } else {
            let tokens = prompt[prompt.len().saturating_sub(LOOK_BACK)..].to_vec();
            let emitted = decode(&pieces, &tokens, skip_special_tokens).len();
            State::Window { tokens, emitted }
        };
        Self { pieces, skip_special_tokens, state }
    }

    /// Takes a token and appends to `out` the text that it completes.
    pub fn push(&mut self, token: TokenId, out: &mut String) {
        match (&mut self.state, &self.pieces.table) {
            (State::Bytes { pending }, Some(table)) => {
                let Some(token) = table.get(token) else { return };
                if token.special && self.skip_special_tokens {
                    return;
                }
                push_bytes(pending, &token.bytes, out);
            }
            (State::Window { tokens, emitted }, _) => {
                tokens.push(token);
                let text = decode(&self.pieces, tokens, self.skip_special_tokens);
                // An unfinished character shows as a replacement at the end.
                if text.len() <= *emitted || text.ends_with(char::REPLACEMENT_CHARACTER) {
                    return;
                }
                out.push_str(text.get(*emitted..).unwrap_or_default());
                tokens.drain(..tokens.len().saturating_sub(LOOK_BACK));
                *emitted = decode(&self.pieces, tokens, self.skip_special_tokens).len();
            }
            (State::Bytes { .. }, None) => unreachable!("bytes are pushed only with a table"),
        }
    }

    /// Appends what is left at the end of the text: an unfinished character
    /// becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        match &mut self.state {
            State::Bytes { pending } => {
                out.push_str(&String::from_utf8_lossy(pending));
                pending.clear();
            }
            State::Window { tokens, emitted } => {
                let text = decode(&self.pieces, tokens, self.skip_special_tokens);
                out.push_str(text.get(*emitted..).unwrap_or_default());
                *emitted = text.len();
            }
        }
    }
}

fn decode(pieces: &Pieces, tokens: &[TokenId], skip_special_tokens: bool) -> String {
    pieces.tokenizer.decode(tokens, skip_special_tokens).unwrap_or_default()
}

/// Appends all whole characters of `pending` and `bytes`; what can still become
/// one stays in `pending`.
fn push_bytes(pending: &mut Vec<u8>, bytes: &[u8], out: &mut String) {
    if pending.is_empty()
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        out.push_str(text);
        return;
    }
    pending.extend_from_slice(bytes);
    let mut rest = &pending[..];
    loop {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                rest = &[];
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                out.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                rest = after;
                if let Some(len) = error.error_len() {
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[len..];
                    continue;
                }
            }
        }
        break;
    }
    let kept = rest.len();
    pending.drain(..pending.len() - kept);
}
