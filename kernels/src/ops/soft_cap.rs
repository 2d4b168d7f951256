//! The cap of logits.
#![expect(unsafe_code, reason = "tasks write disjoint parts of the logits")]

use crate::{
    KernelError,
    cpu::{self, Cpu, CpuBuffer, SharedMut},
};

/// Logits of a task: a vocabulary is long, and rows are few.
const TASK_LOGITS: usize = 8192;

pub(crate) fn soft_cap(
    cpu: &Cpu,
    rows: usize,
    cap: f32,
    logits: &mut CpuBuffer,
) -> Result<(), KernelError> {
    logits.check("soft_cap", "logits", rows, logits.cols())?;
    let len = rows * logits.cols();
    let logits = SharedMut::new(logits.rows_mut(rows));
    cpu.pool.run(len.div_ceil(TASK_LOGITS), &|_, task| {
        let start = task * TASK_LOGITS;
        // SAFETY: each task has its own part.
        let part = unsafe { logits.slice(start, TASK_LOGITS.min(len - start)) };
        cpu::soft_cap(cpu.isa, part, cap);
    });
    Ok(())
}
