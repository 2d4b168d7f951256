//! How attention is shared out among blocks: three launches, of rows of prompts, of decodes over
//! the prefixes that they share, and of decodes over the rest.
//!
//! How a context is shared out among blocks changes no result: chunks and the order in
//! which they are added up are fixed (`attention.cuh`), and all kernels keep to it. So
//! this is about speed only.

use std::cmp::Reverse;

use bytemuck::NoUninit;

use super::{Sharer, prefix_plan::Shared, word};
use crate::{AttentionParams, Mask, SharedPrefix, StepPlan};

/// Context tokens of a chunk.
pub(super) const CHUNK: usize = SharedPrefix::UNIT;
/// Packed rows of a sequence that `decode_attention.cu` computes, at most.
pub(super) const DECODE_ROWS: usize = 16;
/// Tokens of a tile of K or V.
const TILE: usize = 64;
/// Floats before a partial result's outputs.
const PARTIAL_HEAD: usize = 4;
/// Pairs of a sequence's rows and a KV head have one ticket each, and a sequence has at
/// most so many rows of 8.
const TICKETS_OF_SEQUENCE: usize = DECODE_ROWS / 8;
/// Decodes' blocks that a multiprocessor holds at a time.
const RESIDENT: usize = 3;
/// What takes how long, in chunks of 256 tokens at a multiprocessor's share of the memory's rate
/// (fitted to measurements on an H200): a block's start,
const BLOCK_COST: f64 = 0.3;
/// partial results, their merge and the wait for it,
const MERGE_COST: f64 = 1.4;
/// a chunk of a block that has the multiprocessor to itself from the beginning, and of one or
/// two that are left over when others have gone, which also start late.
const ALONE_COST: f64 = 1.2;
const LEFT_OVER_COST: [f64; 3] = [0.0, 1.65, 2.15];
/// Blocks for each multiprocessor that a recorded step may have beside one for each row and
/// KV head.
const SPARE_BLOCKS: usize = 4;

/// What one block does, for each KV head; `attention.cuh` says what the fields are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cuh file says what each field is")]
pub struct Work {
    pub first_query: u32,
    pub num_queries: u32,
    pub context_len: u32,
    pub blocks: u32,
    pub first_row: u32,
    pub first_chunk: u32,
    pub num_chunks: u32,
    pub first_partial: u32,
    pub num_partials: u32,
    pub num_blocks: u32,
    pub partial: u32,
    pub ticket: u32,
}

/// Where a cache group's block tables lie among all of the cache's.
#[derive(Clone, Copy, Debug)]
pub struct GroupTables {
    /// The group.
    pub group: usize,
    /// The entry that slot 0's begins with.
    pub first: usize,
    /// Entries of a slot.
    pub blocks_per_seq: usize,
}

/// What bounds attention beside its step.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRoom {
    /// Multiprocessors, among which decodes are shared out.
    pub multiprocessors: usize,
    /// Rows of partial results, `[head_dim + 4]` f32 each, that the workspace holds. A
    /// sequence whose rows do not fit is not shared out.
    pub max_partials: usize,
    /// Decodes may have so many pieces of work, or one a block of rows if that is more.
    pub max_decodes: usize,
}

/// Attention's work; reused from step to step.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    /// Of `prefill_attention.cu`, the grid's second dimension: `[num_work]`.
    pub prompts: Vec<Work>,
    /// Of `prefix_attention.cu`, likewise.
    pub prefixes: Vec<Work>,
    /// The sequences that share prefixes.
    pub sharers: Vec<Sharer>,
    /// Of `decode_attention.cu`, likewise.
    pub decodes: Vec<Work>,
    /// Rows of partial results that the workspace must hold.
    pub num_partials: usize,
    /// Tickets, one u32 each, zero before and after.
    pub num_tickets: usize,
    /// Decodes before they are shared out.
    whole: Vec<Work>,
    /// Their chunks, and how many have as many.
    lengths: Vec<(usize, usize)>,
    /// By sequence: what is computed of its context for others too, if anything is.
    pub(super) shared: Vec<Option<Shared>>,
}

