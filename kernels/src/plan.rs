//! All that varies from step to step, as the device is told of it.

use std::ops::Range;

use crate::{BLOCK_SIZE, KernelError, KvLayout};

/// What a device has room for; everything is sized from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows of a step.
    pub max_num_batched_tokens: usize,
    /// Sequences of a step, and slots.
    pub max_num_seqs: usize,
    /// Tokens of a sequence.
    pub max_model_len: usize,
}

impl StepLimits {
    /// Entries of a slot's block table in one group.
    #[must_use]
    pub const fn blocks_per_seq(&self) -> usize {
        self.max_model_len.div_ceil(BLOCK_SIZE)
    }
}

/// A change of a block table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEdit {
    /// The cache group whose table it is.
    pub group: u32,
    /// The slot of the sequence.
    pub slot: u32,
    /// The entry: tokens `index * BLOCK_SIZE ..` of the sequence.
    pub index: u32,
    /// The block of the pool that holds them from now on.
    pub block: u32,
}

/// First tokens that several sequences of a step have in common, in the same blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPrefix {
    /// The cache group in whose blocks they are.
    pub group: u32,
    /// How many, a multiple of [`Self::UNIT`].
    pub num_tokens: u32,
    /// Which of [`StepPlan::sharers`] they are the prefix of.
    pub sharers: Range<usize>,
}

impl SharedPrefix {
    /// Tokens that attention computes a partial result of.
    pub const UNIT: usize = 256;
}

/// The input of a forward pass: tokens of several sequences laid end to end, with what
/// attention needs to tell them apart. Sequence `s` owns rows
/// `cu_seqlens_q[s] .. cu_seqlens_q[s + 1]`; they are its last tokens, so row `r` of it
/// stands at position `context_lens[s] - (cu_seqlens_q[s + 1] - r)`. Prefill chunks and
/// decodes (one row) mix freely.
///
/// Block tables are not part of it: they stay with the cache, by slot, and a step brings
/// what changes in them.
#[derive(Debug)]
pub struct StepPlan {
    /// `[num_tokens]`: vocabulary ids, or [`Self::LAST_SAMPLED`] and a slot: what the slot
    /// sampled last, on devices that keep that ([`crate::Sampler::end_step`]).
    pub token_ids: Vec<u32>,
    /// `[num_tokens]`: positions, from 0.
    pub positions: Vec<u32>,
    /// `[num_groups][num_tokens]`: where a row's key and value go in the layers of a
    /// group: `block * BLOCK_SIZE + offset`.
    pub kv_slots: Vec<Vec<u32>>,
    /// `[num_seqs + 1]`: row borders, starting with 0.
    pub cu_seqlens_q: Vec<u32>,
    /// `[num_seqs]`: tokens in the cache once this step is written, its own included.
    pub context_lens: Vec<u32>,
    /// `[num_seqs]`: whose block tables a sequence has, each slot once at most.
    pub slots: Vec<u32>,
    /// Changes of block tables, made before anything is computed; each entry once at most.
    /// An entry holds until it is changed again. A sequence that takes a slot brings its
    /// table from the first entry that it reads on.
    pub table_edits: Vec<TableEdit>,
    /// The rows that get logits, in any order, a row more than once if need be; at most as
    /// many as the limits' rows and sequences together.
    pub logit_rows: Vec<u32>,
    /// Prefixes that a device may read once for all who share them
    /// ([`crate::Device::least_shared`]), which changes no result.
    pub prefixes: Vec<SharedPrefix>,
    /// Sequences of one row each that share a prefix, in ascending order, prefix by prefix; each
    /// sequence in one prefix of a group at most.
    pub sharers: Vec<u32>,
    /// Of a step that is recorded or replayed ([`crate::Device::capture`]): the rows that are
    /// computed, at least as many as there are. What is beyond them is padding: token 0 at
    /// position 0, which is written nowhere, and sees nothing.
    pub bucket: Option<usize>,
}

impl StepPlan {
    /// Set in a row's token where the rest is a slot; no vocabulary is so large.
    pub const LAST_SAMPLED: u32 = 1 << 31;

