//! The tests of `crates/engine`, in one binary.

mod bills;
mod engine;
mod tenants;
