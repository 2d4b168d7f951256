//! `allowed_token_ids` and `bad_words`: tokens that a request may not generate, beside whatever
//! else bounds it.

use std::sync::Arc;

use sconce_engine::TokenConstraint;
use sconce_text::TextModel;
use sconce_types::TokenId;

use crate::error::ApiError;

/// Most entries of `bad_words`.
const MAX_BAD_WORDS: usize = 256;
/// Most tokens of one of them.
const MAX_BAD_WORD_TOKENS: usize = 32;

/// What a request's two fields say, checked.
#[derive(Clone, Debug)]
pub(crate) struct TokenLimits {
    /// A mask of the vocabulary's tokens.
    allowed: Option<Arc<[u32]>>,
    /// Sequences of tokens whose last may not follow the others.
    bad: Arc<[Vec<TokenId>]>,
}

impl TokenLimits {
    /// # Errors
    /// An empty list, a token id outside the vocabulary, a word that is empty or too long.
    pub(crate) fn new(
        text: &TextModel,
        vocab_size: usize,
        allowed: Option<Vec<TokenId>>,
        bad_words: Option<Vec<String>>,
    ) -> Result<Option<Self>, ApiError> {
        let bad_words = bad_words.unwrap_or_default();
        if allowed.is_none() && bad_words.is_empty() {
            return Ok(None);
        }
        let allowed = allowed.map(|tokens| mask(vocab_size, &tokens)).transpose()?;
        if bad_words.len() > MAX_BAD_WORDS {
            let message =
                format!("bad_words has {} entries, but at most {MAX_BAD_WORDS}", bad_words.len());
            return Err(ApiError::invalid(Some("bad_words"), message + " are accepted"));
        }
        let mut bad = Vec::new();
        for (index, word) in bad_words.iter().enumerate() {
            // As at the beginning of a text, and after a space.
            for spelled in [word.trim_start().to_owned(), format!(" {}", word.trim_start())] {
                let tokens = text.encode_within(&spelled, false, MAX_BAD_WORD_TOKENS);
                let tokens = tokens.map_err(|_| refused(index, word))?;
                if tokens.is_empty() || word.trim().is_empty() {
                    return Err(refused(index, word));
                }
                if !bad.contains(&tokens) {
                    bad.push(tokens);
                }
            }
        }
        Ok(Some(Self { allowed, bad: bad.into() }))
    }

    /// A constraint that keeps to these limits and to another's.
    pub(crate) fn around(
        &self,
        inner: Option<Box<dyn TokenConstraint>>,
    ) -> Box<dyn TokenConstraint> {
        Box::new(Limited { limits: self.clone(), last: Vec::new(), inner })
    }
}

fn mask(vocab_size: usize, tokens: &[TokenId]) -> Result<Arc<[u32]>, ApiError> {
    let refuse = |message: String| Err(ApiError::invalid(Some("allowed_token_ids"), message));
    if tokens.is_empty() {
        return refuse("allowed_token_ids is an empty list, which allows no token".to_owned());
    }
    let mut words = vec![0; vocab_size.div_ceil(32)];
    for (index, &token) in tokens.iter().enumerate() {
        if token as usize >= vocab_size {
            return refuse(format!(
                "allowed_token_ids[{index}] is {token}, but must be below the vocabulary's size, \
                 {vocab_size}"
            ));
        }
        words[token as usize / 32] |= 1 << (token % 32);
    }
    Ok(words.into())
}

fn refused(index: usize, word: &str) -> ApiError {
    let shown: String = word.chars().take(40).collect();
    let message = format!(
        "bad_words[{index}] is {shown:?}, but must be text of at most {MAX_BAD_WORD_TOKENS} tokens \
         that is more than spaces"
    );
    ApiError::invalid(Some("bad_words"), message)
}

/// A request under [`TokenLimits`].
struct Limited {
    limits: TokenLimits,
    /// The tokens generated last, as many as a bad word may have before its last.
    last: Vec<TokenId>,
    inner: Option<Box<dyn TokenConstraint>>,
}

impl TokenConstraint for Limited {
    fn fill_mask(&mut self, words: &mut [u32]) -> bool {
        match &mut self.inner {
            None => words.fill(u32::MAX),
            Some(inner) => {
                if !inner.fill_mask(words) {
                    return false;
                }
            }
        }
        if let Some(allowed) = &self.limits.allowed {
            for (word, allowed) in words.iter_mut().zip(allowed.iter()) {
                *word &= allowed;
            }
        }
        for bad in self.limits.bad.iter() {
            let Some((&token, before)) = bad.split_last() else { continue };
            if self.last.ends_with(before)
                && let Some(word) = words.get_mut(token as usize / 32)
            {
                *word &= !(1 << (token % 32));
            }
        }
        true
    }

    fn accept(&mut self, token: TokenId) {
        if self.last.len() == MAX_BAD_WORD_TOKENS {
            self.last.remove(0);
        }
        self.last.push(token);
        if let Some(inner) = &mut self.inner {
            inner.accept(token);
        }
    }

    fn failure(&self) -> Option<String> {
        self.inner.as_ref().and_then(|inner| inner.failure())
    }
}