impl AttentionPlan {
    /// Plans a step's attention.
    pub fn plan(
        &mut self,
        step: &StepPlan,
        params: &AttentionParams,
        tables: GroupTables,
        room: AttentionRoom,
    ) {
        for work in [&mut self.prompts, &mut self.prefixes, &mut self.decodes, &mut self.whole] {
            work.clear();
        }
        (self.num_partials, self.num_tickets) = (0, 0);
        self.share_prefixes(step, params, tables, room);
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
        let group = num_heads / num_kv_heads;
        for sequence in 0..step.num_seqs() {
            let queries = step.rows(sequence);
            let rows = queries.len() * group;
            let context_len = step.context_lens[sequence] as usize;
            let work = Work {
                first_query: word(queries.start),
                num_queries: word(queries.len()),
                context_len: word(context_len),
                blocks: word(tables.first + step.slots[sequence] as usize * tables.blocks_per_seq),
                ..Work::default()
            };
            if rows > DECODE_ROWS {
                let firsts = (0..rows).step_by(Self::prompt_rows(head_dim));
                self.prompts
                    .extend(firsts.map(|first_row| Work { first_row: word(first_row), ..work }));
                continue;
            }
            if let Some(shared) = self.shared[sequence] {
                let num_chunks = context_len.div_ceil(CHUNK) - shared.num_chunks;
                self.whole.push(Work {
                    first_chunk: word(shared.num_chunks),
                    num_chunks: word(num_chunks),
                    first_partial: word(shared.added_up - 1),
                    num_partials: word(shared.num_partials() + num_chunks),
                    partial: word(shared.partial),
                    ..work
                });
                continue;
            }
            // Without a division, for most sequences have one query.
            let position = |row: usize| {
                context_len - queries.len() + if queries.len() == 1 { 0 } else { row / group }
            };
            let columns = Self::decode_columns(group);
            let mut first_row = 0;
            while first_row < rows {
                let first_seen = params.mask.first_seen(position(first_row)) / CHUNK;
                let last_row = rows.min(first_row + columns) - 1;
                let end = params.mask.seen_end(position(last_row), context_len);
                self.whole.push(Work {
                    first_row: word(first_row),
                    first_chunk: word(first_seen),
                    num_chunks: word(end.div_ceil(CHUNK) - first_seen),
                    ..work
                });
                first_row += columns;
            }
        }
        self.share_out(group, num_kv_heads, room);
        // Blocks start in this order: the longest must not be last.
        self.prompts
            .sort_by_key(|work| Reverse(u64::from(work.context_len) + u64::from(work.first_row)));
        self.decodes.sort_by_key(|work| Reverse(work.num_chunks));
    }

    /// Shares decodes' chunks out among blocks, the longest sequences first.
    fn share_out(&mut self, group: usize, num_kv_heads: usize, room: AttentionRoom) {
        self.whole.sort_by_key(|work| Reverse(work.num_chunks));
        let alike = self.whole.chunk_by(|one, other| one.num_chunks == other.num_chunks);
        self.lengths.clear();
        self.lengths.extend(alike.map(|works| (works[0].num_chunks as usize, works.len())));
        let most = chunks_of_block(&self.lengths, num_kv_heads, room);
        for work in &self.whole {
            let num_chunks = work.num_chunks as usize;
            let num_blocks = if num_chunks <= most { 1 } else { num_chunks.div_ceil(most) };
            let mut work = *work;
            // There is room for those of sequences that share a prefix.
            if work.num_partials == 0 {
                let rows = (work.num_queries as usize * group - work.first_row as usize)
                    .min(Self::decode_columns(group));
                let partials = num_chunks * num_kv_heads * rows;
                if num_blocks == 1 || self.num_partials + partials > room.max_partials {
                    self.decodes.push(work);
                    continue;
                }
                (work.first_partial, work.num_partials) = (work.first_chunk, work.num_chunks);
                work.partial = word(self.num_partials);
                self.num_partials += partials;
            }
            // As even as they can be, each with one chunk at least.
            let border = |block: usize| num_chunks * block / num_blocks;
            self.decodes.extend((0..num_blocks).map(|block| Work {
                first_chunk: work.first_chunk + word(border(block)),
                num_chunks: word(border(block + 1) - border(block)),
                num_blocks: word(num_blocks),
                ticket: word(self.num_tickets),
                ..work
            }));
            self.num_tickets += num_kv_heads;
        }
    }

