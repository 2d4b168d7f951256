//! One file an operation: its operands' checks and its CPU form; the CUDA form is the
//! `.cu` file of the same stem.

pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod paged_attention;
pub(crate) mod rms_norm;
pub(crate) mod rope_and_cache;
pub mod sampling;

use crate::KernelError;

/// A shape error, unless `ok`.
fn ensure(
    ok: bool,
    op: &'static str,
    what: &'static str,
    got: impl FnOnce() -> String,
    expected: impl FnOnce() -> String,
) -> Result<(), KernelError> {
    if ok { Ok(()) } else { Err(KernelError::Shape { op, what, got: got(), expected: expected() }) }
}
