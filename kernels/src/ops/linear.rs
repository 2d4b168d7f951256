//! Products of activations with a packed weight.
//!
//! Tasks share out the weight's panels, so each panel is read once a step for
//! all rows; no sum is ever split between threads.
#![expect(unsafe_code, reason = "tiles read through pointers; tasks write disjoint columns")]

use super::ensure;
use crate::{
    KernelError, WeightDtype,
    cpu::{
        self, Cpu, CpuBuffer, Isa, LANES, MAX_COLUMNS, MAX_PANELS, MAX_ROWS, PackedMatrix,
        Prefetch, SharedMut, Tile, TileKernels,
    },
};

/// Input rows of a task at most: a few tiles, so that a narrow weight makes
/// enough tasks of many rows to share them out evenly.
const TASK_ROWS: usize = 48;
/// Up to so many rows the weights' way from memory is what takes the time.
const MEMORY_BOUND_ROWS: usize = 8;
/// How many steps before its use a panel's line is asked for: a few microseconds.
const AHEAD: usize = 32;

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
    let address = match w.dtype() {
        WeightDtype::F32 => x.rows(rows).as_ptr().cast(),
        WeightDtype::Bf16 => round_rows(cpu, rows, x),
        WeightDtype::Int8 => quantize_rows(cpu, rows, x),
    };
    let input = Input { address, stride: w.steps() * 4, scales: &cpu.row_scales };
    let kernels = TileKernels::select(cpu.isa, w.dtype());
    let isa = cpu.isa;
    let threads = cpu.pool.num_threads();
    let (tile_rows, best) = kernels.shape(rows);
    let group = group_size(rows, w.num_panels(), best, threads);
    let groups = w.num_panels().div_ceil(group);
    let chunks = rows.div_ceil(TASK_ROWS);
    let out = SharedMut::new(out.rows_mut(rows));
    cpu.pool.run(groups * chunks, &|_, task| {
        let first_panel = task / chunks * group;
        let first_row = task % chunks * TASK_ROWS;
        let part = Part {
            rows: first_row..(first_row + TASK_ROWS).min(rows),
            tile_rows,
            first_panel,
            panels: group.min(w.num_panels() - first_panel),
            // What this thread will most likely take next.
            next_panel: (task + threads) / chunks * group,
        };
        // SAFETY: `input` has `rows` rows of the weight's k, and each task has
        // its own rows of its own panels, which are its own columns of `out`.
        unsafe { multiply(isa, &kernels, &part, &input, w, bias, add, &out) };
    });
    Ok(())
}

/// Panels of a task: what a tile holds, or somewhat fewer where that gives the
/// threads equal shares of a weight that memory is slow to bring.
fn group_size(rows: usize, num_panels: usize, best: usize, threads: usize) -> usize {
    if rows > MEMORY_BOUND_ROWS {
        return best;
    }
    let share = |group: &usize| num_panels.div_ceil(*group).div_ceil(threads) * group;
    (best.div_ceil(2)..=best).rev().min_by_key(share).unwrap_or(best)
}

/// The part of the product that a task computes.
struct Part {
    rows: std::ops::Range<usize>,
    /// Rows of its tiles.
    tile_rows: usize,
    first_panel: usize,
    panels: usize,
    /// The first panel of a later part, to be brought near.
    next_panel: usize,
}

/// Input rows in the weight's dtype.
struct Input<'a> {
    address: *const u8,
    stride: usize,
    /// In int8, each row's scale.
    scales: &'a [f32],
}

// SAFETY: the rows are only read while tasks run.
unsafe impl Sync for Input<'_> {}

/// Rounds the input's rows to bf16, padded to whole steps.
fn round_rows(cpu: &mut Cpu, rows: usize, x: &CpuBuffer) -> *const u8 {
    let k = x.cols();
    let padded = k.next_multiple_of(2);
    if cpu.rounded.len() < rows * padded / 2 {
        cpu.rounded.resize(rows * padded / 2, 0);
    }
    let (isa, pool) = (cpu.isa, &cpu.pool);
    let rounded = SharedMut::new(bytemuck::cast_slice_mut::<u32, u16>(&mut cpu.rounded));
    let rows_per_task = rows.div_ceil(pool.num_threads());
    pool.run(rows.div_ceil(rows_per_task.max(1)), &|_, task| {
        for row in task * rows_per_task..((task + 1) * rows_per_task).min(rows) {
            // SAFETY: each task has its own rows.
            let out = unsafe { rounded.slice(row * padded, padded) };
            cpu::round_to_bf16(isa, x.row(row), &mut out[..k]);
            out[k..].fill(0);
        }
    });
    cpu.rounded.as_ptr().cast()
}

