//! Embeds Sconce.

pub mod hub;
