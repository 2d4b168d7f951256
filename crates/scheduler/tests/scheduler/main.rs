//! The tests of `crates/scheduler`, in one binary.

mod admission;
mod bills;
mod fairness;
mod kept_schedule;
mod scenarios;
mod simulation;
