//! Rows of a table by token, and rows of activations by index.
#![expect(unsafe_code, reason = "tasks write disjoint rows of the output")]

use super::ensure;
use crate::{
    ForwardBatch, KernelError,
    cpu::{Cpu, CpuBuffer, PackedMatrix, SharedMut},
};

pub(crate) fn embedding_gather(
    cpu: &Cpu,
    batch: &ForwardBatch,
    table: &PackedMatrix,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "embedding_gather";
    let (rows, hidden) = (batch.num_tokens(), table.k());
    out.check(OP, "out", rows, hidden)?;
    let largest = batch.token_ids.iter().copied().max().unwrap_or(0) as usize;
    ensure(
        largest < table.n(),
        OP,
        "a token id",
        || largest.to_string(),
        || format!("below the vocabulary of {}", table.n()),
    )?;
    let out = SharedMut::new(out.rows_mut(rows));
    cpu.pool.run(rows, &|_, row| {
        // SAFETY: each task has its own row.
        let out = unsafe { out.slice(row * hidden, hidden) };
        table.read_row(cpu.isa, batch.token_ids[row] as usize, out);
    });
    Ok(())
}

pub(crate) fn gather_rows(
    rows: &[u32],
    x: &CpuBuffer,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "gather_rows";
    out.check(OP, "out", rows.len(), x.cols())?;
    let largest = rows.iter().copied().max().unwrap_or(0) as usize;
    x.check(OP, "x", if rows.is_empty() { 0 } else { largest + 1 }, x.cols())?;
    for (out, &row) in out.rows_mut(rows.len()).chunks_exact_mut(x.cols()).zip(rows) {
        out.copy_from_slice(x.row(row as usize));
    }
    Ok(())
}
