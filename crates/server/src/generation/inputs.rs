//! What completions and embeddings are made of.

use sconce_types::TokenId;
use serde::Deserialize;
use utoipa::ToSchema;

/// One text or several, as text or as token ids.
#[derive(Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "a string, a list of strings, a list of token ids, or a list of such lists"
)]
pub(crate) enum Inputs {
    Text(String),
    Tokens(#[schema(inline)] Vec<TokenId>),
    Texts(Vec<String>),
    TokenLists(#[schema(inline)] Vec<Vec<TokenId>>),
}

impl Inputs {
    /// Texts or lists of tokens.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(_) | Self::Tokens(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::TokenLists(lists) => lists.len(),
        }
    }
}
