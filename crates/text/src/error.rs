//! What can go wrong with text.

use std::path::PathBuf;

/// An error of the tokenizer or the chat template.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the model directory is missing or unreadable.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What does not fit, and where.
        reason: String,
    },
    /// The tokenizer has tokens that the model has not.
    #[error(
        "the tokenizer does not fit the model: it has token id {largest_token}, but the model's \
         vocabulary has {vocab_size} tokens"
    )]
    VocabularyMismatch {
        /// The tokenizer's largest id.
        largest_token: u32,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// The tokenizer refused a text.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    /// A text is longer than it may be.
    #[error("the text has more than {most} tokens, which is what fits at most; shorten it")]
    TooManyTokens {
        /// Tokens that would have been accepted.
        most: usize,
    },
    /// The tokenizer refused token ids.
    #[error("the tokens cannot be turned into text: {0}")]
    Decode(String),
    /// The model has no chat template.
    #[error(
        "the model has no chat template; use /v1/completions, or start the server with \
         --chat-template"
    )]
    NoChatTemplate,
    /// The chat template refused the messages: the client's fault.
    #[error("the chat template refuses these messages: {0}")]
    InvalidMessages(String),
    /// The chat template fails because of `chat_template_kwargs`: without them it
    /// does not.
    #[error("the chat template fails with these chat_template_kwargs: {0}")]
    InvalidTemplateArguments(String),
    /// The chat template failed, or ran longer than it may.
    #[error("the chat template failed: {0}")]
    TemplateFailed(String),
}
