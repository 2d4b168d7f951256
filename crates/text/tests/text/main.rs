//! The tests of `crates/text`, in one binary.

mod properties;
mod templates;
mod tokenizer_file;
