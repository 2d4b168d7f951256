//! tokenizer.json, which may be damaged: what it asks for is bounded, and the
//! `tokenizers` crate's panics become errors.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
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

/// Reads a tokenizer and tries it.
pub(crate) fn load(path: &Path) -> Result<Tokenizer, TextError> {
    let bytes =
        std::fs::read(path).map_err(|source| TextError::Io { path: path.to_owned(), source })?;
    let invalid = |reason: String| TextError::Invalid { path: path.to_owned(), reason };
    check_ids(&bytes).map_err(invalid)?;
    let tokenizer = caught(|| Tokenizer::from_bytes(&bytes)).map_err(invalid)?;
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
    let file: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let added = file["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let vocab = &file["model"]["vocab"];
    let named = vocab.as_object().into_iter().flatten().map(|(token, id)| (token.as_str(), id));
    let added = added.iter().map(|token| (token["content"].as_str().unwrap_or(""), &token["id"]));
    let ids: Vec<(&str, &Value)> = named.chain(added).collect();
    let tokens = ids.len() + vocab.as_array().map_or(0, Vec::len);
    let limit = MIN_IDS.max(tokens.saturating_mul(IDS_PER_TOKEN));
    for (token, id) in ids {
        // What is no number at all is the crate's to refuse.
        let beyond = id.as_u64().is_some_and(|id| usize::try_from(id).is_ok_and(|id| id >= limit));
        if beyond {
            return Err(format!(
                "the token {token:?} has id {id}, but of {tokens} tokens ids are taken up to {}",
                limit - 1
            ));
        }
    }
    Ok(())
}
