//! Who holds which block of the KV cache, and which blocks hold what.

use std::collections::HashMap;

use sconce_types::BlockId;

use crate::prefix::BlockHash;

/// The pool of KV-cache blocks.
///
/// A block with reference count 0 is free. A free block that has a name, the hash of
/// its contents and all that comes before them, can still be found and shared; it is
/// given out anew only when there is no other, the one freed longest ago first, and
/// loses its name then. Of free blocks without a name the one freed last is given out
/// first: its memory is warm, and a pool larger than what is used at once costs no
/// memory beyond that. Both lists are threaded through the blocks themselves: every
/// operation is O(1) a block, and none allocates.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Free blocks without a name, the next to be given out first.
    blank: List,
    /// Free blocks with a name, the one freed longest ago first.
    named: List,
    num_free: usize,
    by_hash: HashMap<BlockHash, BlockId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    ref_count: u32,
    /// Its neighbours in the list it is in while it is free.
    previous: Option<BlockId>,
    next: Option<BlockId>,
    name: Option<BlockHash>,
}

/// A list of free blocks.
#[derive(Clone, Copy, Debug, Default)]
struct List {
    first: Option<BlockId>,
    last: Option<BlockId>,
}

impl BlockPool {
    /// A pool of free blocks, the lowest ids first to go.
    ///
    /// # Panics
    /// If a block's index does not fit a [`BlockId`].
    #[must_use]
    pub fn new(num_blocks: usize) -> Self {
        let mut pool = Self {
            blocks: vec![Block::default(); num_blocks],
            blank: List::default(),
            named: List::default(),
            num_free: num_blocks,
            by_hash: HashMap::new(),
        };
        for index in (0..u32::try_from(num_blocks).expect("block ids are 32 bits")).rev() {
            pool.blank.push_first(BlockId(index), &mut pool.blocks);
        }
        pool
    }

    /// Blocks in all.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// Takes a free block, one without a name if there is one.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.blank.first.or(self.named.first)?;
        self.unlink(id);
        let block = &mut self.blocks[id.index()];
        assert_eq!(block.ref_count, 0, "a free block has no holder");
        block.ref_count = 1;
        if let Some(name) = block.name.take() {
            self.by_hash.remove(&name);
        }
        Some(id)
    }

    /// The block of this name, free or not.
    #[must_use]
    pub fn find(&self, name: BlockHash) -> Option<BlockId> {
        self.by_hash.get(&name).copied()
    }

    /// Takes a reference to a block that was found.
    pub fn share(&mut self, id: BlockId) {
        if self.blocks[id.index()].ref_count == 0 {
            self.unlink(id);
        }
        self.blocks[id.index()].ref_count += 1;
    }

    /// Names a block that somebody holds, now that it is full. Where another block has
    /// the name already, this one stays without.
    pub fn name(&mut self, id: BlockId, name: BlockHash) {
        let block = &mut self.blocks[id.index()];
        assert!(block.ref_count > 0, "only who holds a block knows what is in it");
        if block.name.is_none() {
            let named = *self.by_hash.entry(name).or_insert(id);
            block.name = (named == id).then_some(name);
        }
    }

    /// Takes the name of a block that somebody holds away: it is not found any more.
    pub fn forget_name(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        assert!(block.ref_count > 0, "only who holds a block knows what is in it");
        if let Some(name) = block.name.take() {
            self.by_hash.remove(&name);
        }
    }

    /// Takes all names away: nothing is found any more.
    pub fn forget_names(&mut self) {
        self.by_hash.clear();
        while let Some(id) = self.named.first {
            self.named.unlink(id, &mut self.blocks);
            self.blank.push_first(id, &mut self.blocks);
        }
        self.blocks.iter_mut().for_each(|block| block.name = None);
    }

    /// Gives back one reference to each block of a table, the tail first, so
    /// that blocks are given out again in the table's order, and a prefix can be
    /// found as long as its continuations.
    pub fn free(&mut self, table: impl DoubleEndedIterator<Item = BlockId>) {
        for id in table.rev() {
            let block = &mut self.blocks[id.index()];
            assert!(block.ref_count > 0, "block {} was freed twice", id.0);
            block.ref_count -= 1;
            if block.ref_count > 0 {
                continue;
            }
            self.num_free += 1;
            if block.name.is_some() {
                self.named.push_last(id, &mut self.blocks);
            } else {
                self.blank.push_first(id, &mut self.blocks);
            }
        }
    }

    /// Takes a free block out of its list.
    fn unlink(&mut self, id: BlockId) {
        let is_named = self.blocks[id.index()].name.is_some();
        let list = if is_named { &mut self.named } else { &mut self.blank };
        list.unlink(id, &mut self.blocks);
        self.num_free -= 1;
    }

    /// Checks the pool against the tables that hold its blocks: every block is
    /// free or held, never both, and held as often as tables name it.
    ///
    /// # Panics
    /// Naming the invariant that is broken.
    pub fn check_invariants<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) {
        let mut held = vec![0u32; self.blocks.len()];
        for id in tables.flatten() {
            held[id.index()] += 1;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            assert_eq!(
                block.ref_count, held[index],
                "block {index} is counted as often as tables hold it"
            );
            if let Some(name) = block.name {
                let found = self.by_hash.get(&name).map(|id| id.index());
                assert_eq!(found, Some(index), "a block's name leads to it");
            }
        }
        let num_named = self.blocks.iter().filter(|block| block.name.is_some()).count();
        assert_eq!(num_named, self.by_hash.len(), "every name is a block's");
        let mut walked = 0;
        for (list, is_named) in [(&self.blank, false), (&self.named, true)] {
            let mut previous = None;
            let mut next = list.first;
            while let Some(id) = next {
                let block = &self.blocks[id.index()];
                assert_eq!(held[id.index()], 0, "block {} is free and held", id.0);
                assert_eq!(block.name.is_some(), is_named, "block {} is in its list", id.0);
                assert_eq!(block.previous, previous, "neighbours know each other");
                walked += 1;
                assert!(walked <= self.blocks.len(), "a free list is a line, not a ring");
                previous = next;
                next = block.next;
            }
            assert_eq!(list.last, previous, "a list ends with its last block");
        }
        assert_eq!(walked, self.num_free, "the free lists hold every free block once");
        let num_held = held.iter().filter(|&&count| count > 0).count();
        assert_eq!(walked + num_held, self.blocks.len(), "no block is lost");
    }
}

