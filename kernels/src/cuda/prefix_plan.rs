//! How attention over prefixes that sequences share is planned: each prefix is computed once for
//! all of them, by `prefix_attention.cu`, and leaves partial results where each sequence's own are.

use super::{
    AttentionPlan, AttentionRoom, GroupTables, Sharer, Work,
    attention_plan::{CHUNK, DECODE_ROWS},
    word,
};
use crate::{AttentionParams, Mask, SharedPrefix, StepPlan};

/// The part of a sequence's context that is computed with others'.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shared {
    pub(super) num_chunks: usize,
    /// Chunks that are one partial result, the first ones.
    pub(super) added_up: usize,
    /// Where the sequence's partial results begin.
    pub(super) partial: usize,
}

impl Shared {
    /// Partial results of it.
    pub(super) const fn num_partials(self) -> usize {
        1 + self.num_chunks - self.added_up
    }
}

impl AttentionPlan {
    /// Plans the prefixes that sequences share, each in one wave of blocks, as far as there is
    /// room for the partial results.
    pub(super) fn share_prefixes(
        &mut self,
        step: &StepPlan,
        params: &AttentionParams,
        tables: GroupTables,
        room: AttentionRoom,
    ) {
        let AttentionParams { num_heads, num_kv_heads, head_dim, mask, .. } = *params;
        let group = num_heads / num_kv_heads;
        self.sharers.clear();
        self.shared.clear();
        self.shared.resize(step.num_seqs(), None);
        if group > DECODE_ROWS || matches!(mask, Mask::Sliding(_)) {
            return;
        }
        let rows_of_block = Self::prompt_rows(head_dim);
        let of_group = |prefix: &&SharedPrefix| prefix.group as usize == tables.group;
        let num_prefixes = step.prefixes.iter().filter(of_group).count();
        for prefix in step.prefixes.iter().filter(of_group) {
            let sequences = &step.sharers[prefix.sharers.clone()];
            let num_chunks = prefix.num_tokens as usize / CHUNK;
            let row_blocks = (sequences.len() * group).div_ceil(rows_of_block);
            let of_own = |sequence: u32| {
                (step.context_lens[sequence as usize] as usize).div_ceil(CHUNK) - num_chunks
            };
            let own: usize = sequences.iter().map(|&sequence| of_own(sequence)).sum();
            let most = room.multiprocessors / (row_blocks * num_kv_heads * num_prefixes);
            let most = most.clamp(1, num_chunks);
            let free = room.max_partials.saturating_sub(self.num_partials) / num_heads;
            let fits = |&pieces: &usize| {
                let of_prefix = 1 + num_chunks - num_chunks / pieces;
                own + sequences.len() * of_prefix <= free
            };
            let Some(pieces) = [most, 1].into_iter().find(fits) else { continue };
            let first_sharer = word(self.sharers.len());
            for &sequence in sequences {
                let shared = Shared {
                    num_chunks,
                    added_up: num_chunks / pieces,
                    partial: self.num_partials,
                };
                let num_partials = shared.num_partials() + of_own(sequence);
                self.shared[sequence as usize] = Some(shared);
                self.sharers.push(Sharer {
                    query: step.cu_seqlens_q[sequence as usize],
                    partial: word(self.num_partials),
                    num_partials: word(num_partials),
                    padding: 0,
                });
                self.num_partials += num_partials * num_heads;
            }
            let slot = step.slots[sequences[0] as usize] as usize;
            let work = Work {
                first_query: first_sharer,
                num_queries: word(sequences.len()),
                context_len: prefix.num_tokens,
                blocks: word(tables.first + slot * tables.blocks_per_seq),
                first_partial: word(num_chunks / pieces - 1),
                ..Work::default()
            };
            let border = |piece: usize| num_chunks * piece / pieces;
            for first_row in (0..sequences.len() * group).step_by(rows_of_block) {
                self.prefixes.extend((0..pieces).map(|piece| Work {
                    first_row: word(first_row),
                    first_chunk: word(border(piece)),
                    num_chunks: word(border(piece + 1) - border(piece)),
                    ..work
                }));
            }
        }
    }

