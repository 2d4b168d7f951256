//! The tests of `crates/server`, in one binary.

mod api;
mod bills;
mod faults;
mod templates;
mod tenants;