    /// An empty plan for a cache of so many groups.
    #[must_use]
    pub fn new(num_groups: usize) -> Self {
        Self {
            token_ids: Vec::new(),
            positions: Vec::new(),
            kv_slots: vec![Vec::new(); num_groups],
            cu_seqlens_q: vec![0],
            context_lens: Vec::new(),
            slots: Vec::new(),
            table_edits: Vec::new(),
            logit_rows: Vec::new(),
            prefixes: Vec::new(),
            sharers: Vec::new(),
            bucket: None,
        }
    }

    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        let Self {
            token_ids,
            positions,
            kv_slots,
            cu_seqlens_q,
            context_lens,
            slots,
            table_edits,
            logit_rows,
            prefixes,
            sharers,
            bucket,
        } = self;
        *bucket = None;
        prefixes.clear();
        for list in [token_ids, positions, context_lens, slots, logit_rows, sharers] {
            list.clear();
        }
        kv_slots.iter_mut().for_each(Vec::clear);
        cu_seqlens_q.clear();
        cu_seqlens_q.push(0);
        table_edits.clear();
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

    /// Whether each sequence has one row, and each row gets logits, in order: the steps that
    /// may have a [`Self::bucket`].
    #[must_use]
    pub fn is_decode(&self) -> bool {
        self.num_tokens() > 0
            && self.num_tokens() == self.num_seqs()
            && self.logit_rows.len() == self.num_seqs()
            && (0..).zip(&self.logit_rows).all(|(row, &of)| row == of)
            && (0..).zip(&self.cu_seqlens_q).all(|(row, &border)| row == border)
    }

    /// The rows of sequence `s`.
    #[must_use]
    pub fn rows(&self, s: usize) -> Range<usize> {
        self.cu_seqlens_q[s] as usize..self.cu_seqlens_q[s + 1] as usize
    }

    /// Appends a sequence's input tokens. The first stands at position
    /// `num_computed_tokens`; `tables` are the slot's block tables by group, of which the
    /// entries of these tokens are read.
    ///
    /// # Panics
    /// If the tables do not cover the tokens, or are not one for each group: a defect that
    /// would otherwise write into another sequence's cache.
    pub fn push(
        &mut self,
        slot: u32,
        token_ids: &[u32],
        num_computed_tokens: usize,
        tables: &[impl AsRef<[u32]>],
    ) {
        let context_len = num_computed_tokens + token_ids.len();
        let positions = num_computed_tokens..context_len;
        assert_eq!(tables.len(), self.kv_slots.len(), "a slot has a table in each group");
        let kv_slot = |table: &[u32], position: usize| {
            table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
        };
        let groups = self.kv_slots.iter_mut().zip(tables.iter().map(AsRef::as_ref));
        let groups = groups.inspect(|(_, table)| {
            let covered = table.len() * BLOCK_SIZE;
            assert!(covered >= context_len, "a block table must cover its tokens");
        });
        if let &[token] = token_ids {
            // A decode, as most rows are of steps that have many sequences.
            self.token_ids.push(token);
            self.positions.push(below_2_32(num_computed_tokens));
            groups.for_each(|(slots, table)| slots.push(kv_slot(table, num_computed_tokens)));
        } else {
            self.token_ids.extend_from_slice(token_ids);
            self.positions.extend(positions.clone().map(below_2_32));
            groups.for_each(|(slots, table)| {
                slots.extend(positions.clone().map(|position| kv_slot(table, position)));
            });
        }
        self.cu_seqlens_q.push(below_2_32(self.token_ids.len()));
        self.context_lens.push(below_2_32(context_len));
        self.slots.push(slot);
    }

    /// Appends a row of what a slot sampled last, as [`Self::push`] does of a token.
    ///
    /// # Panics
    /// As it does.
    pub fn push_last_sampled(
        &mut self,
        slot: u32,
        num_computed_tokens: usize,
        tables: &[impl AsRef<[u32]>],
    ) {
        self.push(slot, &[Self::LAST_SAMPLED | slot], num_computed_tokens, tables);
    }

    /// Changes a slot's table in one group from entry `first` on.
    pub fn edit_table(&mut self, group: u32, slot: u32, first: usize, blocks: &[u32]) {
        let edits = (first..).zip(blocks).map(|(index, &block)| TableEdit {
            group,
            slot,
            index: below_2_32(index),
            block,
        });
        self.table_edits.extend(edits);
    }

    /// Notes that these sequences, in ascending order, have their first `num_tokens` tokens in the
    /// same blocks of a group.
    pub fn share_prefix(&mut self, group: u32, num_tokens: usize, sequences: &[u32]) {
        let first = self.sharers.len();
        self.sharers.extend_from_slice(sequences);
        self.prefixes.push(SharedPrefix {
            group,
            num_tokens: below_2_32(num_tokens),
            sharers: first..self.sharers.len(),
        });
    }

