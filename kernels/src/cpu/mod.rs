//! The CPU form of every operation.
