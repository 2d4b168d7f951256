//! Products of activations with a packed weight.
//!
//! Tasks share out the weight's panels, so each panel is read once a step for
//! all rows; no sum is ever split between threads.
#![expect(unsafe_code, reason = "tiles read through pointers; tasks write disjoint columns")]

use std::ops::Range;

use super::{Activation, ensure};
use crate::{
    KernelError,
    cpu::{
        self, Cpu, CpuBuffer, Isa, LANES, MAX_COLUMNS, MAX_PANELS, MAX_ROWS, PackedMatrix,
        PanelDtype, Prefetch, SharedMut, Tile, TileKernels,
    },
};

/// Input rows of a task at most: a few tiles, so that a narrow weight makes
/// enough tasks of many rows to share them out evenly.
pub(super) const TASK_ROWS: usize = 48;
/// Up to so many rows the weights' way from memory is what takes the time.
const MEMORY_BOUND_ROWS: usize = 8;
/// How many steps before its use a panel's line is asked for: a few microseconds.
const AHEAD: usize = 32;

/// What becomes of a row's sums.
#[derive(Clone, Copy)]
pub(super) enum Epilogue {
    /// They are the output.
    Store,
    /// They are added to it.
    Add,
    /// They are gates, then as many inputs: a gated unit of them is the output.
    Gated(Activation),
}

pub(crate) fn linear(
    cpu: &mut Cpu,
    rows: usize,
    x: &CpuBuffer,
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    add: bool,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    let epilogue = if add { Epilogue::Add } else { Epilogue::Store };
    product("linear", cpu, rows, x, w, bias, epilogue, out)
}

/// The gates' panels and those of what they gate are taken together, so that a
/// task has both at hand when it is done.
pub(crate) fn linear_gated(
    cpu: &mut Cpu,
    rows: usize,
    x: &CpuBuffer,
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    activation: Activation,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "linear_gated";
    // Halves of whole panels; every model's are.
    let fits = w.n().is_multiple_of(2 * LANES);
    ensure(fits, OP, "rows of w", || w.n().to_string(), || format!("a multiple of {}", 2 * LANES))?;
    product(OP, cpu, rows, x, w, bias, Epilogue::Gated(activation), out)
}

