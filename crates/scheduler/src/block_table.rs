//! The blocks of one sequence, in every cache group.

use std::ops::Range;

use sconce_types::{BLOCK_SIZE, BlockId, Slot, TableEdit};

use crate::{BlockPool, MAX_CACHE_GROUPS, Span};

/// An entry that holds no block.
const NONE: BlockId = BlockId(u32::MAX);

/// A sequence's block tables. Entry `i` of a group covers tokens `16 i .. 16 (i + 1)`; entries
/// are appended at the end, and where the group keeps a window released from the beginning.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockTable {
    /// `[index][group]`
    entries: Vec<BlockId>,
    num_groups: usize,
    /// The entries that hold a block, by group.
    held: [Range<u32>; MAX_CACHE_GROUPS],
    /// Entries that the executor was told, by group.
    told: [u32; MAX_CACHE_GROUPS],
    num_held: usize,
    /// Whether there are entries that the executor was not told.
    has_news: bool,
}

impl BlockTable {
    pub(crate) fn new(num_groups: usize) -> Self {
        Self { num_groups, ..Self::default() }
    }

    /// Blocks held, over all groups.
    pub(crate) fn num_held(&self) -> usize {
        self.num_held
    }

    /// The number of entries that a group has, released ones included.
    pub(crate) fn len(&self, group: usize) -> usize {
        self.held[group].end as usize
    }

    /// Whether every group has entries for so many tokens.
    pub(crate) fn covers(&self, tokens: usize) -> bool {
        let end = tokens.div_ceil(BLOCK_SIZE) as u32;
        self.held[..self.num_groups].iter().all(|held| held.end >= end)
    }

    /// The first entry of a group that is held.
    pub(crate) fn first(&self, group: usize) -> usize {
        self.held[group].start as usize
    }

    /// The block of an entry that is held.
    pub(crate) fn block(&self, group: usize, index: usize) -> BlockId {
        debug_assert!(self.held[group].contains(&(index as u32)), "the entry is held");
        self.entries[index * self.num_groups + group]
    }

    /// Begins an empty table at an entry: those before it are not needed.
    pub(crate) fn begin(&mut self, group: usize, index: usize) {
        debug_assert!(self.held[group].is_empty(), "a table begins once");
        self.held[group] = index as u32..index as u32;
        self.told[group] = index as u32;
    }

    /// Appends a block.
    pub(crate) fn push(&mut self, group: usize, index: usize, block: BlockId) {
        let at = index * self.num_groups + group;
        if self.entries.len() <= at {
            self.entries.resize((index + 1) * self.num_groups, NONE);
        }
        let held = &mut self.held[group];
        assert_eq!(held.end as usize, index, "entries are appended in order");
        held.end += 1;
        self.has_news = true;
        self.entries[at] = block;
        self.num_held += 1;
    }

    /// Releases the entries of a window that lie wholly below what the token at `position`
    /// needs; says how many, and how many of their blocks are free by that.
    pub(crate) fn leave_behind(
        &mut self,
        group: usize,
        span: Span,
        position: usize,
        pool: &mut BlockPool,
    ) -> (usize, usize) {
        let needed = span.first_needed(position) / BLOCK_SIZE;
        let held = &mut self.held[group];
        let (mut left, mut freed) = (0, 0);
        while (held.start as usize) < needed.min(held.end as usize) {
            let at = held.start as usize * self.num_groups + group;
            let block = std::mem::replace(&mut self.entries[at], NONE);
            held.start += 1;
            left += 1;
            freed += usize::from(pool.free_stale(block));
        }
        self.num_held -= left;
        (left, freed)
    }

    /// Releases everything.
    pub(crate) fn release(&mut self, pool: &mut BlockPool) {
        pool.free(self.entries.drain(..).filter(|&block| block != NONE));
        self.held = Default::default();
        self.told = Default::default();
        self.num_held = 0;
        self.has_news = false;
    }

    /// Every block that is held.
    pub(crate) fn blocks(&self) -> impl DoubleEndedIterator<Item = BlockId> {
        self.entries.iter().copied().filter(|&block| block != NONE)
    }

    /// Appends what the executor does not know yet to `edits`.
    #[inline]
    pub(crate) fn tell(&mut self, slot: Slot, edits: &mut Vec<TableEdit>) {
        if std::mem::take(&mut self.has_news) {
            self.tell_news(slot, edits);
        }
    }

    fn tell_news(&mut self, slot: Slot, edits: &mut Vec<TableEdit>) {
        for group in 0..self.num_groups {
            let end = self.held[group].end;
            // Entries that were released before they were told are not needed.
            for index in self.told[group].max(self.held[group].start)..end {
                let block = self.entries[index as usize * self.num_groups + group];
                edits.push(TableEdit { slot, group: group as u32, index, block });
            }
            self.told[group] = end;
        }
    }
}
