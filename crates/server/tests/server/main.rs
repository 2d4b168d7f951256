//! The tests of `crates/server`, in one binary.

mod access_log;
mod api;
mod app;
mod faults;
mod fields;
mod keys;
mod reload;
mod tenants;
