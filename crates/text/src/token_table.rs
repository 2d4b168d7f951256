//! What every token adds to a text, worked out once from the tokenizer's decoder.

use std::collections::HashMap;

use sconce_types::TokenId;
use tokenizers::{
    Decoder as _, DecoderWrapper, Model as _, Tokenizer, pre_tokenizers::metaspace::PrependScheme,
};

/// The bytes of every token of a vocabulary, so that decoding one costs a look-up.
///
/// There is a table where the decoder treats each token alike wherever it stands,
/// but for the first: byte-level BPE, SentencePiece with or without byte fallback,
/// Metaspace, WordPiece, and no decoder at all.
pub(crate) struct TokenTable {
    tokens: Vec<Option<TokenBytes>>,
    decoder: TokenDecoder,
    strip: Option<(char, usize)>,
}

/// What one token adds to a text that has begun.
pub(crate) struct TokenBytes {
    pub(crate) bytes: Box<[u8]>,
    /// Left out where special tokens are skipped.
    pub(crate) special: bool,
    /// One byte of a run that stands for a character without a token.
    pub(crate) is_byte: bool,
}

/// How tokens become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    /// They are text.
    None,
    /// Every character stands for a byte, GPT-2's way.
    Level,
    /// Tokens like `<0xF0>` are bytes, the others text.
    Fallback,
}

/// A decoder's steps up to where it joins the tokens.
struct TokenDecoder {
    /// Each turns a token into a token, and may treat the first differently.
    steps: Vec<DecoderWrapper>,
    /// Without a decoder there are spaces between tokens.
    spaces: bool,
    bytes: Bytes,
    byte_of_char: HashMap<char, u8>,
    first_differs: bool,
}

impl TokenTable {
    /// The table, unless the decoder is one for which there can be none.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let (decoder, strip) = plan(tokenizer.get_decoder())?;
        let vocab = tokenizer.get_vocab(true);
        let len = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let mut ids: Vec<TokenId> = vocab.into_values().collect();
        ids.sort_unstable();
        ids.dedup();
        let token = |id: TokenId| {
            let token = token_string(tokenizer, id)?;
            Some((id, is_special(tokenizer, &token), token))
        };
        let (known, strings): (Vec<_>, Vec<_>) = ids
            .into_iter()
            .filter_map(token)
            .map(|(id, special, token)| ((id, special), token))
            .unzip();
        let texts = decoder.texts(strings, false)?;
        let mut tokens: Vec<Option<TokenBytes>> = (0..len).map(|_| None).collect();
        for ((id, special), text) in known.into_iter().zip(texts) {
            let (bytes, is_byte) = decoder.bytes(text);
            tokens[id as usize] = Some(TokenBytes { bytes, special, is_byte });
        }
        Some(Self { tokens, decoder, strip })
    }

    pub(crate) fn get(&self, id: TokenId) -> Option<&TokenBytes> {
        self.tokens.get(id as usize)?.as_ref()
    }

    /// Whether the first token of a text may add something else than the same
    /// token later.
    pub(crate) fn first_differs(&self) -> bool {
        self.decoder.first_differs
    }

    /// What a token adds to a text that it begins.
    pub(crate) fn first(&self, tokenizer: &Tokenizer, id: TokenId) -> Option<Box<[u8]>> {
        let texts = self.decoder.texts(vec![token_string(tokenizer, id)?], true)?;
        texts.into_iter().next().map(|text| self.decoder.bytes(text).0)
    }

    /// A character, and how many of it are left out where a text begins with them.
    pub(crate) fn strip(&self) -> Option<(char, usize)> {
        self.strip
    }

    /// Whether bytes come as tokens of their own, in runs that other tokens end.
    pub(crate) fn has_byte_runs(&self) -> bool {
        self.decoder.bytes == Bytes::Fallback
    }
}

