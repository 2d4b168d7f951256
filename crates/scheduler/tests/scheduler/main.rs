//! The tests of `crates/scheduler`, in one binary.

mod bills;
mod fairness;
mod scenarios;
mod simulation;
