//! The tests of `crates/server`, in one binary.

mod access_log;
mod api;
mod app;
mod bills;
mod faults;
mod fields;
mod http2;
mod keys;
mod live;
mod page;
mod reload;
mod script;
mod templates;
mod tenants;
mod text;
mod wire;
