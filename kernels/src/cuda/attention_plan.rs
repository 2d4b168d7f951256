//! Who computes what in an attention launch.
//!
//! How a context is shared out among blocks changes no result: chunks and the order
//! in which they are merged are fixed (`paged_attention.cu`). So this is about speed
//! only.

use bytemuck::NoUninit;

use super::word;
use crate::{AttentionParams, ForwardBatch};

/// Context tokens of a chunk.
const CHUNK: usize = 256;
/// Packed rows of a warp.
const ROWS_OF_WARP: usize = 16;
/// Warps of a block.
const WARPS: usize = 8;
/// Tiles of K or V that a pipeline holds.
const RING: usize = 3;

/// What one block does, for each KV head; `paged_attention.cu` says what the fields
/// are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, NoUninit)]
#[repr(C)]
#[expect(missing_docs, reason = "the .cu file says what each field is")]
pub struct Work {
    pub kind: u32,
    pub sequence: u32,
    pub first_row: u32,
    pub first_chunk: u32,
    pub num_chunks: u32,
    pub partial: u32,
    pub ticket: u32,
    pub num_blocks: u32,
}

impl Work {
    const SPLIT: u32 = 0;
    const ROWS: u32 = 1;
}

/// An attention launch's work; reused from step to step.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    /// `[num_work]`: the grid's first dimension.
    pub work: Vec<Work>,
    /// Partial results that the workspace holds, `[16, head_dim + 2]` f32 each.
    pub num_partials: usize,
    /// Tickets, one u32 each, zero before and after.
    pub num_tickets: usize,
}

impl AttentionPlan {
    /// Shares a batch's attention out. Of a decode's context a block gets as many
    /// chunks as leave `enough_blocks` for the device, 1 to 8. Where partial results
    /// would be more than `max_partials`, the sequences that are left are not split.
    pub fn plan(
        &mut self,
        batch: &ForwardBatch,
        params: &AttentionParams,
        enough_blocks: usize,
        max_partials: usize,
    ) {
        self.work.clear();
        (self.num_partials, self.num_tickets) = (0, 0);
        let group = params.num_heads / params.num_kv_heads;
        let splits = |sequence| (1..=ROWS_OF_WARP).contains(&(batch.rows(sequence).len() * group));
        let seen_chunks = |sequence: usize| {
            let context_len = batch.context_lens[sequence] as usize;
            let first_position = context_len - batch.rows(sequence).len();
            let begin = params
                .sliding_window
                .map_or(0, |window| (first_position + 1).saturating_sub(window) / CHUNK);
            context_len.div_ceil(CHUNK) - begin
        };
        let sequences = 0..batch.num_seqs();
        let all_chunks: usize = sequences.clone().filter(|&s| splits(s)).map(seen_chunks).sum();
        let chunks_per_block =
            (all_chunks * params.num_kv_heads / enough_blocks.max(1)).clamp(1, WARPS);
        for sequence in sequences {
            let rows = batch.rows(sequence).len() * group;
            let work = Work { sequence: word(sequence), ..Work::default() };
            let chunks = seen_chunks(sequence);
            let partials = if chunks > 1 { chunks * params.num_kv_heads } else { 0 };
            if !splits(sequence) || self.num_partials + partials > max_partials {
                let firsts = (0..rows).step_by(WARPS * ROWS_OF_WARP);
                self.work.extend(firsts.map(|first_row| Work {
                    kind: Work::ROWS,
                    first_row: word(first_row),
                    ..work
                }));
                continue;
            }
            let num_blocks = chunks.div_ceil(chunks_per_block);
            self.work.extend((0..num_blocks).map(|block| Work {
                kind: Work::SPLIT,
                first_chunk: word(block * chunks_per_block),
                num_chunks: word(chunks_per_block),
                partial: word(self.num_partials),
                ticket: word(self.num_tickets),
                num_blocks: word(num_blocks),
                ..work
            }));
            if chunks > 1 {
                self.num_partials += partials;
                self.num_tickets += params.num_kv_heads;
            }
        }
    }

    /// The most pieces of work of a batch of so many tokens and sequences.
    #[must_use]
    pub const fn most_work(
        params: &AttentionParams,
        num_tokens: usize,
        num_seqs: usize,
        max_partials: usize,
    ) -> usize {
        let rows = num_tokens * params.num_heads / params.num_kv_heads;
        rows.div_ceil(WARPS * ROWS_OF_WARP) + num_seqs + max_partials
    }

    /// Chunks of a context.
    #[must_use]
    pub const fn num_chunks(context_len: usize) -> usize {
        context_len.div_ceil(CHUNK)
    }

    /// Bytes of `num` partial results.
    #[must_use]
    pub const fn partial_bytes(head_dim: usize, num: usize) -> usize {
        num * ROWS_OF_WARP * (head_dim + 2) * size_of::<f32>()
    }

    /// Dynamic shared memory of a launch, for activations of two bytes and a cache of
    /// `cache_bytes` an element.
    #[must_use]
    pub fn shared_bytes(head_dim: usize, cache_bytes: usize) -> usize {
        let tile = if head_dim > 128 { 16 } else { 32 };
        let slot = |bytes: usize| tile * (head_dim + 16 / bytes) * bytes;
        let widened = if cache_bytes == 2 { 0 } else { slot(2) };
        WARPS * (RING * slot(cache_bytes) + widened)
    }
}
