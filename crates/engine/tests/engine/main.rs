//! The tests of `crates/engine`, in one binary.

mod admission;
mod bills;
mod engine;
mod not_ready;
mod simulation;
mod tenants;
mod times;
