//! Gates and what they gate, already computed.
#![expect(unsafe_code, reason = "tasks write disjoint rows of the output")]

use super::{Activation, ensure};
use crate::{
    KernelError,
    cpu::{self, Cpu, CpuBuffer, LANES, SharedMut},
};

/// The scratch of [`super::Ops::linear_gated`] where it is composed.
///
/// # Errors
/// There is none.
pub(crate) fn needed_scratch<B>(scratch: Option<&mut B>) -> Result<&mut B, KernelError> {
    scratch.ok_or_else(|| KernelError::Shape {
        op: "linear_gated",
        what: "scratch",
        got: "none".to_owned(),
        expected: "of as many columns as the weight has rows".to_owned(),
    })
}

pub(crate) fn gated(
    cpu: &Cpu,
    rows: usize,
    activation: Activation,
    x: &CpuBuffer,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "gated";
    let intermediate = out.cols();
    x.check(OP, "x", rows, 2 * intermediate)?;
    out.check(OP, "out", rows, intermediate)?;
    let fits = intermediate.is_multiple_of(LANES);
    ensure(fits, OP, "columns", || intermediate.to_string(), || "a multiple of 16".to_owned())?;
    let out = SharedMut::new(out.rows_mut(rows));
    cpu.pool.run(rows, &|_, row| {
        let (gate, up) = x.row(row).split_at(intermediate);
        // SAFETY: each task has its own row.
        let out = unsafe { out.slice(row * intermediate, intermediate) };
        match activation {
            Activation::Silu => cpu::silu_mul(cpu.isa, gate, up, out),
            Activation::GeluTanh => cpu::gelu_mul(cpu.isa, gate, up, out),
        }
    });
    Ok(())
}