    /// Packed rows of a block of `prefill_attention.cu`.
    pub(super) const fn prompt_rows(head_dim: usize) -> usize {
        if head_dim > 128 { 64 } else { 128 }
    }

    /// Packed rows of a block of `decode_attention.cu`.
    #[must_use]
    pub const fn decode_columns(group: usize) -> usize {
        if group > 8 { 16 } else { 8 }
    }

    /// The most work of a step of so many tokens and sequences: of prompts, and of
    /// decodes.
    #[must_use]
    pub const fn most_work(
        params: &AttentionParams,
        num_tokens: usize,
        num_seqs: usize,
        max_partials: usize,
    ) -> (usize, usize) {
        let rows = num_tokens * params.num_heads / params.num_kv_heads;
        let prompts = rows / Self::prompt_rows(params.head_dim) + num_seqs;
        (prompts, TICKETS_OF_SEQUENCE * num_seqs + max_partials / params.num_kv_heads)
    }

    /// The most work of `rows` decodes of up to `max_model_len` tokens in a recorded step: what
    /// its grid has. None where so many heads share one of K and V that decodes are computed as
    /// prompts are.
    #[must_use]
    pub fn recorded_decodes(
        params: &AttentionParams,
        rows: usize,
        max_model_len: usize,
        multiprocessors: usize,
    ) -> Option<usize> {
        if params.num_heads / params.num_kv_heads > DECODE_ROWS {
            return None;
        }
        let all = max_model_len.div_ceil(CHUNK).max(1);
        let chunks = match params.mask {
            // The window's first chunk and its last may be seen in part.
            Mask::Sliding(window) => all.min((window + CHUNK - 2) / CHUNK + 1),
            Mask::None | Mask::Causal => all,
        };
        let spare = (SPARE_BLOCKS * multiprocessors).div_ceil(params.num_kv_heads);
        Some((rows * chunks).min(rows + spare))
    }

    /// Tickets of so many sequences, at most.
    #[must_use]
    pub const fn most_tickets(params: &AttentionParams, num_seqs: usize) -> usize {
        TICKETS_OF_SEQUENCE * num_seqs * params.num_kv_heads
    }

    /// Rows of partial results of a decode in a sequence of so many tokens, at most.
    #[must_use]
    pub const fn most_partials(params: &AttentionParams, context_len: usize) -> usize {
        context_len.div_ceil(CHUNK) * params.num_heads
    }

    /// Bytes of so many rows of partial results.
    #[must_use]
    pub const fn partial_bytes(head_dim: usize, num: usize) -> usize {
        num * (head_dim + PARTIAL_HEAD) * size_of::<f32>()
    }

    /// Dynamic shared memory of a block of `prefill_attention.cu`, and of `prefix_attention.cu`, for activations of two
    /// bytes and a cache of `cache_bytes` an element.
    #[must_use]
    pub const fn prompt_shared_bytes(head_dim: usize, cache_bytes: usize) -> usize {
        let slots = if head_dim * cache_bytes > 256 { 2 } else { 3 };
        slots * tile_bytes(head_dim, cache_bytes) + Self::prompt_rows(head_dim) * (head_dim + 8) * 2
    }

    /// Threads of a block of `prefill_attention.cu`, and of `prefix_attention.cu`.
    pub const PROMPT_THREADS: u32 = 256;

    /// Threads of a block of `prefill_groups.cu`.
    pub const GROUPS_THREADS: u32 = 384;

    /// Dynamic shared memory of a block of `prefill_groups.cu`, for elements of two bytes:
    /// `GroupsShared`, and what aligns it.
    #[must_use]
    pub const fn groups_shared_bytes(head_dim: usize) -> usize {
        const ALIGNMENT: usize = 1024;
        const BARRIERS: usize = 2 * size_of::<u64>();
        let is_shared = head_dim > 128;
        let slots = if is_shared { 5 } else { 7 };
        let ones = if is_shared { 0 } else { 64 };
        let tile = TILE * (head_dim + ones) * 2;
        let rows = Self::prompt_rows(head_dim) * (head_dim + 8) * 2;
        ALIGNMENT + slots * (tile + BARRIERS) + rows
    }

