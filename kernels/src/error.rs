//! Why an operation was refused or failed.

/// An error of the operations.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Operands that do not fit each other.
    #[error("{op}: {what} is {got}, but must be {expected}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The operand or dimension.
        what: &'static str,
        /// What it is.
        got: String,
        /// What would be accepted.
        expected: String,
    },
    /// A tensor's element type that cannot be packed.
    #[error("{op}: dtype {got:?} is not supported; f32, bf16 and f16 are")]
    Dtype {
        /// The operation.
        op: &'static str,
        /// The dtype given.
        got: candle_core::DType,
    },
    /// Something that this device does not do.
    #[error("{what} is not supported on {device}; {accepted}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// The kind of device.
        device: &'static str,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// There is no such device here, or no driver for one.
    #[error("no CUDA device: {reason}")]
    NoDevice {
        /// What is missing.
        reason: String,
    },
    /// The device failed.
    #[error("{op}: the device failed: {reason}")]
    Device {
        /// What was asked of it.
        op: String,
        /// The driver's reason.
        reason: String,
        /// Whether nothing can be computed any more in this process.
        sticky: bool,
    },
    /// The device has no room.
    #[error("out of memory: {bytes} bytes for {what}")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Its size.
        bytes: usize,
    },
    /// candle could not read or move a tensor.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