    /// Tokens of context that sequences have in common with another and need not read again, where
    /// a device reads prefixes once.
    #[must_use]
    pub fn num_shared_tokens(&self) -> usize {
        let of_prefix = |prefix: &SharedPrefix| {
            prefix.num_tokens as usize * prefix.sharers.len().saturating_sub(1)
        };
        self.prefixes.iter().map(of_prefix).sum()
    }

    /// Takes over another plan's contents, in this one's memory.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let Self {
            token_ids,
            positions,
            kv_slots,
            cu_seqlens_q,
            context_lens,
            slots,
            table_edits,
            logit_rows,
            prefixes,
            sharers,
            bucket,
        } = self;
        *bucket = other.bucket;
        token_ids.clone_from(&other.token_ids);
        positions.clone_from(&other.positions);
        kv_slots.clone_from(&other.kv_slots);
        cu_seqlens_q.clone_from(&other.cu_seqlens_q);
        context_lens.clone_from(&other.context_lens);
        slots.clone_from(&other.slots);
        table_edits.clone_from(&other.table_edits);
        logit_rows.clone_from(&other.logit_rows);
        prefixes.clone_from(&other.prefixes);
        sharers.clone_from(&other.sharers);
    }

    /// Checks that prefixes are of whole units of sequences that have one row and see them all.
    fn check_prefixes(&self, layout: &KvLayout) -> Result<(), KernelError> {
        let wrong = |got: String| KernelError::Shape {
            op: "stage",
            what: "a shared prefix",
            got,
            expected: "whole chunks, before the one row of each of its sequences".to_owned(),
        };
        for (index, prefix) in self.prefixes.iter().enumerate() {
            let SharedPrefix { group, num_tokens, ref sharers } = *prefix;
            let Some(sequences) = self.sharers.get(sharers.clone()) else {
                return Err(wrong(format!("sharers {sharers:?} of {}", self.sharers.len())));
            };
            let others = self.prefixes[..index].iter().filter(|other| other.group == group);
            let is_new = |sequence: &u32| {
                let is_other = |other: &SharedPrefix| {
                    self.sharers[other.sharers.clone()].binary_search(sequence).is_ok()
                };
                !others.clone().any(is_other)
            };
            let fits = |&sequence: &u32| {
                let s = sequence as usize;
                s < self.num_seqs() && self.rows(s).len() == 1 && num_tokens < self.context_lens[s]
            };
            let is_whole =
                num_tokens > 0 && (num_tokens as usize).is_multiple_of(SharedPrefix::UNIT);
            if !is_whole
                || (group as usize) >= layout.num_groups
                || sequences.is_empty()
                || !sequences.is_sorted_by(|a, b| a < b)
                || !sequences.iter().all(|sequence| fits(sequence) && is_new(sequence))
            {
                return Err(wrong(format!("{num_tokens} tokens of sequences {sequences:?}")));
            }
        }
        if self.bucket.is_some() && !self.prefixes.is_empty() {
            return Err(wrong("one in a step with a bucket".to_owned()));
        }
        Ok(())
    }

    /// Checks that the lists fit each other, the limits and the cache, and tells what
    /// operations check their operands against.
    ///
    /// # Errors
    /// What does not fit.
    pub(crate) fn check(
        &self,
        limits: &StepLimits,
        (layout, cache_limits): (&KvLayout, &StepLimits),
    ) -> Result<StepSizes, KernelError> {
        if limits != cache_limits {
            return Err(KernelError::Shape {
                op: "stage",
                what: "the cache's limits",
                got: format!("{cache_limits:?}"),
                expected: format!("{limits:?} as the step's"),
            });
        }
        let (rows, seqs) = (self.num_tokens(), self.num_seqs());
        let max_rows = limits.max_num_batched_tokens;
        let computed = self.bucket.unwrap_or(rows);
        at_most("rows", computed.max(rows), max_rows)?;
        if let Some(bucket) = self.bucket {
            at_most("rows that get logits", bucket, limits.max_num_seqs)?;
            at_most("rows of a bucket", rows, bucket)?;
            if !self.is_decode() {
                return Err(KernelError::Shape {
                    op: "stage",
                    what: "a step with a bucket",
                    got: "other rows".to_owned(),
                    expected: "a row of each sequence, that gets logits".to_owned(),
                });
            }
        }
        at_most("sequences", seqs, limits.max_num_seqs)?;
        at_most("rows that get logits", self.logit_rows.len(), max_rows + limits.max_num_seqs)?;
        let fits = self.positions.len() == rows
            && self.kv_slots.len() == layout.num_groups
            && self.kv_slots.iter().all(|slots| slots.len() == rows)
            && self.slots.len() == seqs
            && self.cu_seqlens_q.len() == seqs + 1
            && self.cu_seqlens_q.is_sorted()
            && self.cu_seqlens_q.first() == Some(&0)
            && self.cu_seqlens_q.last().map(|&end| end as usize) == Some(rows);
        if !fits {
            return Err(KernelError::Shape {
                op: "stage",
                what: "the plan's lists",
                got: "of lengths that do not fit each other".to_owned(),
                expected: format!(
                    "of {rows} rows, {seqs} sequences and {} groups",
                    layout.num_groups
                ),
            });
        }
        let borders = self.cu_seqlens_q.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
        let positions = borders.zip(&self.context_lens).all(|(rows, &context_len)| {
            let start = (context_len as usize).checked_sub(rows.len());
            let positions = &self.positions[rows];
            start.is_some_and(|start| (start..).zip(positions).all(|(a, &b)| a == b as usize))
        });
        if !positions {
            return Err(KernelError::Shape {
                op: "stage",
                what: "a sequence's positions",
                got: "others".to_owned(),
                expected: "the last of its context".to_owned(),
            });
        }
        below(
            "a context's last position",
            largest(&self.context_lens).map(|len| len.max(1) - 1),
            limits.max_model_len,
        )?;
        below("a sequence's slot", largest(&self.slots), limits.max_num_seqs)?;
        below("a row that gets logits", largest(&self.logit_rows), rows)?;
        for kv_slots in &self.kv_slots {
            below("a row's place in the cache", largest(kv_slots), layout.num_blocks * BLOCK_SIZE)?;
        }
        self.check_prefixes(layout)?;
        let largest_of = |field: fn(&TableEdit) -> u32| self.table_edits.iter().map(field).max();
        below("an edit's group", largest_of(|edit| edit.group), layout.num_groups)?;
        below("an edit's slot", largest_of(|edit| edit.slot), limits.max_num_seqs)?;
        below("an edit's entry", largest_of(|edit| edit.index), limits.blocks_per_seq())?;
        below("an edit's block", largest_of(|edit| edit.block), layout.num_blocks)?;
        let largest_kept =
            largest(&self.token_ids).and_then(|token| token.checked_sub(Self::LAST_SAMPLED));
        below("the slot of a row's token", largest_kept, limits.max_num_seqs)?;
        // One more than a known token, and 0 of a slot's.
        let known = self
            .token_ids
            .iter()
            .map(|&token| if token < Self::LAST_SAMPLED { token + 1 } else { 0 });
        Ok(StepSizes {
            num_tokens: computed,
            largest_token: known.fold(0, u32::max).checked_sub(1),
            has_last_sampled: largest_kept.is_some(),
            largest_position: largest(&self.positions),
        })
    }
}