    /// Dynamic shared memory of a block of `decode_attention.cu` of so many columns.
    #[must_use]
    pub const fn decode_shared_bytes(head_dim: usize, cache_bytes: usize, columns: usize) -> usize {
        let slots = if head_dim * cache_bytes > 256 { 2 } else { 4 };
        let queries = columns * (head_dim + 8) * 2;
        let probabilities = columns * TILE * 2;
        let maxima = columns * 4 * size_of::<f32>();
        slots * tile_bytes(head_dim, cache_bytes) + queries + probabilities + maxima
    }

    /// What kernels multiply q . k with, and their soft cap, for a factor on K.
    #[must_use]
    pub fn score_factors(params: &AttentionParams, k_scale: f32) -> (f32, f32) {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        let scale = params.scale * k_scale;
        params.soft_cap.map_or((scale * LOG2_E, 0.0), |cap| (scale / cap, cap * LOG2_E))
    }
}

/// Bytes of a tile of K or V in shared memory.
const fn tile_bytes(head_dim: usize, cache_bytes: usize) -> usize {
    TILE * (head_dim * cache_bytes + 16)
}

/// Chunks that a block is given at most, so that no multiprocessor has much more to do than
/// another: more of them leave some idle at the end, fewer cost a start each. `lengths` are
/// numbers of chunks with how many decodes have them, the longest first. There are no more pieces
/// than there is room for: with all of the longest's chunks in one block, there are as few as can
/// be.
fn chunks_of_block(lengths: &[(usize, usize)], num_kv_heads: usize, room: AttentionRoom) -> usize {
    let longest = lengths.first().map_or(1, |&(num_chunks, _)| num_chunks).max(1);
    let cost = |size: usize| {
        let pieces =
            lengths.iter().map(|(num_chunks, decodes)| num_chunks.div_ceil(size) * decodes);
        let pieces: usize = pieces.sum();
        if pieces > room.max_decodes && size < longest {
            return f64::INFINITY;
        }
        let blocks = (pieces * num_kv_heads).div_ceil(room.multiprocessors.max(1));
        // Pieces are as even as they can be.
        let chunks = longest.div_ceil(longest.div_ceil(size)) as f64;
        let merge = if size < longest { MERGE_COST } else { 0.0 };
        let left_over = match blocks {
            1 => ALONE_COST,
            blocks => LEFT_OVER_COST[blocks % RESIDENT],
        };
        let together = (blocks / RESIDENT * RESIDENT) as f64;
        (together + left_over) * chunks + blocks as f64 * BLOCK_COST + merge
    };
    let pieces = std::iter::successors(Some(1), |&num: &usize| Some(num + (num / 2).max(1)));
    let pieces = pieces.take_while(|&num| num < longest).chain([longest]);
    let sizes = pieces.map(|num| longest.div_ceil(num));
    sizes.map(|size| (cost(size), size)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(1, |best| best.1)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::BLOCK_SIZE;

    /// A multiprocessor's shared memory, and what one block may ask of it, in KiB (CUDA C++
    /// Programming Guide, "Technical Specifications per Compute Capability").
    const SHARED_KIB: [(&str, usize, usize); 7] = [
        ("8.0", 164, 163),
        ("8.6", 100, 99),
        ("8.7", 164, 163),
        ("8.9", 100, 99),
        ("9.0", 228, 227),
        ("10.0", 228, 227),
        ("12.0", 100, 99),
    ];

    #[test]
    fn groups_of_warps_fit_the_card_that_has_them() {
        let (_, _, of_block) = SHARED_KIB.into_iter().find(|(c, ..)| *c == "9.0").expect("Hopper");
        for head_dim in [64, 128, 256] {
            let bytes = AttentionPlan::groups_shared_bytes(head_dim);
            assert!(bytes <= of_block << 10, "{head_dim}: {bytes}");
        }
    }

    #[test]
    fn every_launch_fits_every_card_from_ampere_on() {
        for (capability, of_multiprocessor, of_block) in SHARED_KIB {
            for head_dim in [64, 80, 96, 128, 256] {
                for cache_bytes in [1, 2] {
                    let what = format!("{capability}, head_dim {head_dim}, {cache_bytes} bytes");
                    let prompt = AttentionPlan::prompt_shared_bytes(head_dim, cache_bytes);
                    assert!(prompt <= of_block << 10, "{what}: {prompt}");
                    for columns in [8, 16] {
                        let decode =
                            AttentionPlan::decode_shared_bytes(head_dim, cache_bytes, columns);
                        assert!(decode <= of_block << 10, "{what}, {columns}: {decode}");
                        // A block costs 1 KiB more than it asks for.
                        let blocks = (of_multiprocessor << 10) / (decode + 1024);
                        let enough = if of_multiprocessor > 100 { 2 } else { 1 };
                        assert!(blocks >= enough, "{what}, {columns}: {blocks} blocks");
                    }
                }
            }
        }
    }

    pub(in crate::cuda) fn params(num_kv_heads: usize, group: usize) -> AttentionParams {
        AttentionParams {
            num_heads: num_kv_heads * group,
            num_kv_heads,
            head_dim: 64,
            scale: 1.0,
            mask: Mask::Causal,
            soft_cap: None,
        }
    }

    fn decodes(contexts: &[usize]) -> StepPlan {
        let mut step = StepPlan::new(1);
        for (slot, &context) in (0..).zip(contexts) {
            step.push(slot, &[0], context - 1, &[&vec![0; context.div_ceil(BLOCK_SIZE)]]);
        }
        step
    }

    const TABLES: GroupTables = GroupTables { group: 0, first: 1000, blocks_per_seq: 5000 };

    const H200: AttentionRoom =
        AttentionRoom { multiprocessors: 132, max_partials: usize::MAX, max_decodes: usize::MAX };

    #[test]
    fn every_chunk_is_computed_once_and_every_partial_has_its_place() {
        let contexts = [1, 256, 257, 5000, 70_000, 900];
        for multiprocessors in [1, 3, 20, 132, usize::MAX] {
            let mut plan = AttentionPlan::default();
            let room = AttentionRoom { multiprocessors, ..H200 };
            plan.plan(&decodes(&contexts), &params(2, 4), TABLES, room);
            let mut partials = 0;
            for (sequence, context) in contexts.into_iter().enumerate() {
                let of_sequence =
                    plan.decodes.iter().filter(|w| w.first_query as usize == sequence);
                let mut pieces: Vec<Work> = of_sequence.copied().collect();
                pieces.sort_by_key(|work| work.first_chunk);
                let mut next = 0;
                for piece in &pieces {
                    assert_eq!(piece.first_chunk, next);
                    let sharing = if pieces.len() > 1 { pieces.len() } else { 0 };
                    assert_eq!(piece.num_blocks as usize, sharing);
                    next += piece.num_chunks;
                }
                assert_eq!(next as usize, context.div_ceil(CHUNK));
                if pieces.len() > 1 {
                    partials += next as usize * 2 * 4;
                }
            }
            assert_eq!(plan.num_partials, partials);
        }
    }

    #[test]
    fn a_batch_that_fills_the_device_is_not_shared_out() {
        let mut plan = AttentionPlan::default();
        plan.plan(&decodes(&[1024; 128]), &params(8, 4), TABLES, H200);
        assert_eq!((plan.decodes.len(), plan.num_partials), (128, 0));
        // One sequence alone is, down to its chunks.
        plan.plan(&decodes(&[4096]), &params(8, 4), TABLES, H200);
        assert_eq!(plan.decodes.len(), 16);
        // One that is long beside many that are not is.
        let mut contexts = [1024; 64];
        contexts[5] = 131_072;
        plan.plan(&decodes(&contexts), &params(8, 4), TABLES, H200);
        let longest = plan.decodes.iter().map(|work| work.num_chunks).max();
        assert!(longest.is_some_and(|chunks| chunks <= 16), "{longest:?}");
    }

    /// Few KV heads make few blocks, the last of which would have a multiprocessor to itself.
    #[test]
    fn few_heads_are_shared_out_evenly() {
        let mut plan = AttentionPlan::default();
        for (sequences, context, chunks) in
            [(32, 1024, 4), (32, 4096, 8), (128, 4096, 8), (128, 1024, 4)]
        {
            plan.plan(&decodes(&vec![context; sequences]), &params(4, 8), TABLES, H200);
            let of_blocks: Vec<_> = plan.decodes.iter().map(|work| work.num_chunks).collect();
            assert_eq!(of_blocks, vec![chunks; sequences * context / 256 / chunks as usize]);
        }
    }

    #[test]
    fn the_longest_are_shared_out_where_there_is_not_room_for_all() {
        let mut plan = AttentionPlan::default();
        let max_partials = 70 * 8 * 4;
        let room = AttentionRoom { max_partials, ..H200 };
        plan.plan(&decodes(&[2048, 16_384, 4096]), &params(8, 4), TABLES, room);
        let blocks =
            |sequence| plan.decodes.iter().filter(|work| work.first_query == sequence).count();
        assert_eq!((blocks(0), blocks(2)), (1, 1));
        assert!(blocks(1) > 1 && plan.num_partials <= max_partials);
    }

    #[test]
    fn rows_beyond_a_block_have_blocks_of_their_own() {
        let mut batch = StepPlan::new(1);
        batch.push(2, &[0; 5], 300, &[&[0; 20]]);
        let mut plan = AttentionPlan::default();
        let whole = AttentionRoom { max_partials: 0, ..H200 };
        plan.plan(&batch, &params(1, 3), TABLES, whole);
        let firsts: Vec<_> = plan.decodes.iter().map(|work| work.first_row).collect();
        assert_eq!((firsts, plan.prompts.len()), (vec![0, 8], 0));
        assert!(plan.decodes.iter().all(|work| work.blocks == 1000 + 2 * 5000), "slot 2's table");
        // Of a window each sees what its own rows do.
        let windowed = AttentionParams { mask: Mask::Sliding(46), ..params(1, 3) };
        plan.plan(&batch, &windowed, TABLES, whole);
        let seen: Vec<_> = plan.decodes.iter().map(|work| work.first_chunk).collect();
        assert_eq!(seen, [0, 1]);
    }
    proptest! {
        /// What a recorded step's grid has is enough for every step of its bucket: rows up to
        /// it, contexts up to the longest.
        #[test]
        fn a_recorded_grid_holds_every_decode_step_of_its_bucket(
            bucket in 1_usize..=64,
            shares in prop::collection::vec(0.0_f64..=1.0, 1..=64),
            longest in 1_usize..200_000,
            (num_kv_heads, group) in (1_usize..=8, 1_usize..=16),
            window in prop::option::of(1_usize..5000),
            multiprocessors in 1_usize..=132,
            has_room in any::<bool>(),
        ) {
            let mask = window.map_or(Mask::Causal, Mask::Sliding);
            let params = AttentionParams { mask, ..params(num_kv_heads, group) };
            let most = AttentionPlan::recorded_decodes(&params, bucket, longest, multiprocessors)
                .expect("so few heads share one");
            let contexts: Vec<usize> = shares
                .iter()
                .take(bucket)
                .map(|share| ((longest as f64 * share) as usize).clamp(1, longest))
                .collect();
            let max_partials = if has_room { usize::MAX } else { 1000 };
            let room = AttentionRoom { multiprocessors, max_partials, max_decodes: most };
            let mut plan = AttentionPlan::default();
            plan.plan(&decodes(&contexts), &params, TABLES, room);
            prop_assert!(plan.prompts.is_empty());
            prop_assert!(plan.decodes.len() <= most, "{} of {most}", plan.decodes.len());
            // Each row is somebody's work, and the longest are shared out where that pays.
            let rows: BTreeSet<u32> = plan.decodes.iter().map(|work| work.first_query).collect();
            prop_assert_eq!(rows.len(), contexts.len());
            // Little more than there may be work: a block for each row, and for each
            // multiprocessor a few.
            prop_assert!(most <= bucket + 4 * multiprocessors + 1);
        }
    }

    /// A long sequence alone has blocks on every multiprocessor in a recorded step too.
    #[test]
    fn a_recorded_step_is_shared_out() {
        let own = params(8, 4);
        let most = AttentionPlan::recorded_decodes(&own, 1, 131_072, 132).expect("recorded");
        let mut plan = AttentionPlan::default();
        plan.plan(&decodes(&[131_072]), &own, TABLES, AttentionRoom { max_decodes: most, ..H200 });
        assert!(plan.decodes.len() * 8 >= 132, "{}", plan.decodes.len());
        // More than 16 heads to one are computed as prompts are.
        assert_eq!(AttentionPlan::recorded_decodes(&params(1, 17), 1, 10, 132), None);
    }
}
