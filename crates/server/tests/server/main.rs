//! The tests of `crates/server`, in one binary.

mod api;
mod faults;
mod tenants;
mod wire;
