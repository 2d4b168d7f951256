//! Tokenizes long texts with bounded memory, and stops early at a limit of tokens.
//!
//! A tokenizer keeps some hundred bytes for each byte of a text until it has finished. So
//! long texts are tokenized in pieces where that gives the same tokens. Where it does not,
//! the tokens of the pieces are only counted, as an estimate of how many the whole has.

use sconce_types::TokenId;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::{
    TextError,
    longest_token::{Parts, PieceCount, deletes_matches},
};

/// Texts up to this length are tokenized at once.
const PIECE_BYTES: usize = 16 << 10;
/// A tokenizer can be used on pieces only if this text has the same tokens when it is cut
/// between a word and the space before the next one.
const SAMPLE: &str = "The quick brown fox's 123 jumps, over \"x9\" then I'll go to the end of the \
     day. na\u{ef}ve r\u{e9}sum\u{e9} two  spaces\n new line a1 b2 CamelCase fooBar in the case \
     of a lot of things that are not to be seen as one, and it is a good day for all of us x y";

/// What decides how texts can be cut, worked out once from a tokenizer.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// Bytes of text that a token stands for at most; `usize::MAX` if there is no bound.
    longest_token: usize,
    /// How to estimate the tokens of a text from those of its pieces, if that is possible.
    piece_count: Option<PieceCount>,
    /// What is put around a text, where pieces of it may be tokenized alone.
    around: Option<Around>,
}

#[derive(Debug)]
struct Around {
    before: Vec<TokenId>,
    after: Vec<TokenId>,
}

impl Encoder {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        let parts = Parts::new(tokenizer);
        Self {
            longest_token: parts.longest_token().unwrap_or(usize::MAX),
            piece_count: PieceCount::new(&parts),
            around: around(tokenizer),
        }
    }

    /// Bytes that so many tokens stand for at most; `usize::MAX` if there is no bound.
    pub(crate) fn max_bytes(&self, tokens: usize) -> usize {
        if self.longest_token == usize::MAX {
            return usize::MAX;
        }
        tokens.saturating_mul(self.longest_token)
    }

    pub(crate) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        add_special_tokens: bool,
        max_tokens: usize,
    ) -> Result<Vec<TokenId>, TextError> {
        let too_many = TextError::TooManyTokens { most: max_tokens };
        if text.len() > self.max_bytes(max_tokens) {
            return Err(too_many);
        }
        let ids = match &self.around {
            Some(around) if text.len() > PIECE_BYTES => {
                let (before, after) = if add_special_tokens {
                    (&around.before[..], &around.after[..])
                } else {
                    Default::default()
                };
                let mut ids = before.to_vec();
                let mut rest = text;
                while !rest.is_empty() && ids.len() <= max_tokens {
                    let (piece, more) = rest.split_at(cut(rest).unwrap_or(rest.len()));
                    if !self.may_fit(tokenizer, piece, max_tokens - ids.len())? {
                        return Err(too_many);
                    }
                    ids.extend(encode(tokenizer, piece, false)?);
                    rest = more;
                }
                ids.extend_from_slice(after);
                ids
            }
            _ if !self.may_fit(tokenizer, text, max_tokens)? => return Err(too_many),
            _ => encode(tokenizer, text, add_special_tokens)?,
        };
        if ids.len() > max_tokens { Err(too_many) } else { Ok(ids) }
    }

    /// Whether a text can have so few tokens, by those of its pieces. A cut anywhere may
    /// change the tokens on both sides, so a quarter more is allowed for.
    fn may_fit(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        max_tokens: usize,
    ) -> Result<bool, TextError> {
        let Some(pieces) = self.piece_count else { return Ok(true) };
        if text.len() <= 2 * PIECE_BYTES || max_tokens == usize::MAX {
            return Ok(true);
        }
        let most = max_tokens.saturating_add(max_tokens / 4);
        let (mut rest, mut count, mut cuts) = (text, 0, 1_usize);
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
            count += if pieces.ignore_whitespace {
                let words: Vec<&str> = piece.split_whitespace().collect();
                encode(tokenizer, &words.join(" "), false)?.len()
            } else {
                encode(tokenizer, piece, false)?.len()
            };
            if count > most.saturating_add(cuts.saturating_mul(pieces.per_cut)) {
                return Ok(false);
            }
            (rest, cuts) = (more, cuts + 1);
        }
        Ok(true)
    }
}

fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    add_special_tokens: bool,
) -> Result<Vec<TokenId>, TextError> {
    let encoding = tokenizer.encode_fast(text, add_special_tokens);
    let encoding = encoding.map_err(|error| TextError::Encode(error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

/// The first place after a piece's length where a text may be cut.
fn cut(text: &str) -> Option<usize> {
    (PIECE_BYTES..text.len()).find(|&at| is_between_words(text.as_bytes(), at))
}

/// Whether a word ends here, and another follows after one space.
fn is_between_words(text: &[u8], at: usize) -> bool {
    at > 0
        && text[at] == b' '
        && text[at - 1].is_ascii_alphanumeric()
        && text.get(at + 1).is_some_and(u8::is_ascii_alphabetic)
}

/// The special tokens that a tokenizer puts around a text, or `None` if texts may not be cut
/// between words. They may be if the tokenizer splits them into words before it looks for
/// tokens, and neither an added token nor a match of the normalizer spans two words.
fn around(tokenizer: &Tokenizer) -> Option<Around> {
    let json = |part: Result<Value, _>| part.unwrap_or(Value::Null);
    let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()));
    let keeps_words = normalizer.is_null() || normalizer["type"] == "NFC";
    let pre_tokenizer = json(serde_json::to_value(tokenizer.get_pre_tokenizer()));
    let splits = splits_words(&pre_tokenizer) && !deletes_matches(&pre_tokenizer);
    let spans_words = tokenizer.get_added_tokens_decoder().values().any(|token| {
        let text = token.content.as_bytes();
        let has_space = (0..text.len()).any(|at| text[at] == b' ');
        has_space || token.lstrip || token.rstrip || token.single_word
    });
    if !keeps_words || !splits || spans_words {
        return None;
    }
    let encode = |text: &str, special| encode(tokenizer, text, special).ok();
    let whole = encode(SAMPLE, false)?;
    let is_same =
        (1..SAMPLE.len()).filter(|&at| is_between_words(SAMPLE.as_bytes(), at)).all(|at| {
            let parts = [&SAMPLE[..at], &SAMPLE[at..]].map(|part| encode(part, false));
            matches!(&parts, [Some(left), Some(right)] if [&left[..], right].concat() == whole)
        });
    let special = encode(SAMPLE, true)?;
    let before = special.windows(whole.len().max(1)).position(|ids| ids == whole)?;
    let around = Around {
        before: special[..before].to_vec(),
        after: special[before + whole.len()..].to_vec(),
    };
    is_same.then_some(around)
}

/// Whether a pre-tokenizer has a part that splits texts by a pattern.
fn splits_words(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("ByteLevel") => pre_tokenizer["use_regex"] != false,
        Some("Split") => true,
        Some("Sequence") => {
            let parts = pre_tokenizer["pretokenizers"].as_array();
            parts.is_some_and(|parts| parts.iter().any(splits_words))
        }
        _ => false,
    }
}
