//! How many bytes of a text one token can stand for, by the parts of a tokenizer.
//!
//! Each part is asked whether it can make text vanish, or fuse text of any length into one
//! token. What is not known to be harmless counts as if it could.

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer};

use crate::token_table::byte_of_char;

/// Bytes of the longest character in UTF-8.
const CHARACTER: usize = 4;
/// Bytes that no UTF-8 text contains, which a vocabulary of bytes may lack.
const NEVER_IN_UTF8: [u8; 2] = [0xc0, 0xc1];
const LAST_IN_UTF8: u8 = 0xf4;
/// Tokens that a cut may add with any vocabulary.
const MIN_PER_CUT: usize = 16;

/// What the functions below go by, read from a tokenizer once.
pub(crate) struct Parts<'a> {
    tokenizer: &'a Tokenizer,
    normalizer: Value,
    pre_tokenizer: Value,
    /// Bytes of the vocabulary's longest entry.
    longest: usize,
    /// Whether an added token takes the whitespace beside it.
    strips: bool,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer) -> Self {
        // What has no such form is of no known type.
        let json = |part: Result<Value, _>| part.unwrap_or_else(|_| "unknown".into());
        let added = tokenizer.get_added_tokens_decoder();
        Self {
            tokenizer,
            normalizer: json(serde_json::to_value(tokenizer.get_normalizer())),
            pre_tokenizer: json(serde_json::to_value(tokenizer.get_pre_tokenizer())),
            longest: tokenizer.get_vocab(true).keys().map(String::len).max().unwrap_or(1),
            strips: added.values().any(|token| token.lstrip || token.rstrip),
        }
    }

    /// Bytes of text that a token stands for at most; `None` if there is no bound.
    pub(crate) fn longest_token(&self) -> Option<usize> {
        let Self { tokenizer, normalizer, pre_tokenizer, .. } = self;
        let shrinks = normalizer_shrinks(normalizer)?;
        if self.strips
            || removes_text(pre_tokenizer)
            || !keeps_unknown_text(tokenizer, normalizer, pre_tokenizer)
        {
            return None;
        }
        Some(self.longest.max(CHARACTER).saturating_mul(shrinks))
    }
}

/// How many bytes a normalizer makes one byte of, at most; `None` if it can delete text.
fn normalizer_shrinks(normalizer: &Value) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        Some("ByteLevel" | "Prepend") => Some(1),
        // The Kelvin sign has three bytes and becomes a K; so do three Hangul letters one.
        Some("NFC" | "NFD" | "Lowercase") => Some(3),
        // The bold A of mathematics has four bytes and becomes an A.
        Some("NFKC" | "NFKD") => Some(4),
        Some("Replace") => {
            // A regular expression may match text of any length.
            let pattern = normalizer["pattern"]["String"].as_str()?.len();
            let content = normalizer["content"].as_str()?.len();
            (content > 0).then(|| pattern.div_ceil(content).max(1))
        }
        Some("Sequence") => {
            let parts = normalizer["normalizers"].as_array()?;
            parts.iter().try_fold(1_usize, |product, part| {
                Some(product.saturating_mul(normalizer_shrinks(part)?))
            })
        }
        // Strip, StripAccents, Nmt and BertNormalizer delete; Precompiled may.
        _ => None,
    }
}

/// Whether a pre-tokenizer can leave out parts of a text, such as whitespace.
fn removes_text(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        None => !pre_tokenizer.is_null(),
        Some("ByteLevel" | "Metaspace" | "Digits" | "UnicodeScripts" | "FixedLength") => false,
        Some("Split" | "Punctuation") => {
            let behavior = pre_tokenizer["behavior"].as_str();
            behavior.is_none_or(|behavior| behavior == "Removed")
        }
        Some("Sequence") => {
            let parts = pre_tokenizer["pretokenizers"].as_array();
            parts.is_none_or(|parts| parts.iter().any(removes_text))
        }
        // BertPreTokenizer, Whitespace, WhitespaceSplit and CharDelimiterSplit.
        _ => true,
    }
}

