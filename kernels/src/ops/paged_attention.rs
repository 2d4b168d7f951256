//! Attention over the paged cache.
//!
//! A task has one KV head of a few query rows of one sequence: its Q heads times
//! its rows are the rows of the tiles, so K and V are read once for all of them.
//! The context is walked from its start in chunks of [`CHUNK`] tokens with an
//! online softmax (Milakov and Gimelshein, 2018). A row skips the chunks that it
//! cannot see, so what it computes depends on its own position only, not on how
//! its prompt was cut up or on who shares its task.
#![expect(unsafe_code, reason = "tiles read through pointers; tasks write disjoint heads")]

use crate::{
    AttentionParams, BLOCK_SIZE, KernelError, StepLimits, StepPlan,
    cpu::{
        self, Cpu, CpuBuffer, CpuKvCache, CpuStep, KeyOrValue, LANES, LayerCache, MAX_COLUMNS,
        MAX_PANELS, MAX_ROWS, PanelDtype, Prefetch, SharedMut, Tile, TileKernels,
    },
};

/// Context tokens between two corrections of the running maximum.
const CHUNK: usize = 128;
const CHUNK_BLOCKS: usize = CHUNK / LANES;
/// Query rows of a task.
const QUERY_ROWS: usize = 16;

/// A thread's working memory; `m` is rows times Q heads of a task.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `[m, head_dim]` as tiles read them, in words of four bytes.
    queries: Vec<u32>,
    /// `[m, CHUNK]`.
    scores: Vec<f32>,
    /// `[m, CHUNK]` as tiles read them, in words of four bytes.
    probabilities: Vec<u32>,
    /// `[m, head_dim]`.
    output: Vec<f32>,
    /// `[m]`: running maximum and sum.
    softmax: Vec<(f32, f32)>,
}

/// The layer, if heads of these parameters fit it.
pub(crate) fn fitting_layer<'a>(
    op: &'static str,
    params: &AttentionParams,
    index: usize,
    cache: &'a CpuKvCache,
) -> Result<LayerCache<'a>, KernelError> {
    let fits = |layer: &LayerCache<'_>| {
        layer.shape().num_kv_heads == params.num_kv_heads
            && layer.shape().head_dim == params.head_dim
            && params.num_kv_heads > 0
            && params.num_heads.is_multiple_of(params.num_kv_heads)
    };
    cache.layer(index).filter(fits).ok_or_else(|| KernelError::Shape {
        op,
        what: "the cache",
        got: format!("{:?}", cache.layout()),
        expected: format!("a cache with layer {index} that fits {params:?}"),
    })
}

/// Some query rows of one sequence, of one KV head.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    slot: usize,
    context_len: usize,
    first_row: usize,
    num_rows: usize,
    kv_head: usize,
    /// The entries of the block table that any of the rows sees: the first, and the end.
    first_block: usize,
    end_block: usize,
}

impl Task {
    /// The chunks of the context that any of the rows sees.
    fn chunks(&self) -> std::ops::Range<usize> {
        self.first_block / CHUNK_BLOCKS..self.end_block.div_ceil(CHUNK_BLOCKS)
    }
}

/// Tasks of a step, at most.
pub(crate) fn most_tasks(limits: &StepLimits, params: &AttentionParams) -> usize {
    (limits.max_num_batched_tokens / QUERY_ROWS + limits.max_num_seqs) * params.num_kv_heads
}

/// Lists the tasks of a step.
pub(crate) fn plan(plan: &StepPlan, params: &AttentionParams, tasks: &mut Vec<Task>) {
    tasks.clear();
    for sequence in 0..plan.num_seqs() {
        let rows = plan.rows(sequence);
        let context_len = plan.context_lens[sequence] as usize;
        for first_row in rows.clone().step_by(QUERY_ROWS) {
            let num_rows = QUERY_ROWS.min(rows.end - first_row);
            let position = |row: usize| plan.positions[row] as usize;
            let end = params.mask.seen_end(position(first_row + num_rows - 1), context_len);
            tasks.extend((0..params.num_kv_heads).map(|kv_head| Task {
                slot: plan.slots[sequence] as usize,
                context_len,
                first_row,
                num_rows,
                kv_head,
                first_block: params.mask.first_seen(position(first_row)) / BLOCK_SIZE,
                end_block: end.div_ceil(BLOCK_SIZE),
            }));
        }
    }
}

/// What a task reads between two corrections: one head of a few blocks, of which the first
/// has the token `start` of the context.
#[derive(Clone, Copy, Default)]
struct Chunk<'a> {
    blocks: &'a [u32],
    start: usize,
    kv_head: usize,
}

