//! Who holds which block of the KV cache.

use sconce_types::BlockId;

/// The pool of KV-cache blocks.
///
/// A block with reference count 0 is free. The block freed last is given out
/// first: its memory is warm, and a pool larger than what is used at once costs
/// no memory beyond that. The list is threaded through the blocks themselves:
/// every operation is O(1) a block, and none allocates.
#[derive(Clone, Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// The free block to give out next.
    next_free: Option<BlockId>,
    num_free: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    ref_count: u32,
    /// The free block to give out after this one.
    next_free: Option<BlockId>,
}

impl BlockPool {
    /// A pool of free blocks, the lowest ids first to go.
    ///
    /// # Panics
    /// If a block's index does not fit a [`BlockId`].
    #[must_use]
    pub fn new(num_blocks: usize) -> Self {
        let mut pool =
            Self { blocks: vec![Block::default(); num_blocks], next_free: None, num_free: 0 };
        for index in (0..u32::try_from(num_blocks).expect("block ids are 32 bits")).rev() {
            pool.push_free(BlockId(index));
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

    /// Takes the block that was freed last.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let id = self.next_free?;
        let block = &mut self.blocks[id.index()];
        assert_eq!(block.ref_count, 0, "a free block has no holder");
        block.ref_count = 1;
        self.next_free = block.next_free.take();
        self.num_free -= 1;
        Some(id)
    }

    /// Gives back one reference to each block of a table, the tail first, so
    /// that blocks are given out again in the table's order.
    pub fn free(&mut self, table: impl DoubleEndedIterator<Item = BlockId>) {
        for id in table.rev() {
            let block = &mut self.blocks[id.index()];
            assert!(block.ref_count > 0, "block {} was freed twice", id.0);
            block.ref_count -= 1;
            if block.ref_count == 0 {
                self.push_free(id);
            }
        }
    }

    fn push_free(&mut self, id: BlockId) {
        self.blocks[id.index()].next_free = self.next_free.replace(id);
        self.num_free += 1;
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
        }
        let mut walked = 0;
        let mut next = self.next_free;
        while let Some(id) = next {
            assert_eq!(held[id.index()], 0, "block {} is free and held", id.0);
            walked += 1;
            assert!(walked <= self.blocks.len(), "the free list is a line, not a ring");
            next = self.blocks[id.index()].next_free;
        }
        assert_eq!(walked, self.num_free, "the free list holds every free block once");
        let num_held = held.iter().filter(|&&count| count > 0).count();
        assert_eq!(walked + num_held, self.blocks.len(), "no block is lost");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_freed_last_come_back_first_and_in_their_tables_order() {
        let mut pool = BlockPool::new(4);
        let table: Vec<_> = (0..3).map(|_| pool.allocate().expect("a free block")).collect();
        assert_eq!(table, [BlockId(0), BlockId(1), BlockId(2)]);
        pool.free(table.into_iter());
        let order: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(order, [BlockId(0), BlockId(1), BlockId(2), BlockId(3)]);
        assert_eq!(pool.allocate(), None);
        pool.check_invariants(std::iter::once(&order[..]));
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
