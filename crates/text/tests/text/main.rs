//! The tests of `crates/text`, in one binary.

mod encoder;
mod properties;
