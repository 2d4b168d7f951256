//! The tests of `crates/scheduler`, in one binary.

mod fairness;
mod scenarios;
mod simulation;
