//! The tests of `crates/server`, in one binary.

mod api;
mod bills;
mod faults;
mod script;
mod templates;
mod tenants;
mod text;
mod wire;
