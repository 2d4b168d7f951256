//! The tests of `crates/server`, in one binary.

mod access_log;
mod api;
mod app;
mod bills;
mod clients;
mod conformance;
mod embeddings;
mod faults;
mod fields;
mod http2;
mod keys;
mod live;
mod messages;
mod openapi;
mod page;
mod reference;
mod reload;
mod responses;
mod script;
mod structured;
mod templates;
mod tenants;
mod text;
mod tools;
mod wire;
mod writer;
