//! What rendering may make: text, lists and the prompt, by their size in bytes.
//!
//! minijinja's fuel counts instructions, of which one can double a text. A rendering stays
//! on one thread, so its budget is a thread's. Spending never fails, so that it can stand
//! anywhere; filters, methods and output check afterwards and end the rendering.

use std::cell::Cell;

use minijinja::{Error, ErrorKind, Value};

/// Bytes of one entry of a list: the value and its allocation.
const ENTRY: usize = 64;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The chat template made more than it may.
#[derive(Debug, thiserror::Error)]
#[error("the chat template makes too much text")]
pub(super) struct TooLarge;

/// Runs a rendering that may make so many bytes.
pub(super) fn within<T>(bytes: usize, render: impl FnOnce() -> T) -> T {
    /// Gives the thread's budget back, after a panic too.
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            LEFT.set(self.0);
        }
    }
    let _restore = Restore(LEFT.replace(bytes));
    render()
}

/// Bytes that may still be made.
pub(super) fn left() -> usize {
    LEFT.get()
}

/// Counts bytes that were made; beyond the budget nothing is left.
pub(super) fn spend(bytes: usize) {
    LEFT.set(left().saturating_sub(bytes));
}

/// Counts so many entries of a list.
pub(super) fn spend_entries(count: usize) {
    spend(count.saturating_mul(ENTRY));
}

/// Fails once the budget is spent.
pub(super) fn check() -> Result<(), Error> {
    if left() > 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidOperation, TooLarge.to_string()).with_source(TooLarge))
}

/// Fails, before they are made, where so many bytes are more than is left.
pub(super) fn reserve(bytes: usize) -> Result<(), Error> {
    spend(bytes);
    check()
}

/// The same for the size of a value that is made or walked over.
pub(super) fn reserve_value(value: &Value) -> Result<(), Error> {
    reserve(match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(0).saturating_mul(ENTRY),
    })
}