/// Whether every character that the vocabulary lacks has a token of its own at least.
fn keeps_unknown_text(tokenizer: &Tokenizer, normalizer: &Value, pre_tokenizer: &Value) -> bool {
    let model = tokenizer.get_model();
    let fallback = || has_bytes(tokenizer, |byte| format!("<0x{byte:02X}>"));
    match model {
        ModelWrapper::BPE(bpe) => {
            let has_affixes = [&bpe.continuing_subword_prefix, &bpe.end_of_word_suffix]
                .into_iter()
                .any(|affix| affix.as_ref().is_some_and(|affix| !affix.is_empty()));
            let stand_ins = || {
                let chars = byte_of_char();
                let mut of_byte = [char::REPLACEMENT_CHARACTER; 256];
                chars.into_iter().for_each(|(c, byte)| of_byte[usize::from(byte)] = c);
                has_bytes(tokenizer, |byte| of_byte[usize::from(byte)].to_string())
            };
            let is_byte_level = has_part(normalizer, "ByteLevel", "normalizers")
                || has_part(pre_tokenizer, "ByteLevel", "pretokenizers");
            // Without a token for them, unknown characters are left out.
            (bpe.unk_token.is_some() && !bpe.fuse_unk)
                || (bpe.byte_fallback && fallback())
                || (is_byte_level && !has_affixes && stand_ins())
        }
        // Unknown characters in a row are always fused.
        ModelWrapper::Unigram(unigram) => unigram.byte_fallback() && fallback(),
        // A word of any length becomes the token for unknown words.
        ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) => false,
    }
}

/// Whether the model has a token for each byte of UTF-8.
fn has_bytes(tokenizer: &Tokenizer, token: impl Fn(u8) -> String) -> bool {
    use tokenizers::Model as _;
    let model = tokenizer.get_model();
    (0..=LAST_IN_UTF8)
        .filter(|byte| !NEVER_IN_UTF8.contains(byte))
        .all(|byte| model.token_to_id(&token(byte)).is_some())
}

/// Whether a part, or one in a sequence of them, has a type.
fn has_part(part: &Value, name: &str, list: &str) -> bool {
    let inner = part[list].as_array();
    part["type"] == name || inner.is_some_and(|parts| parts.iter().any(|p| has_part(p, name, list)))
}

/// How the tokens of a text's pieces, cut anywhere, compare with those of the whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PieceCount {
    /// Tokens that one cut may add.
    pub(crate) per_cut: usize,
    /// Whether whitespace in the whole may have no tokens where in a piece it has.
    pub(crate) ignore_whitespace: bool,
}

impl PieceCount {
    /// `None` where pieces do not say how many tokens the whole has.
    pub(crate) fn new(parts: &Parts<'_>) -> Option<Self> {
        if deletes_matches(&parts.normalizer) || deletes_matches(&parts.pre_tokenizer) {
            return None;
        }
        // A cut inside a token leaves at most all of its bytes as tokens.
        let longest = parts.longest.max(MIN_PER_CUT);
        let per_cut = match parts.tokenizer.get_model() {
            // A word that is unknown as a whole, or too long, may be known in parts.
            ModelWrapper::WordPiece(model) => {
                longest.max(model.max_input_chars_per_word.saturating_mul(2))
            }
            _ => longest,
        };
        Some(Self { per_cut, ignore_whitespace: parts.strips })
    }
}

/// Whether a part deletes or shortens what a regular expression matches. A match in the
/// whole need not be one in a piece.
pub(crate) fn deletes_matches(part: &Value) -> bool {
    let by_pattern = !part["pattern"]["Regex"].is_null();
    let deletes = match part["type"].as_str() {
        Some("Replace") => true,
        Some("Split") => part["behavior"] == "Removed",
        _ => false,
    };
    let inner = part["normalizers"].as_array().or_else(|| part["pretokenizers"].as_array());
    (by_pattern && deletes) || inner.is_some_and(|parts| parts.iter().any(deletes_matches))
}
