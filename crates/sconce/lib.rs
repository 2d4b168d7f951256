//! Embeds Sconce.
