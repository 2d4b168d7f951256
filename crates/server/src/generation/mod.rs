//! One generation, whatever the wire: what is asked for, and the deltas that come of it.
//! The wire formats (`openai`, `anthropic`) read their requests into these types and write
//! their answers and errors from them; so does `in_process`, for programs that have no wire.

pub(crate) mod answers;
pub(crate) mod bound_calls;
pub(crate) mod choice;
pub(crate) mod conversation;
mod decoder;
pub(crate) mod encoder;
mod formed;
pub(crate) mod generator;
pub(crate) mod inputs;
pub(crate) mod settings;
pub(crate) mod stream;
pub(crate) mod structure;
pub(crate) mod structure_fields;
mod thought_budget;
mod token_limits;
pub(crate) mod tools;
pub(crate) mod usage;
