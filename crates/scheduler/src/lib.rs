//! Continuous batching and the paged KV block pool as pure state machines.
