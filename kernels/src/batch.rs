//! The ragged batch that a forward pass computes.

/// Input tokens of several sequences laid end to end, with what attention needs
/// to tell them apart. Sequence `s` owns rows
/// `cu_seqlens_q[s] .. cu_seqlens_q[s + 1]`; they are its last tokens, so row
/// `r` of it stands at position `context_lens[s] - (cu_seqlens_q[s + 1] - r)`.
///
/// Prefill chunks and decodes (one row) mix freely.
#[derive(Clone, Debug, Default)]
pub struct ForwardBatch {
    /// `[num_tokens]`: vocabulary ids.
    pub token_ids: Vec<u32>,
    /// `[num_tokens]`: positions, from 0.
    pub positions: Vec<u32>,
    /// `[num_seqs + 1]`: row borders, starting with 0.
    pub cu_seqlens_q: Vec<u32>,
    /// `[num_seqs]`: tokens in the cache once this batch is written, its own included.
    pub context_lens: Vec<u32>,
    /// Block tables of all sequences end to end: pool indices.
    pub block_tables: Vec<u32>,
    /// `[num_seqs + 1]`: borders in `block_tables`, starting with 0. A sequence
    /// has at least `context_lens[s].div_ceil(16)` blocks.
    pub cu_blocks: Vec<u32>,
    /// `[num_tokens]`: where a row's key and value go: `block * 16 + offset`.
    pub slot_mapping: Vec<u32>,
}

impl ForwardBatch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        let Self {
            token_ids,
            positions,
            cu_seqlens_q,
            context_lens,
            block_tables,
            cu_blocks,
            slot_mapping,
        } = self;
        for v in [token_ids, positions, context_lens, block_tables, slot_mapping] {
            v.clear();
        }
        for borders in [cu_seqlens_q, cu_blocks] {
            borders.clear();
            borders.push(0);
        }
    }

    /// Rows.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Sequences.
    #[must_use]
    pub fn num_seqs(&self) -> usize {
        self.context_lens.len()
    }

    /// Appends a sequence's input tokens. The first stands at position
    /// `num_computed_tokens`; `blocks` is the sequence's whole block table.
    ///
    /// # Panics
    /// If `blocks` does not cover the tokens: a caller's bug that would
    /// otherwise write into another sequence's cache.
    pub fn push(&mut self, token_ids: &[u32], num_computed_tokens: usize, blocks: &[u32]) {
        let context_len = num_computed_tokens + token_ids.len();
        assert!(blocks.len() * 16 >= context_len, "a block table must cover its tokens");
        if self.cu_seqlens_q.is_empty() {
            self.clear();
        }
        self.token_ids.extend_from_slice(token_ids);
        for position in num_computed_tokens..context_len {
            self.positions.push(u32::try_from(position).expect("positions are below 2^32"));
            self.slot_mapping.push(blocks[position / 16] * 16 + (position % 16) as u32);
        }
        self.block_tables.extend_from_slice(blocks);
        let border = |len: usize| u32::try_from(len).expect("a batch is below 2^32 entries");
        self.cu_seqlens_q.push(border(self.token_ids.len()));
        self.cu_blocks.push(border(self.block_tables.len()));
        self.context_lens.push(border(context_len));
    }

    /// The rows of sequence `s`.
    #[must_use]
    pub fn rows(&self, s: usize) -> std::ops::Range<usize> {
        self.cu_seqlens_q[s] as usize..self.cu_seqlens_q[s + 1] as usize
    }

    /// The block table of sequence `s`.
    #[must_use]
    pub fn blocks(&self, s: usize) -> &[u32] {
        &self.block_tables[self.cu_blocks[s] as usize..self.cu_blocks[s + 1] as usize]
    }
}