pub(crate) fn paged_attention(
    cpu: &mut Cpu,
    step: &CpuStep,
    params: &AttentionParams,
    layer: usize,
    qkv: &CpuBuffer,
    cache: &CpuKvCache,
    out: &mut CpuBuffer,
) -> Result<(), KernelError> {
    const OP: &str = "paged_attention";
    let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
    let rows = step.sizes.num_tokens;
    qkv.check(OP, "qkv", rows, (num_heads + 2 * num_kv_heads) * head_dim)?;
    out.check(OP, "out", rows, num_heads * head_dim)?;
    let layer = fitting_layer(OP, params, layer, cache)?;
    let tasks = step.attention_tasks(OP, params, layer.shape().group)?;
    let attention = Attention {
        cpu,
        step,
        params,
        layer,
        qkv,
        kernels: TileKernels::select(cpu.isa, layer.panel_dtype()),
        out: SharedMut::new(out.rows_mut(rows)),
    };
    cpu.pool.run(tasks.len(), &|thread, index| {
        // What this thread will most likely take next.
        let next = tasks.get(index + cpu.pool.num_threads()).copied();
        attention.run(&mut cpu.scratch(thread).attention, tasks[index], next);
    });
    Ok(())
}

struct Attention<'a> {
    cpu: &'a Cpu,
    step: &'a CpuStep,
    params: &'a AttentionParams,
    layer: LayerCache<'a>,
    qkv: &'a CpuBuffer,
    kernels: TileKernels,
    out: SharedMut<'a, f32>,
}

