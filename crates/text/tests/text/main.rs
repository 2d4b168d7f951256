//! The tests of `crates/text`, in one binary.

mod answer;
mod decoders;
mod detokenizer;
mod encoder;
mod ends;
mod properties;
mod stops;
mod templates;
mod tokenizer_file;
mod tokenizers;
