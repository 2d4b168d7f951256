//! The tests of `crates/engine`, in one binary.

mod admission;
mod bills;
mod engine;
mod tenants;
