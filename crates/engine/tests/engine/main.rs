//! The tests of `crates/engine`, in one binary.

mod engine;
mod tenants;
