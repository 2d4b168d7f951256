//! The tests of `crates/tenants`, in one binary.

mod edit;
mod file;
mod table;
