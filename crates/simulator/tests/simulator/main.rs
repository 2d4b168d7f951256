//! The tests of `crates/simulator`, in one binary.

mod sharing;
mod traces;
mod world;