/// What operations check their operands against.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepSizes {
    pub(crate) num_tokens: usize,
    /// Of tokens that are known; `None` of no rows, as below.
    pub(crate) largest_token: Option<u32>,
    /// Whether a row's token is what a slot sampled last.
    pub(crate) has_last_sampled: bool,
    pub(crate) largest_position: Option<u32>,
}

impl StepSizes {
    /// # Errors
    /// A token is outside a table of `n` rows.
    pub(crate) fn check_tokens(&self, op: &'static str, n: usize) -> Result<(), KernelError> {
        below_in(op, "a token id", self.largest_token, n)
    }

    /// # Errors
    /// A position is outside a table of `n` rows.
    pub(crate) fn check_positions(&self, op: &'static str, n: usize) -> Result<(), KernelError> {
        below_in(op, "a position", self.largest_position, n)
    }
}

/// The largest of a list, if it has any; a loop of many lanes.
fn largest(list: &[u32]) -> Option<u32> {
    (!list.is_empty()).then(|| list.iter().copied().fold(0, u32::max))
}

#[inline]
fn below_2_32(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a step are below 2^32")
}

fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), KernelError> {
    if got <= limit {
        return Ok(());
    }
    let (got, expected) = (got.to_string(), format!("at most {limit}"));
    Err(KernelError::Shape { op: "stage", what, got, expected })
}

fn below(what: &'static str, largest: Option<u32>, limit: usize) -> Result<(), KernelError> {
    below_in("stage", what, largest, limit)
}

/// An error unless the largest of some numbers is below `limit`.
pub(crate) fn below_in(
    op: &'static str,
    what: &'static str,
    largest: Option<u32>,
    limit: usize,
) -> Result<(), KernelError> {
    match largest {
        Some(largest) if largest as usize >= limit => Err(KernelError::Shape {
            op,
            what,
            got: largest.to_string(),
            expected: format!("below {limit}"),
        }),
        _ => Ok(()),
    }
}
