//! The engine thread: scheduler and executor behind a handle.
