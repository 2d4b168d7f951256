//! The events of a streamed response.

use super::response::Answer;
use crate::{
    error::ApiError,
    generation::{
        choice::Delta,
        stream::{Chunks, Events},
    },
};

pub(super) struct ResponseChunks(Answer);

impl ResponseChunks {
    pub(super) fn new(answer: Answer) -> Self {
        Self(answer)
    }
}

impl Chunks for ResponseChunks {
    fn open(&mut self, out: &mut Events) {
        self.0.begin(out);
    }

    fn delta(&mut self, _: usize, delta: Delta, out: &mut Events) {
        self.0.take(delta, out);
    }

    /// The last event came with the last delta.
    fn close(&mut self, _: &mut Events) {}

    fn fail(&mut self, error: &ApiError, out: &mut Events) {
        self.0.fail(error, out);
    }
}
