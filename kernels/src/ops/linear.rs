//! Products of activations with a packed weight.
//!
//! Tasks share out the weight's panels, so each panel is read once a step for
//! all rows; no sum is ever split between threads.
#![expect(
    unsafe_code,
    reason = "tiles read through pointers; tasks write disjoint columns"
)]

use super::ensure;
use crate::{
    Dtype, KernelError,
    cpu::{
        self, ACC_STRIDE, Cpu, CpuBuffer, LANES, MAX_PANELS, MAX_ROWS, PackedMatrix, SharedMut,
        Tile, TileKernels,
    },
};

/// Tasks a thread: enough that one which is put aside can be made up for.
const TASKS_PER_THREAD: usize = 4;

pub(crate) fn linear(
    cpu: &mut Cpu,
    rows: usize,
    x: &CpuBuffer,
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    add: bool,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "linear";
    let (n, k) = (w.n(), w.k());
    x.check(OP, "x", rows, k)?;
    out.check(OP, "out", rows, n)?;
    if let Some(bias) = bias {
        let got = || format!("[{}]", bias.len());
        ensure(bias.len() == n, OP, "bias", got, || format!("[{n}]"))?;
    }
    let (a, a_stride): (*const u8, usize) = match w.dtype() {
        Dtype::F32 => (x.rows(rows).as_ptr().cast(), k * 4),
        Dtype::Bf16 => (round_rows(cpu, rows, x).cast(), w.steps() * 4),
    };
    let input = Input {
        address: a,
        stride: a_stride,
    };
    let kernels = TileKernels::select(cpu.isa, w.dtype());
    let groups = w.num_panels().div_ceil(kernels.best_panels);
    let tasks = groups.min(cpu.pool.num_threads() * TASKS_PER_THREAD);
    let out = SharedMut::new(out.rows_mut(rows));
    cpu.pool.run(tasks, &|_, task| {
        for group in groups * task / tasks..groups * (task + 1) / tasks {
            // SAFETY: `input` has `rows` rows of the weight's k, and each task
            // has its own panels, which are its own columns of `out`.
            unsafe { panel_group(&kernels, rows, &input, w, group, bias, add, &out) };
        }
    });
    Ok(())
}

/// Input rows in the weight's dtype.
struct Input {
    address: *const u8,
    stride: usize,
}

// SAFETY: the rows are only read while tasks run.
unsafe impl Sync for Input {}

/// Rounds the input's rows to bf16, padded to whole steps.
fn round_rows(cpu: &mut Cpu, rows: usize, x: &CpuBuffer) -> *const u16 {
    let k = x.cols();
    let padded = k.next_multiple_of(2);
    if cpu.rounded.len() < rows * padded {
        cpu.rounded.resize(rows * padded, 0);
    }
    let (isa, pool) = (cpu.isa, &cpu.pool);
    let rounded = SharedMut::new(&mut cpu.rounded);
    let rows_per_task = rows.div_ceil(pool.num_threads());
    pool.run(rows.div_ceil(rows_per_task.max(1)), &|_, task| {
        for row in task * rows_per_task..((task + 1) * rows_per_task).min(rows) {
            // SAFETY: each task has its own rows.
            let out = unsafe { rounded.slice(row * padded, padded) };
            cpu::round_to_bf16(isa, x.row(row), &mut out[..k]);
            out[k..].fill(0);
        }
    });
    cpu.rounded.as_ptr()
}

/// Multiplies every row with one group of panels.
///
/// # Safety
/// `input` has `rows` rows of the weight's steps; no other task writes the
/// group's columns of `out`.
#[expect(clippy::too_many_arguments, reason = "the inside of a loop nest")]
unsafe fn panel_group(
    kernels: &TileKernels,
    rows: usize,
    input: &Input,
    w: &PackedMatrix,
    group: usize,
    bias: Option<&[f32]>,
    add: bool,
    out: &SharedMut<'_, f32>,
) {
    let n = w.n();
    let first = group * kernels.best_panels;
    let panels = kernels.best_panels.min(w.num_panels() - first);
    let mut pointers = [std::ptr::null(); MAX_PANELS];
    for (p, pointer) in pointers[..panels].iter_mut().enumerate() {
        *pointer = w.panel(first + p);
    }
    let column = first * LANES;
    let columns = (panels * LANES).min(n - column);
    let mut acc = [0.0_f32; MAX_ROWS * ACC_STRIDE];
    let mut row = 0;
    while row < rows {
        let tile_rows = kernels.best_rows.min(rows - row);
        let tile = Tile {
            // SAFETY: the row is one of the input's.
            a: unsafe { input.address.add(row * input.stride) },
            a_stride: input.stride,
            panels: pointers,
            steps: w.steps(),
            acc: acc.as_mut_ptr(),
            resume: false,
        };
        // SAFETY: the kernels were selected for this processor; the input's rows
        // and the weight's panels have `steps` steps; `acc` has every row and panel.
        unsafe { kernels.run(tile_rows, panels, &tile) };
        for (r, sums) in acc.chunks_exact(ACC_STRIDE).take(tile_rows).enumerate() {
            // SAFETY: this task's columns of one row.
            let out = unsafe { out.slice((row + r) * n + column, columns) };
            store(
                &sums[..columns],
                bias.map(|bias| &bias[column..column + columns]),
                add,
                out,
            );
        }
        row += tile_rows;
    }
}

fn store(sums: &[f32], bias: Option<&[f32]>, add: bool, out: &mut [f32]) {
    match (bias, add) {
        (None, false) => out.copy_from_slice(sums),
        (None, true) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
        (Some(bias), _) => {
            for ((out, &sum), &bias) in out.iter_mut().zip(sums).zip(bias) {
                *out = if add { *out + (sum + bias) } else { sum + bias };
            }
        }
    }
}
