//! The tests of `crates/server`, in one binary.

mod access_log;
mod api;
mod app;
mod batches;
mod bills;
mod clients;
mod embeddings;
mod faults;
mod fields;
mod http2;
mod keys;
mod live;
mod messages;
mod page;
mod reload;
mod responses;
mod scores;
mod script;
mod structured;
mod templates;
mod tenants;
mod text;
mod token_fields;
mod tools;
mod wire;
mod writer;
