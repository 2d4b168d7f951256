//! The tests of `crates/engine`, in one binary.

mod admission;
mod engine;
mod tenants;
