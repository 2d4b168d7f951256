//! Uploaded files and batches of requests, kept on disk.
//!
//! A [`Store`] is a folder. Each tenant has a folder of its own in it; a file's content and
//! what is known of it lie beside each other, as do a batch's state and the answers that it
//! has so far. Every state is written beside the old one and renamed over it, and an answer is
//! appended whole, so that a process killed at any moment has lost none that it has written:
//! the next one goes on with the requests that have no answer.
//!
//! Nothing here knows HTTP, time or an engine: the caller says what time it is and
//! brings the answers.

mod batch;
mod disk;
mod file;
mod input;
mod results;
mod store;

pub use batch::{Batch, Counts, LineError, LineErrors, Status};
pub use disk::StoreError;
pub use file::{StoredFile, Upload};
pub use input::{Input, Line, MAX_REQUESTS};
pub use results::Answer;
pub use store::{Limits, Page, Run, Store};
