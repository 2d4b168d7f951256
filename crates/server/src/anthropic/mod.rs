//! Anthropic's Messages API.

pub(crate) mod answer;
mod content;
pub(crate) mod error;
pub(crate) mod messages;
mod tools;
