//! The tests of `crates/scheduler`, in one binary.

mod admission;
mod fairness;
mod scenarios;
mod simulation;