impl TokenDecoder {
    /// The texts of tokens that come later than the first, or of one that is the first.
    fn texts(&self, tokens: Vec<String>, first: bool) -> Option<Vec<String>> {
        if self.spaces {
            let space = if first { "" } else { " " };
            return Some(tokens.into_iter().map(|token| format!("{space}{token}")).collect());
        }
        // Decoders treat the first token differently, so an empty one is put before them.
        let before = usize::from(!first);
        let len = before + tokens.len();
        let mut texts = vec![String::new(); before];
        texts.extend(tokens);
        for step in &self.steps {
            texts = step.decode_chain(texts).ok().filter(|texts| texts.len() == len)?;
        }
        texts.drain(..before);
        Some(texts)
    }

    /// A token's bytes, and whether it is one of a run of bytes.
    fn bytes(&self, text: String) -> (Box<[u8]>, bool) {
        let bytes = match self.bytes {
            Bytes::None => None,
            Bytes::Level => {
                let bytes = text.chars().map(|c| self.byte_of_char.get(&c).copied());
                bytes.collect::<Option<Box<[u8]>>>()
            }
            Bytes::Fallback => match fallback_byte(&text) {
                Some(byte) => return (Box::new([byte]), true),
                None => None,
            },
        };
        // A token that is no sequence of bytes stands for its own text.
        (bytes.unwrap_or_else(|| text.into_bytes().into()), false)
    }
}

/// The steps of a decoder, and what it strips from the start of a text; `None` where
/// what a token adds depends on more than being first.
fn plan(decoder: Option<&DecoderWrapper>) -> Option<(TokenDecoder, Option<(char, usize)>)> {
    let mut plan = TokenDecoder {
        steps: Vec::new(),
        spaces: decoder.is_none(),
        bytes: Bytes::None,
        byte_of_char: byte_of_char(),
        first_differs: decoder.is_none(),
    };
    let mut flat = Vec::new();
    decoder.into_iter().for_each(|decoder| flatten(decoder, &mut flat));
    let mut strip = None;
    let (mut in_runs, mut joined) = (false, false);
    for step in flat {
        match step {
            DecoderWrapper::Fuse(_) => joined = true,
            DecoderWrapper::Strip(step) if joined && strip.is_none() && step.stop == 0 => {
                strip = Some((step.content, step.start));
            }
            _ if joined || in_runs => return None,
            DecoderWrapper::ByteLevel(_) => {
                plan.bytes = Bytes::Level;
                joined = true;
            }
            DecoderWrapper::ByteFallback(_) => {
                plan.bytes = Bytes::Fallback;
                in_runs = true;
            }
            DecoderWrapper::Metaspace(metaspace) => {
                plan.first_differs |= metaspace.prepend_scheme != PrependScheme::Never;
                plan.steps.push(step.clone());
            }
            DecoderWrapper::WordPiece(_) => {
                plan.first_differs = true;
                plan.steps.push(step.clone());
            }
            DecoderWrapper::Replace(_) => plan.steps.push(step.clone()),
            DecoderWrapper::Strip(strip) if strip.stop == 0 => plan.steps.push(step.clone()),
            _ => return None,
        }
    }
    Some((plan, strip))
}

fn flatten<'a>(decoder: &'a DecoderWrapper, out: &mut Vec<&'a DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            sequence.get_decoders().iter().for_each(|decoder| flatten(decoder, out));
        }
        step => out.push(step),
    }
}

/// A token as decoders get it.
pub(crate) fn token_string(tokenizer: &Tokenizer, id: TokenId) -> Option<String> {
    let added = tokenizer.get_added_vocabulary().simple_id_to_token(id);
    added.or_else(|| tokenizer.get_model().id_to_token(id))
}

/// Whether decoders leave a token out where special tokens are skipped.
pub(crate) fn is_special(tokenizer: &Tokenizer, token: &str) -> bool {
    tokenizer.get_added_vocabulary().is_special_token(token)
}

/// The byte that a token like `<0xF0>` stands for.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's printable stand-ins for bytes, reversed: printable Latin-1
/// characters stand for themselves, the others follow from U+0100 on.
pub(crate) fn byte_of_char() -> HashMap<char, u8> {
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