impl Attention<'_> {
    fn run(&self, scratch: &mut Scratch, task: Task, next: Option<Task>) {
        let AttentionParams { num_heads, num_kv_heads, head_dim, mask, .. } = *self.params;
        let group = num_heads / num_kv_heads;
        let m = task.num_rows * group;
        self.load_queries(scratch, task, group);
        scratch.softmax.clear();
        scratch.softmax.resize(m, (f32::NEG_INFINITY, 0.0));
        scratch.output.clear();
        scratch.output.resize(m * head_dim, 0.0);
        let position = |row: usize| self.step.plan.positions[task.first_row + row] as usize;
        let chunks = task.chunks();
        let first = self.chunk(task, chunks.start);
        self.prefetch(first, KeyOrValue::Key);
        self.prefetch(first, KeyOrValue::Value);
        let after = next.map_or(Chunk::default(), |next| self.chunk(next, next.chunks().start));
        for index in chunks.clone() {
            let chunk = self.chunk(task, index);
            let next = if index + 1 < chunks.end { self.chunk(task, index + 1) } else { after };
            self.score(scratch, m, chunk, next);
            let (start, len) = (chunk.start, chunk.blocks.len() * LANES);
            for row in 0..task.num_rows {
                let position = position(row);
                let end = mask.seen_end(position, task.context_len);
                let seen = mask.first_seen(position).max(start)..end.min(start + len);
                for i in row * group..(row + 1) * group {
                    self.softmax_update(scratch, i, start, seen.clone(), len);
                }
            }
            self.accumulate_values(scratch, m, chunk, next);
        }
        self.store(scratch, task, group);
    }

    /// A chunk of the task's context: what any of its rows sees.
    fn chunk(&self, task: Task, index: usize) -> Chunk<'_> {
        let first = (index * CHUNK_BLOCKS).max(task.first_block);
        let end = ((index + 1) * CHUNK_BLOCKS).min(task.end_block);
        Chunk {
            blocks: &self.layer.table(task.slot)[first..end],
            start: first * BLOCK_SIZE,
            kv_head: task.kv_head,
        }
    }

    /// Asks for K or V. Blocks are scattered over the pool, in runs too short
    /// for the processor to foresee. Where there is work to do meanwhile, the
    /// tiles ask instead, for what cannot be taken at once is waited for.
    fn prefetch(&self, chunk: Chunk<'_>, which: KeyOrValue) {
        let bytes = LANES * self.params.head_dim * self.layer.element_size();
        for &block in chunk.blocks {
            let start = self.layer.panels(block as usize, which, chunk.kv_head);
            (0..bytes).step_by(64).for_each(|line| cpu::prefetch(start.wrapping_add(line)));
        }
    }

    /// Bytes of a number in queries and probabilities.
    fn row_size(&self) -> usize {
        if self.kernels.widens { size_of::<f32>() } else { self.layer.element_size() }
    }

    /// Gathers the task's Q heads, as tiles read them.
    fn load_queries(&self, scratch: &mut Scratch, task: Task, group: usize) {
        let head_dim = self.params.head_dim;
        let bytes = head_dim * self.row_size();
        let m = task.num_rows * group;
        scratch.queries.resize(m * bytes / 4, 0);
        let queries: &mut [u8] = bytemuck::cast_slice_mut(&mut scratch.queries);
        for row in 0..task.num_rows {
            let q = &self.qkv.row(task.first_row + row)[task.kv_head * group * head_dim..];
            for (i, q) in q.chunks_exact(head_dim).take(group).enumerate() {
                let out = &mut queries[(row * group + i) * bytes..][..bytes];
                self.convert(q, out);
            }
        }
    }

    /// Writes floats in the cache's precision, as tiles read them.
    fn convert(&self, x: &[f32], out: &mut [u8]) {
        if self.layer.panel_dtype() == PanelDtype::F32 {
            out.copy_from_slice(bytemuck::cast_slice(x));
        } else if self.kernels.widens {
            cpu::round_through_bf16(self.cpu.isa, x, bytemuck::cast_slice_mut(out));
        } else {
            cpu::round_to_bf16(self.cpu.isa, x, bytemuck::cast_slice_mut(out));
        }
    }

    /// `scores[i][t] = q[i] · k[t]` for the chunk's tokens.
    fn score(&self, scratch: &mut Scratch, m: usize, chunk: Chunk<'_>, next: Chunk<'_>) {
        let Chunk { blocks, kv_head, .. } = chunk;
        scratch.scores.resize(m * CHUNK, 0.0);
        let head_dim = self.params.head_dim;
        let steps = head_dim * self.layer.element_size() / 4;
        let row_bytes = head_dim * self.row_size();
        let panels_of = |group: &[u32], kv_head| {
            let mut panels = [std::ptr::null(); MAX_PANELS];
            for (panel, &block) in panels.iter_mut().zip(group) {
                *panel = self.layer.panels(block as usize, KeyOrValue::Key, kv_head);
            }
            panels
        };
        let mut next_groups = next.blocks.chunks(self.kernels.few.1);
        for (b, group) in blocks.chunks(self.kernels.few.1).enumerate() {
            let panels = panels_of(group, kv_head);
            let next_group = next_groups.next().unwrap_or(&[]);
            let (asked, rest) = next_group.split_at(group.len().min(next_group.len()));
            let asked = panels_of(asked, next.kv_head);
            self.prefetch(Chunk { blocks: rest, ..next }, KeyOrValue::Key);
            for first in (0..m).step_by(self.kernels.few.0) {
                let rows = self.kernels.few.0.min(m - first);
                let column = b * self.kernels.few.1 * LANES;
                let scores = &mut scratch.scores[first * CHUNK + column..];
                debug_assert!((rows - 1) * CHUNK + group.len() * LANES <= scores.len());
                let tile = Tile {
                    a: scratch.queries[first * row_bytes / 4..].as_ptr().cast(),
                    a_stride: row_bytes,
                    panels,
                    steps,
                    acc: scores.as_mut_ptr(),
                    acc_stride: CHUNK,
                    resume: false,
                    prefetch: if first == 0 {
                        Prefetch::Each(asked, [panels[0]; 2])
                    } else {
                        Prefetch::None
                    },
                };
                // SAFETY: the kernels were selected for this processor; queries
                // and K panels have `head_dim` elements; the scores have a chunk
                // for each of the m queries.
                unsafe { self.kernels.run(rows, group.len(), &tile) };
            }
        }
        next_groups.for_each(|blocks| self.prefetch(Chunk { blocks, ..next }, KeyOrValue::Key));
    }

    /// One query's part of the online softmax: turns its scores of the chunk
    /// into weights, and scales what it has summed so far.
    fn softmax_update(
        &self,
        scratch: &mut Scratch,
        i: usize,
        start: usize,
        seen: std::ops::Range<usize>,
        len: usize,
    ) {
        let AttentionParams { head_dim, scale, soft_cap, .. } = *self.params;
        let bytes = CHUNK * self.row_size();
        let needed = (i + 1) * bytes / 4;
        if scratch.probabilities.len() < needed {
            scratch.probabilities.resize(needed, 0);
        }
        let scores = &mut scratch.scores[i * CHUNK..][..len];
        if seen.is_empty() {
            scores.fill(0.0);
        } else {
            let (from, to) = (seen.start - start, seen.end - start);
            scores[..from].fill(0.0);
            scores[to..].fill(0.0);
            let scores = &mut scores[from..to];
            let max = match soft_cap {
                None => cpu::scale_and_max(self.cpu.isa, scores, scale),
                Some(cap) => cpu::scale_cap_and_max(self.cpu.isa, scores, scale, cap),
            };
            let (old_max, old_sum) = scratch.softmax[i];
            let max = max.max(old_max);
            if max == f32::NEG_INFINITY {
                // Nothing but NaN or -∞: let the NaN through to this row's result.
                scratch.softmax[i] = (max, f32::NAN);
            } else {
                let correction = cpu::exp_one(self.cpu.isa, old_max - max);
                let sum = cpu::exp_and_sum(self.cpu.isa, scores, max);
                scratch.softmax[i] = (max, old_sum * correction + sum);
                if correction != 1.0 {
                    let output = &mut scratch.output[i * head_dim..][..head_dim];
                    output.iter_mut().for_each(|x| *x *= correction);
                }
            }
        }
        let scores = &scratch.scores[i * CHUNK..][..len];
        let probabilities: &mut [u8] = bytemuck::cast_slice_mut(&mut scratch.probabilities);
        self.convert(scores, &mut probabilities[i * bytes..][..len * self.row_size()]);
    }

    /// `output[i] += Σ probabilities[i][t] * v[t]` over the chunk's tokens.
    fn accumulate_values(
        &self,
        scratch: &mut Scratch,
        m: usize,
        chunk: Chunk<'_>,
        next: Chunk<'_>,
    ) {
        let Chunk { blocks, kv_head, .. } = chunk;
        let head_dim = self.params.head_dim;
        let row_size = self.row_size();
        let row_bytes = CHUNK * row_size;
        // Steps of one block, and bytes from one of its panels to the next.
        let steps = LANES * self.layer.element_size() / 4;
        let panel_bytes = steps * 64;
        let mut acc = [0.0_f32; MAX_ROWS * MAX_COLUMNS];
        let num_panels = head_dim / LANES;
        let v = |block: u32, kv_head| self.layer.panels(block as usize, KeyOrValue::Value, kv_head);
        for first_panel in (0..num_panels).step_by(self.kernels.few.1) {
            let group = self.kernels.few.1.min(num_panels - first_panel);
            for first in (0..m).step_by(self.kernels.few.0) {
                let rows = self.kernels.few.0.min(m - first);
                for (b, &block) in blocks.iter().enumerate() {
                    let panels_of = |start: *const u8| {
                        let mut panels = [std::ptr::null(); MAX_PANELS];
                        for (p, panel) in panels[..group].iter_mut().enumerate() {
                            *panel = start.wrapping_add((first_panel + p) * panel_bytes);
                        }
                        panels
                    };
                    let panels = panels_of(v(block, kv_head));
                    let asked = next.blocks.get(b).filter(|_| first == 0);
                    let tile = Tile {
                        a: scratch.probabilities[(first * row_bytes + b * LANES * row_size) / 4..]
                            .as_ptr()
                            .cast(),
                        a_stride: row_bytes,
                        panels,
                        steps,
                        acc: acc.as_mut_ptr(),
                        acc_stride: MAX_COLUMNS,
                        resume: b > 0,
                        prefetch: asked.map_or(Prefetch::None, |&block| {
                            Prefetch::Each(panels_of(v(block, next.kv_head)), [panels[0]; 2])
                        }),
                    };
                    // SAFETY: the kernels were selected for this processor; the
                    // block's 16 weights and 16 rows of V are there; `acc` fits any tile.
                    unsafe { self.kernels.run(rows, group, &tile) };
                }
                for (r, sums) in acc.chunks_exact(MAX_COLUMNS).take(rows).enumerate() {
                    let len = group * LANES;
                    let out =
                        &mut scratch.output[(first + r) * head_dim + first_panel * LANES..][..len];
                    out.iter_mut().zip(&sums[..len]).for_each(|(out, sum)| *out += sum);
                }
            }
        }
        let rest = next.blocks.get(blocks.len()..).unwrap_or(&[]);
        self.prefetch(Chunk { blocks: rest, ..next }, KeyOrValue::Value);
    }

    fn store(&self, scratch: &Scratch, task: Task, group: usize) {
        let head_dim = self.params.head_dim;
        let cols = self.params.num_heads * head_dim;
        for row in 0..task.num_rows {
            let start = (task.first_row + row) * cols + task.kv_head * group * head_dim;
            // SAFETY: each row's heads of one KV head belong to one task.
            let out = unsafe { self.out.slice(start, group * head_dim) };
            for (i, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let i = row * group + i;
                let inverse = 1.0 / scratch.softmax[i].1;
                let output = &scratch.output[i * head_dim..][..head_dim];
                out.iter_mut().zip(output).for_each(|(out, &x)| *out = x * inverse);
            }
        }
    }
}
