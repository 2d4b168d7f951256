//! What could not be written yet.

use std::collections::BTreeMap;

use sconce_types::{MeterEntry, RequestId};

/// Requests whose newest entry is kept while nothing can be written: some 20 MB where
/// request ids have a hundred bytes.
pub(crate) const MAX_HELD: usize = 65_536;

/// The newest entry of each request; usually empty.
#[derive(Debug, Default)]
pub(crate) struct Held(BTreeMap<RequestId, MeterEntry>);

impl Held {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes entries; returns how many there was no room for.
    pub(crate) fn add(&mut self, entries: &mut Vec<MeterEntry>) -> usize {
        let mut lost = 0;
        for entry in entries.drain(..) {
            if let Some(held) = self.0.get_mut(&entry.request) {
                held.label = held.label.take().or(entry.label);
                held.usage = entry.usage;
                held.price_nano = entry.price_nano;
                held.end = entry.end.or(held.end);
            } else if self.0.len() < MAX_HELD {
                self.0.insert(entry.request, entry);
            } else {
                lost += 1;
            }
        }
        lost
    }

    /// So many of them, in a fixed order.
    pub(crate) fn first(&self, most: usize) -> impl Iterator<Item = &MeterEntry> + Clone {
        self.0.values().take(most)
    }

    /// Forgets as many, which are written.
    pub(crate) fn forget(&mut self, most: usize) {
        for _ in 0..most {
            self.0.pop_first();
        }
    }

    /// Moves all to the end of a batch.
    pub(crate) fn move_to(&mut self, batch: &mut Vec<MeterEntry>) {
        batch.extend(std::mem::take(&mut self.0).into_values());
    }
}