impl List {
    fn push_first(&mut self, id: BlockId, blocks: &mut [Block]) {
        let next = self.first.replace(id);
        blocks[id.index()].next = next;
        blocks[id.index()].previous = None;
        match next {
            Some(next) => blocks[next.index()].previous = Some(id),
            None => self.last = Some(id),
        }
    }

    fn push_last(&mut self, id: BlockId, blocks: &mut [Block]) {
        let previous = self.last.replace(id);
        blocks[id.index()].previous = previous;
        blocks[id.index()].next = None;
        match previous {
            Some(previous) => blocks[previous.index()].next = Some(id),
            None => self.first = Some(id),
        }
    }

    fn unlink(&mut self, id: BlockId, blocks: &mut [Block]) {
        let Block { previous, next, .. } = blocks[id.index()];
        match previous {
            Some(previous) => blocks[previous.index()].next = next,
            None => self.first = next,
        }
        match next {
            Some(next) => blocks[next.index()].previous = previous,
            None => self.last = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(pool: &mut BlockPool, count: usize) -> Vec<BlockId> {
        (0..count).map(|_| pool.allocate().expect("a free block")).collect()
    }

    #[test]
    fn blocks_freed_last_come_back_first_and_in_their_tables_order() {
        let mut pool = BlockPool::new(4);
        let table = take(&mut pool, 3);
        assert_eq!(table, [BlockId(0), BlockId(1), BlockId(2)]);
        pool.free(table.into_iter());
        let order: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(order, [BlockId(0), BlockId(1), BlockId(2), BlockId(3)]);
        assert_eq!(pool.allocate(), None);
        pool.check_invariants(std::iter::once(&order[..]));
    }

    #[test]
    fn named_blocks_are_found_until_there_is_no_other() {
        let mut pool = BlockPool::new(5);
        let table = take(&mut pool, 3);
        let names = [BlockHash(7), BlockHash(8), BlockHash(9)];
        table.iter().zip(names).for_each(|(&id, name)| pool.name(id, name));
        pool.free(table.iter().copied());
        pool.check_invariants(std::iter::empty());
        let blank = take(&mut pool, 2);
        assert_eq!(blank, [BlockId(3), BlockId(4)], "what has no name goes first");
        // The tail was freed first, so it goes first.
        assert_eq!(pool.allocate(), Some(table[2]));
        assert_eq!(pool.find(names[2]), None);
        assert_eq!(pool.find(names[0]), Some(table[0]));
        pool.share(table[0]);
        pool.share(table[0]);
        assert_eq!(take(&mut pool, 1), [table[1]], "a shared block is not given out");
        assert_eq!(pool.allocate(), None);
        let held = [blank, vec![table[2], table[0], table[0], table[1]]].concat();
        pool.check_invariants(std::iter::once(&held[..]));
        pool.forget_names();
        assert_eq!(pool.find(names[0]), None);
        pool.free(held.into_iter());
        pool.check_invariants(std::iter::empty());
    }

    #[test]
    fn a_name_is_one_blocks() {
        let mut pool = BlockPool::new(2);
        let table = take(&mut pool, 2);
        table.iter().for_each(|&id| pool.name(id, BlockHash(1)));
        assert_eq!(pool.find(BlockHash(1)), Some(table[0]));
        pool.check_invariants(std::iter::once(&table[..]));
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn a_double_free_is_caught() {
        let mut pool = BlockPool::new(2);
        let id = pool.allocate().expect("a free block");
        pool.free([id, id].into_iter());
    }

    #[test]
    #[should_panic(expected = "counted as often")]
    fn a_block_in_two_tables_is_caught() {
        let mut pool = BlockPool::new(2);
        let id = pool.allocate().expect("a free block");
        pool.check_invariants([&[id][..], &[id][..]].into_iter());
    }

    #[test]
    #[should_panic(expected = "counted as often")]
    fn a_leaked_block_is_caught() {
        let mut pool = BlockPool::new(2);
        let _ = pool.allocate();
        pool.check_invariants(std::iter::empty());
    }
}
