//! One file an operation: its operands' checks, its CPU form, and (with the
//! feature `cuda`) the launch of the `.cu` file of the same stem.

pub mod sampling;