/// Rotates the input's rows and quantizes them to int8, padded to whole steps; their scales go
/// to `row_scales`.
fn quantize_rows(cpu: &mut Cpu, rows: usize, x: &CpuBuffer) -> *const u8 {
    let k = x.cols();
    let padded = k.next_multiple_of(4);
    if cpu.rounded.len() < rows * padded / 4 {
        cpu.rounded.resize(rows * padded / 4, 0);
    }
    if cpu.row_scales.len() < rows {
        cpu.row_scales.resize(rows, 0.0);
    }
    let (isa, pool, scratch) = (cpu.isa, &cpu.pool, &cpu.scratch);
    let bytes = SharedMut::new(bytemuck::cast_slice_mut::<u32, u8>(&mut cpu.rounded));
    let scales = SharedMut::new(&mut cpu.row_scales);
    let rows_per_task = rows.div_ceil(pool.num_threads());
    pool.run(rows.div_ceil(rows_per_task.max(1)), &|thread, task| {
        let mut scratch = cpu::lock(&scratch[thread]);
        for row in task * rows_per_task..((task + 1) * rows_per_task).min(rows) {
            scratch.rotated.clear();
            scratch.rotated.extend_from_slice(x.row(row));
            cpu::rotate(isa, &mut scratch.rotated);
            // SAFETY: each task has its own rows.
            let out = unsafe { bytes.slice(row * padded, padded) };
            // SAFETY: as above.
            let scale = unsafe { scales.slice(row, 1) };
            // The padding meets zeros of the weight, whatever it holds.
            scale[0] = cpu::quantize_row(isa, &scratch.rotated, &mut out[..k]);
        }
    });
    cpu.rounded.as_ptr().cast()
}

/// Multiplies some rows with some panels.
///
/// # Safety
/// `input` has the part's rows of the weight's steps; no other task writes the
/// part's columns of these rows of `out`.
#[expect(clippy::too_many_arguments, reason = "a product's operands, and how it is computed")]
unsafe fn multiply(
    isa: Isa,
    kernels: &TileKernels,
    part: &Part,
    input: &Input<'_>,
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    add: bool,
    out: &SharedMut<'_, f32>,
) {
    let n = w.n();
    let mut panels = [std::ptr::null(); MAX_PANELS];
    for (p, panel) in panels[..part.panels].iter_mut().enumerate() {
        *panel = w.panel(part.first_panel + p);
    }
    let column = part.first_panel * LANES;
    let columns = (part.panels * LANES).min(n - column);
    let bias = bias.map(|bias| &bias[column..column + columns]);
    // Words: f32, or i32 where the weight is int8.
    let mut acc = [0_u32; MAX_ROWS * MAX_COLUMNS];
    // Where the sums are the output as they are, they go there at once.
    let direct = bias.is_none() && !add && w.int8().is_none() && columns == part.panels * LANES;
    let tiles = part.rows.len().div_ceil(part.tile_rows);
    // The first tile brings the panels from memory; the others find them near,
    // and meanwhile bring the next ones.
    let next_lines = if tiles > 1 { part.panels.div_ceil(tiles) } else { 0 };
    for (index, row) in part.rows.clone().step_by(part.tile_rows).enumerate() {
        let rows = part.tile_rows.min(part.rows.end - row);
        let next_panel = part.next_panel + index * next_lines;
        let has_next = index * next_lines < part.panels && next_panel < w.num_panels();
        let tile = Tile {
            // SAFETY: the row is one of the input's.
            a: unsafe { input.address.add(row * input.stride) },
            a_stride: input.stride,
            panels,
            steps: w.steps(),
            acc: if direct { out.pointer(row * n + column) } else { acc.as_mut_ptr().cast() },
            acc_stride: if direct { n } else { MAX_COLUMNS },
            resume: false,
            prefetch: Prefetch {
                ahead: if index == 0 { AHEAD } else { 0 },
                next: if has_next { w.panel(next_panel) } else { std::ptr::null() },
                next_lines: if has_next { next_lines } else { 0 },
            },
        };
        // SAFETY: the kernels were selected for this processor; the input's rows
        // and the weight's panels have `steps` steps; `acc` has every row and
        // panel, and so has the output, where they are this task's own.
        unsafe { kernels.run(rows, part.panels, &tile) };
        if direct {
            continue;
        }
        for (r, sums) in acc.chunks_exact_mut(MAX_COLUMNS).take(rows).enumerate() {
            if let Some(int8) = w.int8() {
                let columns = int8.columns(part.first_panel, part.panels);
                cpu::dequantize(isa, sums, columns, input.scales[row + r]);
            }
            let sums = bytemuck::cast_slice(&sums[..columns]);
            // SAFETY: this task's columns of one of its rows.
            let out = unsafe { out.slice((row + r) * n + column, columns) };
            store(sums, bias, add, out);
        }
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
