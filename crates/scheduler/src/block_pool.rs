//! Who holds which block of the KV cache, and which blocks hold what.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;
use sconce_types::BlockId;

use crate::prefix::BlockHash;

/// What a block is found by: the hash of its tokens and of all before them, and the cache
/// group whose layers it holds.
pub type BlockKey = (BlockHash, u32);

/// The pool of KV-cache blocks.
///
/// A block with reference count 0 is free. A free block that has a key can still be found
/// and shared; it loses its key when it is given out anew. Blocks without a key are given
/// out first, the one freed last in front: its memory is warm, and a pool larger than what
/// is used at once costs no memory beyond that. Then come stale ones, those that a sequence
/// left behind as its window moved on and that were never found: a long prompt so takes
/// its own trail before what others may find. Then the others, the one freed longest ago
/// first. The lists are threaded through the blocks themselves: every operation is O(1) a
/// block, and none allocates.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Free blocks, by [`Kind`].
    free: [List; 3],
    num_free: usize,
    by_key: HashMap<BlockKey, BlockId, FxBuildHasher>,
}

/// The lists of free blocks, in the order in which they are given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    /// Without a key.
    #[default]
    Blank,
    /// With a key, left behind by a window and never found.
    Stale,
    /// With a key.
    Cached,
}

const KINDS: [Kind; 3] = [Kind::Blank, Kind::Stale, Kind::Cached];

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    ref_count: u32,
    /// The list it is in while it is free, and its neighbours there.
    kind: Kind,
    previous: Option<BlockId>,
    next: Option<BlockId>,
    key: Option<BlockKey>,
    /// Whether it was found since it has its key.
    was_hit: bool,
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
            free: [List::default(); 3],
            num_free: num_blocks,
            by_key: HashMap::default(),
        };
        for index in (0..u32::try_from(num_blocks).expect("block ids are 32 bits")).rev() {
            pool.free[Kind::Blank as usize].push_first(BlockId(index), &mut pool.blocks);
        }
        pool
    }

    /// Blocks in all.
    #[must_use]
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that no sequence holds.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// Sequences that hold a block.
    #[must_use]
    pub fn ref_count(&self, id: BlockId) -> u32 {
        self.blocks[id.index()].ref_count
    }

    /// Of each block, whether it is free and has a key to be found by.
    pub(crate) fn are_cached(&self) -> impl Iterator<Item = bool> {
        self.blocks.iter().map(|block| block.ref_count == 0 && block.key.is_some())
    }

    /// Takes a free block: blank, stale, or the cached one freed longest ago.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.free.iter().find_map(|list| list.first)?;
        self.unlink(id);
        let block = &mut self.blocks[id.index()];
        assert_eq!(block.ref_count, 0, "a free block has no holder");
        block.ref_count = 1;
        if let Some(key) = block.key.take() {
            self.by_key.remove(&key);
        }
        Some(id)
    }

    /// The block of this key, free or not.
    #[must_use]
    pub fn find(&self, key: BlockKey) -> Option<BlockId> {
        self.by_key.get(&key).copied()
    }

    /// Takes a reference to a block that was found.
    pub fn share(&mut self, id: BlockId) {
        if self.blocks[id.index()].ref_count == 0 {
            self.unlink(id);
        }
        let block = &mut self.blocks[id.index()];
        block.ref_count += 1;
        block.was_hit = true;
    }

    /// Gives a held block its key, now that it is full. Where another block has the key
    /// already, this one stays without.
    pub fn set_key(&mut self, id: BlockId, key: BlockKey) {
        let block = &mut self.blocks[id.index()];
        assert!(block.ref_count > 0, "only a held block gets a key");
        if block.key.is_none() {
            let found = *self.by_key.entry(key).or_insert(id);
            block.key = (found == id).then_some(key);
            block.was_hit = false;
        }
    }

    /// Takes a held block's key away: it is not found any more.
    pub fn remove_key(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.index()];
        assert!(block.ref_count > 0, "only a held block loses its key so");
        if let Some(key) = block.key.take() {
            self.by_key.remove(&key);
        }
    }

    /// Takes all keys away: nothing is found any more.
    pub fn remove_keys(&mut self) {
        self.by_key.clear();
        for kind in [Kind::Stale, Kind::Cached] {
            while let Some(id) = self.free[kind as usize].first {
                self.free[kind as usize].unlink(id, &mut self.blocks);
                self.free[Kind::Blank as usize].push_first(id, &mut self.blocks);
                self.blocks[id.index()].kind = Kind::Blank;
            }
        }
        self.blocks.iter_mut().for_each(|block| block.key = None);
    }

    /// Gives back one reference to each block of a table, the tail first, so
    /// that blocks are given out again in the table's order, and a prefix can be
    /// found as long as its continuations.
    pub fn free(&mut self, table: impl DoubleEndedIterator<Item = BlockId>) {
        for id in table.rev() {
            self.release(id, Kind::Cached);
        }
    }

    /// Gives back one reference to a block that a window has left behind; says whether
    /// that made it free.
    pub fn free_stale(&mut self, id: BlockId) -> bool {
        let was_hit = self.blocks[id.index()].was_hit;
        self.release(id, if was_hit { Kind::Cached } else { Kind::Stale })
    }

    fn release(&mut self, id: BlockId, with_key: Kind) -> bool {
        let block = &mut self.blocks[id.index()];
        assert!(block.ref_count > 0, "block {} was freed twice", id.0);
        block.ref_count -= 1;
        if block.ref_count > 0 {
            return false;
        }
        self.num_free += 1;
        block.kind = if block.key.is_some() { with_key } else { Kind::Blank };
        let kind = block.kind;
        let list = &mut self.free[kind as usize];
        if kind == Kind::Blank {
            list.push_first(id, &mut self.blocks);
        } else {
            list.push_last(id, &mut self.blocks);
        }
        true
    }

    /// Takes a free block out of its list.
    fn unlink(&mut self, id: BlockId) {
        let kind = self.blocks[id.index()].kind;
        self.free[kind as usize].unlink(id, &mut self.blocks);
        self.num_free -= 1;
    }

    /// Checks the pool against the blocks that sequences hold: every block is
    /// free or held, never both, and held as often as sequences say.
    ///
    /// # Panics
    /// Naming the invariant that is broken.
    pub fn check_invariants(&self, held_blocks: impl Iterator<Item = BlockId>) {
        let mut held = vec![0u32; self.blocks.len()];
        for id in held_blocks {
            held[id.index()] += 1;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            assert_eq!(
                block.ref_count, held[index],
                "block {index} is counted as often as tables hold it"
            );
            if let Some(key) = block.key {
                let found = self.by_key.get(&key).map(|id| id.index());
                assert_eq!(found, Some(index), "a block's key leads to it");
            }
        }
        let num_keys = self.blocks.iter().filter(|block| block.key.is_some()).count();
        assert_eq!(num_keys, self.by_key.len(), "every key is a block's");
        let mut walked = 0;
        for kind in KINDS {
            let list = &self.free[kind as usize];
            let mut previous = None;
            let mut next = list.first;
            while let Some(id) = next {
                let block = &self.blocks[id.index()];
                assert_eq!(held[id.index()], 0, "block {} is free and held", id.0);
                assert_eq!(block.kind, kind, "block {} is in its list", id.0);
                assert_eq!(block.key.is_some(), kind != Kind::Blank, "block {}'s key", id.0);
                assert_eq!(block.previous, previous, "neighbours know each other");
                walked += 1;
                assert!(walked <= self.blocks.len(), "a free list has an end");
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
        pool.check_invariants(order.into_iter());
    }

    #[test]
    fn cached_blocks_are_found_until_there_is_no_other() {
        let mut pool = BlockPool::new(5);
        let table = take(&mut pool, 3);
        let names = [BlockHash(7), BlockHash(8), BlockHash(9)];
        table.iter().zip(names).for_each(|(&id, name)| pool.set_key(id, (name, 0)));
        pool.free(table.iter().copied());
        pool.check_invariants(std::iter::empty());
        let blank = take(&mut pool, 2);
        assert_eq!(blank, [BlockId(3), BlockId(4)], "what has no key goes first");
        // The tail was freed first, so it goes first.
        assert_eq!(pool.allocate(), Some(table[2]));
        assert_eq!(pool.find((names[2], 0)), None);
        assert_eq!(pool.find((names[0], 0)), Some(table[0]));
        pool.share(table[0]);
        pool.share(table[0]);
        assert_eq!(take(&mut pool, 1), [table[1]], "a shared block is not given out");
        assert_eq!(pool.allocate(), None);
        let held = [blank, vec![table[2], table[0], table[0], table[1]]].concat();
        pool.check_invariants(held.iter().copied());
        pool.remove_keys();
        assert_eq!(pool.find((names[0], 0)), None);
        pool.free(held.into_iter());
        pool.check_invariants(std::iter::empty());
    }

    #[test]
    fn a_key_is_one_blocks() {
        let mut pool = BlockPool::new(2);
        let table = take(&mut pool, 2);
        table.iter().for_each(|&id| pool.set_key(id, (BlockHash(1), 0)));
        assert_eq!(pool.find((BlockHash(1), 0)), Some(table[0]));
        pool.check_invariants(table.into_iter());
    }

    #[test]
    fn what_a_window_left_goes_before_what_was_freed_and_after_what_is_blank() {
        let mut pool = BlockPool::new(4);
        let table = take(&mut pool, 3);
        table.iter().for_each(|&id| pool.set_key(id, (BlockHash(id.0.into()), 1)));
        pool.free([table[0]].into_iter());
        assert!(pool.free_stale(table[1]));
        // Found once, it is not stale.
        pool.share(table[2]);
        assert!(!pool.free_stale(table[2]), "it is held still");
        assert!(pool.free_stale(table[2]));
        pool.check_invariants(std::iter::empty());
        let order: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(order, [BlockId(3), table[1], table[0], table[2]]);
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
        pool.check_invariants([id, id].into_iter());
    }

    #[test]
    #[should_panic(expected = "counted as often")]
    fn a_leaked_block_is_caught() {
        let mut pool = BlockPool::new(2);
        let _ = pool.allocate();
        pool.check_invariants(std::iter::empty());
    }
}
