//! A model's vocabulary in the form that masks are computed from.

use std::{collections::HashMap, sync::Arc};

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use sconce_text::TextModel;
use sconce_types::TokenId;

use crate::GrammarError;

/// The bytes of every token, as a trie.
///
/// Special tokens and end tokens stand for no text: they are found by name only, behind a
/// byte that no text contains. So `<|end|>` in an answer's string is plain text, and is never
/// generated as the token.
pub(crate) struct Vocabulary {
    trie: TokTrie,
    end_tokens: Arc<[TokenId]>,
}

impl Vocabulary {
    /// The vocabulary of a model of `vocab_size` tokens; those without a text are never allowed.
    ///
    /// # Errors
    /// There is no end token.
    pub(crate) fn new(text: &TextModel, vocab_size: usize) -> Result<Self, GrammarError> {
        let size = u32::try_from(vocab_size).map_err(|_| GrammarError::Bug)?;
        let end_tokens: Arc<[TokenId]> =
            text.eos_token_ids().iter().copied().filter(|&id| id < size).collect();
        let &first_end = end_tokens.first().ok_or(GrammarError::NoEndToken)?;
        let mut words = vec![Vec::new(); vocab_size];
        let mut byte_tokens = Vec::new();
        for (id, word) in (0..size).zip(&mut words) {
            let Some(name) = text.token(id) else { continue };
            if text.is_special(id) || end_tokens.contains(&id) {
                word.push(TokTrie::SPECIAL_TOKEN_MARKER);
                word.extend_from_slice(name.as_bytes());
            } else {
                *word = text.token_text(id).bytes;
                if name.starts_with("<0x") && word.len() == 1 {
                    byte_tokens.push(id);
                }
            }
        }
        keep_one_of_each(&mut words, &byte_tokens);
        let trie = TokTrie::from(&TokRxInfo::new(size, first_end), &words);
        Ok(Self { trie: trie.with_eos_tokens(&end_tokens), end_tokens })
    }

    /// As the compiler takes it.
    pub(crate) fn into_env(self) -> (TokEnv, Arc<[TokenId]>) {
        let end_tokens = Arc::clone(&self.end_tokens);
        (Arc::new(self), end_tokens)
    }
}

/// The trie has one token for each text. Of those with the same text the first is kept, but a
/// token for one byte (`<0x41>`) gives way to the one that models were trained with (`A`).
fn keep_one_of_each(words: &mut [Vec<u8>], byte_tokens: &[TokenId]) {
    let mut seen: HashMap<&[u8], usize> = HashMap::with_capacity(words.len());
    let mut dropped = Vec::new();
    let is_byte = |id: &usize| byte_tokens.binary_search(&(*id as TokenId)).is_ok();
    let (bytes, others): (Vec<_>, Vec<_>) =
        (0..words.len()).filter(|&id| !words[id].is_empty()).partition(is_byte);
    for id in others.into_iter().chain(bytes) {
        if seen.insert(&words[id], id).is_some() {
            dropped.push(id);
        }
    }
    dropped.into_iter().for_each(|id| words[id].clear());
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The longest token at each place. Masks do not rest on it: see
    /// `tokenize_is_canonical`.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(bytes)
    }

    /// What the grammar forces is not tokenized for the model: every token that agrees with it
    /// is allowed, and the model chooses as it was trained to.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_tokens_with_one_text_a_byte_gives_way_to_others() {
        let mut words = [&b"A"[..], b"x", b"A", b"x", b"", b"B"].map(<[u8]>::to_vec);
        keep_one_of_each(&mut words, &[0, 5]);
        assert_eq!(words, [&b""[..], b"x", b"A", b"", b"", b"B"].map(<[u8]>::to_vec));
    }
}
