//! How a request ended.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::TokenId;

/// How a request ended: in the scheduler's outputs, events, the ledger and recordings. In text
/// it is its [`End::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum End {
    /// An end token of the model (`None`), or one of the request's `stop_token_ids`.
    Stop {
        /// The stop token.
        token: Option<TokenId>,
    },
    /// A check of its tokens that runs beside the scheduler, as that of stop strings.
    StopCheck,
    /// `max_tokens` were generated.
    Length,
    /// Its client went away.
    Abort,
    /// Its deadline passed.
    Deadline,
    /// Its logits were not finite; no token comes with this.
    NonFiniteLogits,
    /// No token was left that it may generate; no token comes with this.
    NothingAllowed,
    /// A step failed, or it could not be run.
    Error,
}

impl End {
    /// Its name in metrics, the ledger and recordings, which tell fewer apart.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop { .. } | Self::StopCheck => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Deadline => "deadline",
            Self::NonFiniteLogits | Self::NothingAllowed | Self::Error => "error",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<End> for &'static str {
    fn from(end: End) -> Self {
        end.name()
    }
}

impl TryFrom<String> for End {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let ends =
            [Self::Stop { token: None }, Self::Length, Self::Abort, Self::Deadline, Self::Error];
        let found = ends.into_iter().find(|end| end.name() == name);
        found.ok_or_else(|| {
            format!("the end is {name:?}, but must be stop, length, abort, deadline or error")
        })
    }
}
