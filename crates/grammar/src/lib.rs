//! What an answer must look like: JSON of a schema, a regular expression, a choice, a
//! context-free grammar. [`Grammars`] compiles a [`Source`] to a [`Grammar`], of which each
//! answer has a [`Constraint`] of its own: masks of the tokens that may come next.
//!
//! What a source says is enforced in full, or refused with its place. End tokens are allowed
//! exactly where the grammar may end. The work is llguidance's: lexemes by derivatives of
//! regular expressions, over them an Earley parser, and masks by walking a trie of the
//! vocabulary.

mod constraint;
mod error;
mod formats;
mod grammars;
mod lark;
mod mask_threads;
mod schema;
mod source;
mod structural_tag;
mod vocabulary;

pub use constraint::Constraint;
pub use error::GrammarError;
pub use grammars::{Grammar, GrammarConfig, Grammars};
pub use schema::check as check_schema;
pub use source::Source;
