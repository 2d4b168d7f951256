//! The gate of a gated feed-forward layer.
#![expect(unsafe_code, reason = "tasks write disjoint rows of the output")]

use crate::{
    KernelError,
    cpu::{self, Cpu, CpuBuffer, SharedMut},
};

pub(crate) fn silu_mul(
    cpu: &Cpu,
    rows: usize,
    gate_up: &CpuBuffer,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "silu_mul";
    let intermediate = out.cols();
    gate_up.check(OP, "gate_up", rows, 2 * intermediate)?;
    out.check(OP, "out", rows, intermediate)?;
    let out = SharedMut::new(out.rows_mut(rows));
    cpu.pool.run(rows, &|_, row| {
        let (gate, up) = gate_up.row(row).split_at(intermediate);
        // SAFETY: each task has its own row.
        let out = unsafe { out.slice(row * intermediate, intermediate) };
        cpu::silu_mul(cpu.isa, gate, up, out);
    });
    Ok(())
}
