//! tokenizer.json, which may be damaged: what it asks for is bounded, and the
//! `tokenizers` crate's panics become errors.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::TextError;

/// Ids may have gaps, but tables go by the largest one: up to so many ids for
/// each token are taken, and [`MIN_IDS`] in any case.
const IDS_PER_TOKEN: usize = 16;
const MIN_IDS: usize = 1 << 16;

/// Text of many kinds: what panics with it would end requests.
const PROBE: &str = "Hello,  World 123!\n\té 日本語 🦖 \u{0}\u{301} <s></s>";

/// Reads a tokenizer, without its `truncation` and `padding`, and tries it.
pub(crate) fn load(path: &Path) -> Result<Tokenizer, TextError> {
    let bytes =
        std::fs::read(path).map_err(|source| TextError::Io { path: path.to_owned(), source })?;
    let invalid = |reason: String| TextError::Invalid { path: path.to_owned(), reason };
    check_ids(&bytes).map_err(invalid)?;
    let mut tokenizer = caught(|| Tokenizer::from_bytes(&bytes)).map_err(invalid)?;
    tokenizer
        .with_padding(None)
        .with_truncation(None)
        .map_err(|error| invalid(error.to_string()))?;
    caught(|| {
        let encoding = tokenizer.encode_fast(PROBE, true)?;
        tokenizer.decode(encoding.get_ids(), false)
    })
    .map_err(|reason| invalid(format!("it loads, but does not work: {reason}")))?;
    Ok(tokenizer)
}

/// Runs code of the crate, whose panics say what is damaged.
fn caught<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("the tokenizers crate panicked: {}", message.unwrap_or("no message")))
        }
    }
}

/// Refuses ids far beyond the number of tokens.
fn check_ids(bytes: &[u8]) -> Result<(), String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut vocab = file.model.and_then(|model| model.vocab).unwrap_or_default();
    for token in file.added_tokens.unwrap_or_default() {
        vocab.add(token.content, token.id.as_u64());
    }
    let Vocab { tokens, largest } = vocab;
    let limit = MIN_IDS.max(tokens.saturating_mul(IDS_PER_TOKEN));
    match largest {
        Some((id, token)) if usize::try_from(id).is_ok_and(|id| id >= limit) => Err(format!(
            "the token {token:?} has id {id}, but of {tokens} tokens ids are taken up to {}",
            limit - 1
        )),
        _ => Ok(()),
    }
}

/// The part of the file that has ids.
#[derive(Deserialize)]
struct File {
    added_tokens: Option<Vec<AddedToken>>,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct AddedToken {
    #[serde(default)]
    content: String,
    /// What is no number at all is the crate's to refuse.
    #[serde(default)]
    id: Value,
}

#[derive(Deserialize)]
struct Model {
    vocab: Option<Vocab>,
}

/// A vocabulary's size and its largest id, whose token is named.
#[derive(Default)]
struct Vocab {
    tokens: usize,
    largest: Option<(u64, String)>,
}

impl Vocab {
    fn add(&mut self, token: String, id: Option<u64>) {
        self.tokens += 1;
        if let Some(id) = id
            && self.largest.as_ref().is_none_or(|(largest, _)| id > *largest)
        {
            self.largest = Some((id, token));
        }
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a vocabulary: ids by token, or a list of tokens")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let mut vocab = Vocab::default();
        while let Some((token, id)) = map.next_entry::<String, Value>()? {
            vocab.add(token, id.as_u64());
        }
        Ok(vocab)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
        let mut vocab = Vocab::default();
        while seq.next_element::<IgnoredAny>()?.is_some() {
            vocab.tokens += 1;
        }
        Ok(vocab)
    }
}
