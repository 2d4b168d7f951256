//! Products of rows with the weights of the experts that they were routed to.
//!
//! The experts' weights lie on top of each other in one matrix, and the rows of an expert
//! beside each other in the order of places, so that each expert in use is a product like
//! any other: its panels are read once for all of its rows, and those of no other expert
//! are read at all.
#![expect(unsafe_code, reason = "tasks write disjoint columns")]

use std::ops::Range;

use super::{
    Activation, Routing, ensure,
    linear::{Epilogue, Input, Panels, Part, Product, TASK_ROWS, rows_of_weight},
    route::CpuRoutes,
};
use crate::{
    KernelError,
    cpu::{Cpu, CpuBuffer, LANES, PackedMatrix, PanelDtype, SharedMut, TileKernels},
};

/// The tasks that compute an expert's places, which are cut into chunks: those of one group
/// of panels follow each other, so that it is near for all but the first.
#[derive(Clone)]
pub(crate) struct ExpertTasks {
    expert: usize,
    places: Range<usize>,
    chunk_rows: usize,
    tile_rows: usize,
    /// Panels of a task.
    group: usize,
    first_task: usize,
}

pub(crate) fn experts_gated(
    cpu: &mut Cpu,
    rows: usize,
    x: &CpuBuffer,
    routes: &CpuRoutes,
    w: &PackedMatrix,
    activation: Activation,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "experts_gated";
    let Routing { num_experts, top_k, .. } = routes.routing();
    let n = w.n() / num_experts;
    routes.check(OP, rows)?;
    check_weight(OP, w, num_experts, 2 * LANES)?;
    x.check(OP, "x", rows, w.k())?;
    out.check(OP, "out", rows, top_k * n / 2)?;
    let row_of = |place: usize| x.row(routes.source(place));
    let (places, epilogue) = (rows * top_k, Epilogue::Gated(activation));
    product(cpu, routes, places, &row_of, None, w, epilogue, out.rows_mut(rows));
    Ok(())
}

pub(crate) fn experts_add(
    cpu: &mut Cpu,
    rows: usize,
    x: &CpuBuffer,
    routes: &CpuRoutes,
    w: &PackedMatrix,
    scratch: &mut CpuBuffer,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "experts_add";
    let Routing { num_experts, top_k, .. } = routes.routing();
    let (n, k) = (w.n() / num_experts, w.k());
    routes.check(OP, rows)?;
    check_weight(OP, w, num_experts, LANES)?;
    x.check(OP, "x", rows, top_k * k)?;
    scratch.check(OP, "scratch", rows, top_k * n)?;
    out.check(OP, "out", rows, n)?;
    let x = x.rows(rows);
    let row_of = |place: usize| &x[place * k..][..k];
    let (places, as_it_is) = (rows * top_k, Some(x));
    product(cpu, routes, places, &row_of, as_it_is, w, Epilogue::Store, scratch.rows_mut(rows));
    let outputs = scratch.rows(rows);
    let out = SharedMut::new(out.rows_mut(rows));
    cpu.pool.run(rows, &|_, row| {
        // SAFETY: each task has its own row.
        let out = unsafe { out.slice(row * n, n) };
        let choices = routes.places(row).iter().zip(routes.of_row(row));
        // The row's choices in their order, then the residual: a sum that is the row's own.
        for column in (0..n).step_by(LANES) {
            let mut sums = [0.0_f32; LANES];
            for (&place, (_, weight)) in choices.clone() {
                let output = &outputs[place as usize * n + column..][..LANES];
                sums.iter_mut().zip(output).for_each(|(sum, output)| *sum += weight * output);
            }
            let out = &mut out[column..][..LANES];
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
        }
    });
    Ok(())
}

/// Checks that every expert's weight is of whole panels, or pairs of them.
fn check_weight(
    op: &'static str,
    w: &PackedMatrix,
    num_experts: usize,
    unit: usize,
) -> Result<(), KernelError> {
    let fits = w.n().is_multiple_of(num_experts * unit);
    let expected = || format!("a multiple of {unit} for each of {num_experts} experts");
    ensure(fits, op, "rows of w", || w.n().to_string(), expected)
}

/// `out` has a row for each place. `as_it_is` are the rows in the order of places, where
/// they are so.
#[expect(clippy::too_many_arguments, reason = "a product's operands, and what becomes of it")]
fn product<'a>(
    cpu: &mut Cpu,
    routes: &CpuRoutes,
    places: usize,
    row_of: &(impl Fn(usize) -> &'a [f32] + Sync),
    as_it_is: Option<&[f32]>,
    w: &PackedMatrix,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let kernels = TileKernels::select(cpu.isa, w.dtype());
    let address = match (w.dtype(), as_it_is) {
        (PanelDtype::F32, Some(x)) => x.as_ptr().cast(),
        _ => rows_of_weight(cpu, places, w, &kernels, row_of),
    };
    let halves = if matches!(epilogue, Epilogue::Gated(_)) { 2 } else { 1 };
    let of_expert = w.num_panels() / routes.routing().num_experts;
    let num_panels = of_expert / halves;
    let mut experts = std::mem::take(&mut cpu.expert_tasks);
    let num_tasks = share_out(routes, &kernels, (num_panels, halves), &mut experts);
    let product = Product {
        isa: cpu.isa,
        kernels,
        input: Input { address, stride: w.steps() * kernels.row_step(), scales: &cpu.row_scales },
        w,
        bias: None,
        epilogue,
        num_panels,
        halves,
        out_cols: num_panels * LANES,
        out: SharedMut::new(out),
    };
    let threads = cpu.pool.num_threads();
    let part_of = |task: usize| {
        let after = experts.partition_point(|tasks| tasks.first_task <= task);
        let ExpertTasks { expert, places, chunk_rows, tile_rows, group, first_task } =
            experts[after - 1].clone();
        let chunks = places.len().div_ceil(chunk_rows);
        let (chunk, group_index) = ((task - first_task) % chunks, (task - first_task) / chunks);
        let (row, panel) = (places.start + chunk * chunk_rows, group_index * group);
        let panels = Panels {
            weight: expert * of_expert,
            range: panel.min(num_panels)..(panel + group).min(num_panels),
        };
        (row..(row + chunk_rows).min(places.end), tile_rows, panels)
    };
    cpu.pool.run(num_tasks, &|_, task| {
        let (rows, tile_rows, panels) = part_of(task);
        // What this thread will most likely take next.
        let (_, _, next) = part_of((task + threads).min(num_tasks - 1));
        let part = Part { rows, tile_rows, panels, next };
        // SAFETY: `input` and `out` have a row of the weight's k, and of an expert's outputs,
        // for each place; each task has its own rows of its own panels of one expert.
        unsafe { product.compute(&part) };
    });
    cpu.expert_tasks = experts;
}

/// Cuts the places of each expert in use into tasks: their number.
fn share_out(
    routes: &CpuRoutes,
    kernels: &TileKernels,
    (num_panels, halves): (usize, usize),
    experts: &mut Vec<ExpertTasks>,
) -> usize {
    experts.clear();
    let mut num_tasks = 0;
    for (expert, places) in routes.in_use() {
        let chunks = places.len().div_ceil(TASK_ROWS);
        let chunk_rows = places.len().div_ceil(chunks);
        let (tile_rows, best) = kernels.shape(chunk_rows);
        let group = (best / halves).max(1);
        let first_task = num_tasks;
        num_tasks += places.len().div_ceil(chunk_rows) * num_panels.div_ceil(group);
        experts.push(ExpertTasks { expert, places, chunk_rows, tile_rows, group, first_task });
    }
    num_tasks
}
