//! The tests of `crates/scheduler`, in one binary.

mod admission;
mod bills;
mod fairness;
mod scenarios;
mod simulation;
