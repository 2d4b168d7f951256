//! Anthropic's Messages API.

pub(crate) mod answer;
pub(crate) mod content;
pub(crate) mod error;
pub(crate) mod messages;
pub(crate) mod tools;