#[expect(clippy::too_many_arguments, reason = "a product's operands, and what becomes of it")]
fn product(
    op: &'static str,
    cpu: &mut Cpu,
    rows: usize,
    x: &CpuBuffer,
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    let (n, k) = (w.n(), w.k());
    // Panels are shared out in pairs where sums are finished in pairs.
    let halves = if matches!(epilogue, Epilogue::Gated(_)) { 2 } else { 1 };
    x.check(op, "x", rows, k)?;
    out.check(op, "out", rows, n / halves)?;
    if let Some(bias) = bias {
        let got = || format!("[{}]", bias.len());
        ensure(bias.len() == n, op, "bias", got, || format!("[{n}]"))?;
    }
    let kernels = TileKernels::select(cpu.isa, w.dtype());
    let address = match w.dtype() {
        PanelDtype::F32 => x.rows(rows).as_ptr().cast(),
        _ => rows_of_weight(cpu, rows, w, &kernels, &|row| x.row(row)),
    };
    let stride = w.steps() * kernels.row_step();
    let input = Input { address, stride, scales: &cpu.row_scales };
    let threads = cpu.pool.num_threads();
    let num_panels = w.num_panels() / halves;
    let chunks = rows.div_ceil(TASK_ROWS);
    let chunk_rows = rows.div_ceil(chunks.max(1));
    let (tile_rows, best) = kernels.shape(chunk_rows);
    let group = group_size(rows, num_panels, (best / halves).max(1), threads);
    let groups = num_panels.div_ceil(group);
    let product = Product {
        isa: cpu.isa,
        kernels,
        input,
        w,
        bias,
        epilogue,
        num_panels,
        halves,
        out_cols: out.cols(),
        out: SharedMut::new(out.rows_mut(rows)),
    };
    cpu.pool.run(groups * chunks, &|_, task| {
        let first_row = (task % chunks * chunk_rows).min(rows);
        let panels = |group_index: usize| {
            let first = (group_index * group).min(num_panels);
            Panels { weight: 0, range: first..(first + group).min(num_panels) }
        };
        let part = Part {
            rows: first_row..(first_row + chunk_rows).min(rows),
            tile_rows,
            panels: panels(task / chunks),
            // What this thread will most likely take next.
            next: panels((task + threads) / chunks),
        };
        // SAFETY: `input` has `rows` rows of the weight's k, and each task has
        // its own rows of its own panels, which are its own columns of `out`.
        unsafe { product.compute(&part) };
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
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    /// Rows of a tile.
    pub(super) tile_rows: usize,
    pub(super) panels: Panels,
    /// The panels of a later part, to be brought near.
    pub(super) next: Panels,
}

/// Some panels of a weight, or of one of several on top of each other.
pub(super) struct Panels {
    /// The weight's first panel.
    pub(super) weight: usize,
    /// Of its panels; where sums are finished in pairs, those of the first half.
    pub(super) range: Range<usize>,
}

/// Input rows in the weight's dtype.
pub(super) struct Input<'a> {
    pub(super) address: *const u8,
    pub(super) stride: usize,
    /// In int8, each row's scale.
    pub(super) scales: &'a [f32],
}

// SAFETY: the rows are only read while tasks run.
unsafe impl Sync for Input<'_> {}

/// Input rows as tiles read them beside such a weight: copied, rounded or quantized.
pub(super) fn rows_of_weight<'a>(
    cpu: &mut Cpu,
    rows: usize,
    w: &PackedMatrix,
    kernels: &TileKernels,
    row_of: &(impl Fn(usize) -> &'a [f32] + Sync),
) -> *const u8 {
    match w.dtype() {
        PanelDtype::F32 => copy_rows(cpu, rows, w.k(), row_of),
        PanelDtype::Bf16 => round_rows(cpu, rows, w.k(), row_of, kernels.widens),
        PanelDtype::Int8 => quantize_rows(cpu, rows, w.k(), row_of),
    }
}

/// Copies rows so that they follow each other.
fn copy_rows<'a>(
    cpu: &mut Cpu,
    rows: usize,
    k: usize,
    row_of: &(impl Fn(usize) -> &'a [f32] + Sync),
) -> *const u8 {
    if cpu.rounded.len() < rows * k {
        cpu.rounded.resize(rows * k, 0);
    }
    let copies = SharedMut::new(bytemuck::cast_slice_mut::<u32, f32>(&mut cpu.rounded));
    cpu.pool.run(rows, &|_, row| {
        // SAFETY: each task has its own row.
        let out = unsafe { copies.slice(row * k, k) };
        out.copy_from_slice(row_of(row));
    });
    cpu.rounded.as_ptr().cast()
}

/// Rounds the input's rows to bf16, padded to whole steps; they stay f32 where the tiles
/// read that.
fn round_rows<'a>(
    cpu: &mut Cpu,
    rows: usize,
    k: usize,
    row_of: &(impl Fn(usize) -> &'a [f32] + Sync),
    as_f32: bool,
) -> *const u8 {
    let padded = k.next_multiple_of(2);
    let words = if as_f32 { padded } else { padded / 2 };
    if cpu.rounded.len() < rows * words {
        cpu.rounded.resize(rows * words, 0);
    }
    let (isa, pool) = (cpu.isa, &cpu.pool);
    let rounded = SharedMut::new(&mut cpu.rounded);
    let rows_per_task = rows.div_ceil(pool.num_threads());
    pool.run(rows.div_ceil(rows_per_task.max(1)), &|_, task| {
        for row in task * rows_per_task..((task + 1) * rows_per_task).min(rows) {
            // SAFETY: each task has its own rows.
            let out = unsafe { rounded.slice(row * words, words) };
            if as_f32 {
                let out: &mut [f32] = bytemuck::cast_slice_mut(out);
                cpu::round_through_bf16(isa, row_of(row), &mut out[..k]);
                out[k..].fill(0.0);
            } else {
                let out: &mut [u16] = bytemuck::cast_slice_mut(out);
                cpu::round_to_bf16(isa, row_of(row), &mut out[..k]);
                out[k..].fill(0);
            }
        }
    });
    cpu.rounded.as_ptr().cast()
}

/// Rotates the input's rows and quantizes them to int8, padded to whole steps; their scales go
/// to `row_scales`.
fn quantize_rows<'a>(
    cpu: &mut Cpu,
    rows: usize,
    k: usize,
    row_of: &(impl Fn(usize) -> &'a [f32] + Sync),
) -> *const u8 {
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
            scratch.rotated.extend_from_slice(row_of(row));
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

/// A product that tasks compute parts of.
pub(super) struct Product<'a> {
    pub(super) isa: Isa,
    pub(super) kernels: TileKernels,
    pub(super) input: Input<'a>,
    pub(super) w: &'a PackedMatrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) epilogue: Epilogue,
    /// Panels to share out: a weight's, or half of them.
    pub(super) num_panels: usize,
    pub(super) halves: usize,
    /// Floats from one row of the output to the next.
    pub(super) out_cols: usize,
    pub(super) out: SharedMut<'a, f32>,
}

impl Product<'_> {
    /// Multiplies some rows with some panels.
    ///
    /// # Safety
    /// `input` has the part's rows of the weight's steps; no other task writes
    /// the part's columns of these rows of `out`.
    pub(super) unsafe fn compute(&self, part: &Part) {
        let Self { w, halves, .. } = *self;
        let panels = self.panels(&part.panels);
        let of_half = part.panels.range.len();
        let num_panels = halves * of_half;
        let column = part.panels.range.start * LANES;
        // Where the sums are the output as they are, they go there at once.
        let direct = matches!(self.epilogue, Epilogue::Store)
            && self.bias.is_none()
            && w.int8().is_none()
            && column + of_half * LANES <= self.out_cols;
        // Words: f32, or i32 where the weight is int8.
        let mut acc = [0_u32; MAX_ROWS * MAX_COLUMNS];
        let tiles = part.rows.len().div_ceil(part.tile_rows);
        let next = self.panels(&part.next);
        // What is near already is asked for at no cost.
        let or_near =
            |panel: Option<*const u8>| panel.filter(|panel| !panel.is_null()).unwrap_or(panels[0]);
        // Of several tiles, each brings some of the next panels; two suffice for four.
        let share = num_panels.div_ceil(tiles.max(1));
        let last = AHEAD.min(w.steps());
        for (index, row) in part.rows.clone().step_by(part.tile_rows).enumerate() {
            let rows = part.tile_rows.min(part.rows.end - row);
            let (acc, acc_stride): (*mut f32, _) = if direct {
                (self.out.pointer(row * self.out_cols + column), self.out_cols)
            } else {
                (acc.as_mut_ptr().cast(), MAX_COLUMNS)
            };
            let asked =
                [0, 1].map(|i| or_near(next.get(index * share + i).copied().filter(|_| i < share)));
            let tile = Tile {
                // SAFETY: the row is one of the input's.
                a: unsafe { self.input.address.add(row * self.input.stride) },
                a_stride: self.input.stride,
                panels,
                steps: w.steps(),
                acc,
                acc_stride,
                resume: false,
                prefetch: Prefetch::Two(asked),
            };
            let run = |tile: &Tile| {
                // SAFETY: the kernels were selected for this processor; the input's rows
                // and the weight's panels have `steps` steps; `acc` has every row and
                // panel, and so has the output, where they are this task's own.
                unsafe { self.kernels.run(rows, num_panels, tile) };
            };
            if tiles > 1 {
                run(&tile);
            } else {
                // A tile alone brings its panels as it goes, and in the end the
                // beginning of the next ones.
                let near = [panels[0]; 2];
                let steps = w.steps() - last;
                let ahead = panels.map(|panel| panel.wrapping_add(last * 64));
                run(&Tile { steps, prefetch: Prefetch::Each(ahead, near), ..tile });
                run(&Tile {
                    a: tile.a.wrapping_add(steps * self.kernels.row_step()),
                    panels: panels.map(|panel| panel.wrapping_add(steps * 64)),
                    steps: last,
                    resume: true,
                    prefetch: Prefetch::Each(next.map(|panel| or_near(Some(panel))), near),
                    ..tile
                });
            }
            if direct {
                continue;
            }
            // SAFETY: the tile's sums are written, and nothing else refers to them.
            let acc = unsafe { std::slice::from_raw_parts_mut(acc.cast(), rows * acc_stride) };
            for (r, sums) in acc.chunks_exact_mut(acc_stride).enumerate() {
                // SAFETY: passed on to the caller.
                unsafe { self.finish(part, row + r, sums) };
            }
        }
    }

    /// A part's panels, those of each half in turn; null beyond them.
    fn panels(&self, part: &Panels) -> [*const u8; MAX_PANELS] {
        let Panels { weight, range } = part;
        let mut panels = [std::ptr::null(); MAX_PANELS];
        for half in 0..self.halves {
            let of_half = panels[half * range.len()..].iter_mut().take(range.len());
            for (out, panel) in of_half.zip(range.clone()) {
                *out = self.w.panel(weight + half * self.num_panels + panel);
            }
        }
        panels
    }

    /// Turns one row's sums into output.
    ///
    /// # Safety
    /// No other task writes the part's columns of this row of `out`.
    unsafe fn finish(&self, part: &Part, row: usize, sums: &mut [u32]) {
        let Panels { weight, range } = &part.panels;
        let column = range.start * LANES;
        let columns = (range.len() * LANES).min(self.out_cols - column);
        let of_half = range.len();
        if let Some(int8) = self.w.int8() {
            for half in 0..self.halves {
                let first = weight + half * self.num_panels + range.start;
                let sums = &mut sums[half * of_half * LANES..][..of_half * LANES];
                let scale = self.input.scales[row];
                cpu::dequantize(self.isa, sums, int8.columns(first, of_half), scale);
            }
        }
        let sums: &mut [f32] = bytemuck::cast_slice_mut(sums);
        if let Some(bias) = self.bias {
            for half in 0..self.halves {
                let bias = &bias[half * self.num_panels * LANES + column..][..columns];
                let sums = &mut sums[half * of_half * LANES..];
                sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
            }
        }
        // SAFETY: passed on to the caller.
        let out = unsafe { self.out.slice(row * self.out_cols + column, columns) };
        match self.epilogue {
            Epilogue::Store => out.copy_from_slice(&sums[..columns]),
            Epilogue::Add => out.iter_mut().zip(&*sums).for_each(|(out, sum)| *out += sum),
            Epilogue::Gated(activation) => {
                let (gate, up) = sums.split_at(of_half * LANES);
                let (gate, up) = (&gate[..columns], &up[..columns]);
                match activation {
                    Activation::Silu => cpu::silu_mul(self.isa, gate, up, out),
                    Activation::GeluTanh => cpu::gelu_mul(self.isa, gate, up, out),
                }
            }
        }
    }
}
