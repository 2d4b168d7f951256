//! What encoders compute beside [`Ops`]: tables of learned rows, LayerNorm, GELU, and
//! attention in both directions within each sequence of a step, without a cache.
#![expect(unsafe_code, reason = "tasks write disjoint rows or columns of the output")]

use super::{Ops, ensure};
use crate::{
    Backend, KernelError,
    cpu::{self, Cpu, CpuBuffer, CpuStep, PackedMatrix, SharedMut},
};

/// Which row of a table a row of the step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableRow {
    /// That of its position.
    Position,
    /// The same for all.
    Same(u32),
}

/// A device that computes encoders. The rule of [`Ops`] holds: an output row depends on its
/// own sequence only, and is summed in an order that depends on that sequence's length alone.
pub trait EncoderOps: Ops {
    /// `out[r] += table[row of r]` for every row of the step.
    ///
    /// `table [n, hidden]`, `out [num_tokens, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit, a row outside the table.
    fn table_add(
        &mut self,
        step: &Self::Step,
        row: TableRow,
        table: &Self::Matrix,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// LayerNorm (Ba et al., 2016):
    /// `out[r] = (x[r] - mean(x[r])) / sqrt(var(x[r]) + eps) * weight + bias`, with the
    /// biased variance.
    ///
    /// `x`, `out [rows, hidden]`, `weight`, `bias [hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn layer_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        params: (&Self::Vector, &Self::Vector, f32),
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;

    /// GELU (Hendrycks and Gimpel, 2016) in its exact form, in place:
    /// `x = x / 2 * (1 + erf(x / sqrt(2)))`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn gelu(&mut self, rows: usize, x: &mut Self::Buffer) -> Result<(), KernelError>;

    /// Attention in which every row of a sequence sees all of the sequence's rows in this
    /// step, and no other's, with scores over `sqrt(head_dim)`.
    ///
    /// `qkv [num_tokens, 3 * num_heads * head_dim]`: Q, K and V end to end,
    /// `out [num_tokens, num_heads * head_dim]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    fn full_attention(
        &mut self,
        step: &Self::Step,
        num_heads: usize,
        qkv: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), KernelError>;
}

/// All that an encoder runs on.
pub trait EncoderBackend: Backend + EncoderOps {}

impl<T: Backend + EncoderOps> EncoderBackend for T {}

impl EncoderOps for Cpu {
    fn table_add(
        &mut self,
        step: &CpuStep,
        row: TableRow,
        table: &PackedMatrix,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "table_add";
        let (rows, hidden) = (step.sizes.num_tokens, table.k());
        out.check(OP, "out", rows, hidden)?;
        match row {
            TableRow::Position => step.sizes.check_positions(OP, table.n())?,
            TableRow::Same(row) => {
                let expected = || format!("below {}", table.n());
                ensure((row as usize) < table.n(), OP, "the row", || row.to_string(), expected)?;
            }
        }
        let out = SharedMut::new(out.rows_mut(rows));
        self.pool.run(rows, &|thread, r| {
            let of_table = match row {
                TableRow::Position => step.plan.positions[r],
                TableRow::Same(row) => row,
            };
            let mut scratch = self.scratch(thread);
            let len = scratch.encoder.len().max(hidden);
            scratch.encoder.resize(len, 0.0);
            let of_table_row = &mut scratch.encoder[..hidden];
            table.read_row(self.isa, of_table as usize, of_table_row);
            // SAFETY: each task has its own row.
            let out = unsafe { out.slice(r * hidden, hidden) };
            out.iter_mut().zip(of_table_row).for_each(|(out, x)| *out += *x);
        });
        Ok(())
    }

    fn layer_norm(
        &mut self,
        rows: usize,
        x: &CpuBuffer,
        (weight, bias, eps): (&Vec<f32>, &Vec<f32>, f32),
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "layer_norm";
        let hidden = x.cols();
        x.check(OP, "x", rows, hidden)?;
        out.check(OP, "out", rows, hidden)?;
        for (what, vector) in [("weight", weight), ("bias", bias)] {
            let got = || format!("[{}]", vector.len());
            ensure(vector.len() == hidden, OP, what, got, || format!("[{hidden}]"))?;
        }
        let out = SharedMut::new(out.rows_mut(rows));
        self.pool.run(rows, &|_, row| {
            // SAFETY: each task has its own row.
            let out = unsafe { out.slice(row * hidden, hidden) };
            cpu::layer_norm(self.isa, x.row(row), weight, bias, eps, out);
        });
        Ok(())
    }

    fn gelu(&mut self, rows: usize, x: &mut CpuBuffer) -> Result<(), KernelError> {
        let cols = x.cols();
        x.check("gelu", "x", rows, cols)?;
        let x = SharedMut::new(x.rows_mut(rows));
        self.pool.run(rows, &|_, row| {
            // SAFETY: each task has its own row.
            cpu::gelu(self.isa, unsafe { x.slice(row * cols, cols) });
        });
        Ok(())
    }

    fn full_attention(
        &mut self,
        step: &CpuStep,
        num_heads: usize,
        qkv: &CpuBuffer,
        out: &mut CpuBuffer,
    ) -> Result<(), KernelError> {
        const OP: &str = "full_attention";
        let (rows, cols) = (step.sizes.num_tokens, out.cols());
        let fits = num_heads > 0 && cols.is_multiple_of(num_heads);
        let expected = || format!("a multiple of {num_heads} heads");
        ensure(fits, OP, "columns of out", || cols.to_string(), expected)?;
        qkv.check(OP, "qkv", rows, 3 * cols)?;
        out.check(OP, "out", rows, cols)?;
        let head_dim = cols / num_heads;
        let out = SharedMut::new(out.rows_mut(rows));
        self.pool.run(step.plan.num_seqs() * num_heads, &|thread, task| {
            let (sequence, head) = (task / num_heads, task % num_heads);
            let rows = step.plan.rows(sequence);
            let at = head * head_dim;
            let qkv = &qkv.rows(rows.end)[rows.start * 3 * cols..];
            let mut scratch = self.scratch(thread);
            let heads = cpu::Head::new(&mut scratch.encoder, qkv, (rows.len(), at, head_dim));
            heads.attend(self.isa, |row, values| {
                // SAFETY: each task has its own rows, and its head's columns of them.
                let out = unsafe { out.slice((rows.start + row) * cols + at, head_dim) };
                out.copy_from_slice(values);
            });
        });
        Ok(())
    }
}
