//! Prompts that are given back before their completions.

use sconce_text::{Detokenizer, TextModel};
use sconce_types::TokenId;

/// A prompt, and the text that it was sent as, if it was.
pub(super) struct Prompt {
    pub(super) tokens: Vec<TokenId>,
    pub(super) text: Option<String>,
}

/// What a choice begins with.
#[derive(Clone)]
pub(super) struct Echo {
    /// The text as it was sent, or what the tokens say, special ones included.
    pub(super) text: String,
    pub(super) num_chars: usize,
    pub(super) first_token: Option<TokenId>,
    /// By token: the characters before it, where they are wanted.
    pub(super) offsets: Vec<usize>,
}

impl Echo {
    /// The echo of a prompt, and the detokenizer of what follows. A character that the
    /// prompt ends within comes whole with the completion, unless there is none.
    pub(super) fn new(
        model: &TextModel,
        prompt: &Prompt,
        skip_special_tokens: bool,
        is_all: bool,
        wants_offsets: bool,
    ) -> (Self, Detokenizer) {
        let mut decoded = String::new();
        let mut starts = Vec::new();
        let mut detokenizer = model.detokenizer(&[], false);
        if wants_offsets || prompt.text.is_none() {
            for &token in &prompt.tokens {
                starts.push(decoded.len());
                detokenizer.push(token, &mut decoded);
            }
        }
        let (text, offsets) = match &prompt.text {
            Some(text) => {
                detokenizer = model.detokenizer(&prompt.tokens, skip_special_tokens);
                (text.clone(), align(model, &prompt.tokens, &starts, &decoded, text))
            }
            None => {
                if is_all {
                    detokenizer.finish(&mut decoded);
                }
                detokenizer.set_skip_special_tokens(skip_special_tokens);
                let offsets = if wants_offsets { chars_before(&decoded, &starts) } else { vec![] };
                (decoded, offsets)
            }
        };
        let num_chars = text.chars().count();
        let first_token = prompt.tokens.first().copied();
        (Self { text, num_chars, first_token, offsets }, detokenizer)
    }
}

/// The characters before each of several places in a text.
fn chars_before(text: &str, places: &[usize]) -> Vec<usize> {
    let (mut chars, mut last) = (0, 0);
    let count = |&place: &usize| {
        chars += text[last..place].chars().count();
        last = place;
        chars
    };
    places.iter().map(count).collect()
}

/// The characters of a text as it was sent before each of its tokens. `starts` are the
/// tokens' places in what they decode to, which differs from the text by tokens that
/// were added, a space before the first word, and what the tokenizer normalises.
fn align(
    model: &TextModel,
    tokens: &[TokenId],
    starts: &[usize],
    decoded: &str,
    sent: &str,
) -> Vec<usize> {
    let mut rest = sent;
    let mut places = Vec::with_capacity(starts.len());
    for (index, &start) in starts.iter().enumerate() {
        places.push(sent.len() - rest.len());
        let end = starts.get(index + 1).copied().unwrap_or(decoded.len());
        let piece = &decoded[start..end];
        let after =
            rest.strip_prefix(piece).or_else(|| rest.strip_prefix(piece.strip_prefix(' ')?));
        rest = after.unwrap_or_else(|| {
            let is_added = model.is_special(tokens[index]);
            let len = if is_added { 0 } else { piece.chars().count() };
            rest.char_indices().nth(len).map_or("", |(at, _)| &rest[at..])
        });
    }
    chars_before(sent, &places)
}