    /// The most work of prefixes that so many sequences share.
    #[must_use]
    pub const fn most_prefix_work(
        params: &AttentionParams,
        num_seqs: usize,
        multiprocessors: usize,
    ) -> usize {
        let rows = num_seqs * params.num_heads / params.num_kv_heads;
        // A block of rows of each prefix, or pieces for all multiprocessors.
        rows / Self::prompt_rows(params.head_dim) + num_seqs + multiprocessors
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{BLOCK_SIZE, cuda::attention_plan::tests::params};

    const TABLES: GroupTables = GroupTables { group: 0, first: 100, blocks_per_seq: 1000 };

    /// Sequences of so many tokens, the first ones with prefixes of so many chunks, each of
    /// several sequences.
    fn decodes(contexts: &[usize], prefixes: &[(usize, usize)]) -> StepPlan {
        let mut step = StepPlan::new(1);
        let shared = prefixes.iter().flat_map(|&(num, chunks)| std::iter::repeat_n(chunks, num));
        let least = shared.chain(std::iter::repeat(0)).map(|chunks| chunks * CHUNK + 1);
        for ((slot, &context), least) in (0..).zip(contexts).zip(least) {
            let len = context.max(least);
            step.push(slot, &[0], len - 1, &[&vec![0; len.div_ceil(BLOCK_SIZE)]]);
        }
        let mut first = 0;
        for &(num, chunks) in prefixes {
            let end = (first + num).min(contexts.len());
            let sequences: Vec<u32> = (word(first)..word(end)).collect();
            if !sequences.is_empty() {
                step.share_prefix(0, chunks * CHUNK, &sequences);
            }
            first = end;
        }
        step
    }

    proptest! {
        /// Each chunk of each sequence is computed once, by itself or for all who share it, and
        /// each partial result is written once, where the sequence that it is of looks for it.
        #[test]
        fn every_chunk_is_computed_once_and_every_partial_is_written_once(
            contexts in prop::collection::vec(1_usize..3000, 1..40),
            prefixes in prop::collection::vec((1_usize..20, 1_usize..9), 0..4),
            (num_kv_heads, group) in (1_usize..4, 1_usize..=16),
            multiprocessors in 1_usize..300,
            max_partials in prop_oneof![Just(usize::MAX), 0_usize..20_000],
        ) {
            let step = decodes(&contexts, &prefixes);
            let params = params(num_kv_heads, group);
            let room = AttentionRoom { multiprocessors, max_partials, max_decodes: usize::MAX };
            let mut plan = AttentionPlan::default();
            plan.plan(&step, &params, TABLES, room);
            prop_assert!(plan.num_partials <= max_partials);
            let num_seqs = step.num_seqs();
            prop_assert!(
                plan.prefixes.len()
                    <= AttentionPlan::most_prefix_work(&params, num_seqs, multiprocessors)
            );
            let (_, most_decodes) =
                AttentionPlan::most_work(&params, num_seqs, num_seqs, plan.num_partials);
            prop_assert!(plan.decodes.len() <= most_decodes);
            prop_assert!(
                plan.num_tickets <= AttentionPlan::most_tickets(&params, num_seqs)
            );

            // By sequence, of KV head 0 and the first row: chunks, and where each piece's result
            // goes.
            let mut chunks = vec![Vec::new(); num_seqs];
            let mut partials: BTreeMap<usize, usize> = BTreeMap::new();
            let mut write = |base: u32, index: u32, rows: usize| {
                *partials.entry(base as usize + index as usize * rows).or_default() += 1;
            };
            for work in &plan.prefixes {
                prop_assert_eq!(work.num_queries as usize * group > work.first_row as usize, true);
                if work.first_row > 0 {
                    continue;
                }
                let sharers = &plan.sharers[work.first_query as usize..][..work.num_queries as usize];
                for sharer in sharers {
                    let own = work.first_chunk..work.first_chunk + work.num_chunks;
                    chunks[sharer.query as usize].extend(own.clone());
                    if work.first_chunk == 0 {
                        prop_assert_eq!(own.end - 1, work.first_partial);
                        write(sharer.partial, 0, group);
                    } else {
                        own.for_each(|chunk| {
                            write(sharer.partial, chunk - work.first_partial, group);
                        });
                    }
                }
            }
            let mut read = 0;
            for work in &plan.decodes {
                let own = work.first_chunk..work.first_chunk + work.num_chunks;
                if work.first_row > 0 {
                    continue;
                }
                chunks[work.first_query as usize].extend(own.clone());
                let rows = group.min(AttentionPlan::decode_columns(group));
                if work.num_partials > 0 {
                    let last = work.first_partial + work.num_partials;
                    prop_assert!(own.end <= last);
                    own.clone().for_each(|chunk| write(work.partial, chunk - work.first_partial, rows));
                    if own.end == last {
                        read += work.num_partials as usize;
                    }
                }
            }
            for (sequence, mut chunks) in chunks.into_iter().enumerate() {
                chunks.sort_unstable();
                let num = (step.context_lens[sequence] as usize).div_ceil(CHUNK);
                prop_assert_eq!(chunks, (0..word(num)).collect::<Vec<_>>());
            }
            prop_assert!(partials.values().all(|&times| times == 1));
            prop_assert_eq!(partials.len(), read);
            // Those of the last are not beyond what there is.
            let last = partials.last_key_value().map_or(0, |(at, _)| at + 1);
            prop_assert!(last <= plan.num_partials);
        }
    }

    #[test]
    fn a_prefix_is_computed_on_all_multiprocessors() {
        let room = AttentionRoom {
            multiprocessors: 132,
            max_partials: usize::MAX,
            max_decodes: usize::MAX,
        };
        let mut plan = AttentionPlan::default();
        // 512 rows of each of 8 KV heads are 32 blocks.
        plan.plan(&decodes(&[4200; 128], &[(128, 16)]), &params(8, 4), TABLES, room);
        assert_eq!(plan.prefixes.len() * 8, 128);
        // Where there is no room for so many partial results, there is one of each row.
        let room = AttentionRoom { max_partials: 128 * 32 * 2, ..room };
        plan.plan(&decodes(&[4200; 128], &[(128, 16)]), &params(8, 4), TABLES, room);
        assert_eq!((plan.prefixes.len() * 8, plan.num_partials), (32, 128 * 32 * 2));
        // And none is shared where there is not even that.
        let room = AttentionRoom { max_partials: 128 * 32 * 2 - 1, ..room };
        plan.plan(&decodes(&[4200; 128], &[(128, 16)]), &params(8, 4), TABLES, room);
        assert!(plan.prefixes.is_empty() && plan.sharers.is_empty());
    }

    #[test]
    fn windows_and_other_groups_share_nothing() {
        let room =
            AttentionRoom { multiprocessors: 4, max_partials: usize::MAX, max_decodes: usize::MAX };
        let step = decodes(&[1000; 8], &[(8, 2)]);
        let mut plan = AttentionPlan::default();
        let windowed = AttentionParams { mask: Mask::Sliding(600), ..params(2, 4) };
        plan.plan(&step, &windowed, TABLES, room);
        assert!(plan.prefixes.is_empty());
        plan.plan(&step, &params(2, 4), GroupTables { group: 1, ..TABLES }, room);
        assert!(plan.prefixes.is_empty());
        plan.plan(&step, &params(1, 17), TABLES, room);
        assert!(plan.prefixes.is_empty() && !plan.prompts.is_empty());
    }
}
