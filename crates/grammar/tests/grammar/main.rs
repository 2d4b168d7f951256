//! The tests of `crates/grammar`, in one binary.

mod hostile;
mod masks;
mod models;
mod refused;
mod suite;
mod unions;
mod walks;
