//! Root-mean-square normalisation of rows.
#![expect(unsafe_code, reason = "tasks write disjoint rows of the output")]

use super::ensure;
use crate::{
    KernelError,
    cpu::{self, Cpu, CpuBuffer, SharedMut},
};

/// Norms rows of `x`, into `out` or, with `add`, on top of what is there.
pub(crate) fn rms_norm(
    cpu: &Cpu,
    rows: usize,
    x: &CpuBuffer,
    weight: &[f32],
    eps: f32,
    add: bool,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "rms_norm";
    let hidden = x.cols();
    x.check(OP, "x", rows, hidden)?;
    out.check(OP, "out", rows, hidden)?;
    ensure(
        weight.len() == hidden,
        OP,
        "weight",
        || format!("[{}]", weight.len()),
        || format!("[{hidden}]"),
    )?;
    let out = SharedMut::new(out.rows_mut(rows));
    cpu.pool.run(rows, &|_, row| {
        // SAFETY: each task has its own row.
        let out = unsafe { out.slice(row * hidden, hidden) };
        if add {
            cpu::rms_norm_add(cpu.isa, x.row(row), weight, eps, out);
        } else {
            cpu::rms_norm(cpu.isa, x.row(row), weight, eps, out);
        }
    });
    Ok(())
}
