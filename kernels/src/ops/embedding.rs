//! Rows of a table by token, and rows of activations by index.
#![expect(unsafe_code, reason = "tasks write disjoint rows of the output")]

use std::ops::Range;

use crate::{
    KernelError,
    cpu::{Cpu, CpuBuffer, CpuStep, PackedMatrix, PanelDtype, SharedMut, bf16_bits},
};

pub(crate) fn embedding_gather(
    cpu: &Cpu,
    step: &CpuStep,
    table: &PackedMatrix,
    scale: f32,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "embedding_gather";
    let (rows, hidden) = (step.sizes.num_tokens, table.k());
    out.check(OP, "out", rows, hidden)?;
    step.sizes.check_tokens(OP, table.n())?;
    let scale = match table.dtype() {
        PanelDtype::Bf16 => f32::from_bits(u32::from(bf16_bits(scale)) << 16),
        PanelDtype::F32 | PanelDtype::Int8 => scale,
    };
    let out = SharedMut::new(out.rows_mut(rows));
    cpu.pool.run(rows, &|_, row| {
        // SAFETY: each task has its own row.
        let out = unsafe { out.slice(row * hidden, hidden) };
        table.read_row(cpu.isa, step.plan.token_ids[row] as usize, out);
        if scale != 1.0 {
            out.iter_mut().for_each(|x| *x *= scale);
        }
    });
    Ok(())
}

pub(crate) fn gather_rows(
    step: &CpuStep,
    range: Range<usize>,
    x: &CpuBuffer,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "gather_rows";
    check_logit_rows(step.plan.logit_rows.len(), &range)?;
    let rows = &step.plan.logit_rows[range];
    out.check(OP, "out", rows.len(), x.cols())?;
    x.check(OP, "x", step.sizes.num_tokens, x.cols())?;
    for (out, &row) in out.rows_mut(rows.len()).chunks_exact_mut(x.cols()).zip(rows) {
        out.copy_from_slice(x.row(row as usize));
    }
    Ok(())
}

/// An error unless a range is one of the `len` rows that get logits.
pub(crate) fn check_logit_rows(len: usize, range: &Range<usize>) -> Result<(), KernelError> {
    if range.start <= range.end && range.end <= len {
        return Ok(());
    }
    Err(KernelError::Shape {
        op: "gather_rows",
        what: "the rows that get logits",
        got: format!("{range:?}"),
        expected: format!("a range of the step's {len}"),
    })
}
