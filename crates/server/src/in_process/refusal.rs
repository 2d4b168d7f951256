//! Why a request of the program itself is refused, or failed.

use sconce_engine::{RequestError, SubmitError};
use sconce_grammar::GrammarError;

use crate::error::{ApiError, Cause};

/// Why a request is refused, or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not what it may be.
    #[error("{message}")]
    Invalid {
        /// The field at fault, with its place: `messages[1].calls[0].arguments`.
        field: Option<String>,
        /// What it is, and what would be accepted.
        message: String,
    },
    /// The form that a field asks for cannot be had.
    #[error("{field}: {reason}")]
    Form {
        /// The field.
        field: String,
        /// What is wrong, and where.
        reason: GrammarError,
    },
    /// The engine did not take it.
    #[error(transparent)]
    Submit(SubmitError),
    /// It ended without finishing.
    #[error(transparent)]
    Request(RequestError),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let (field, message, cause) = error.into_parts();
        match cause {
            Some(Cause::Submit(error)) => Self::Submit(error),
            Some(Cause::Request(error)) => Self::Request(error),
            Some(Cause::Grammar(reason)) => {
                Self::Form { field: field.unwrap_or_else(|| "json_schema".to_owned()), reason }
            }
            None => Self::Invalid { field, message },
        }
    }
}
