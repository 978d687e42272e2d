//! A sequence's block table: which blocks hold its K and V, in order.
//!
//! Invariants: it only grows at the end until it is released whole; its shared blocks come first; only its
//! mutable blocks have slots to write, so no path leads to writing a block that others read.

use std::collections::VecDeque;
use std::mem;

use super::{BlockId, BlockPool, MutableBlock, PrefixHash, SharedBlock};

/// The blocks of one sequence. [`Self::release`] it before dropping it.
#[derive(Debug)]
pub struct BlockTable {
    block_tokens: usize,
    shared: Vec<SharedBlock>,
    mutable: VecDeque<MutableBlock>,
}

impl BlockTable {
    /// A table without blocks.
    pub fn new(block_tokens: u32) -> Self {
        Self { block_tokens: block_tokens as usize, shared: Vec::new(), mutable: VecDeque::new() }
    }

    /// A table that starts with the blocks of a known prefix.
    pub fn with_prefix(block_tokens: u32, shared: Vec<SharedBlock>) -> Self {
        Self { shared, ..Self::new(block_tokens) }
    }

    /// Tokens a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// How many blocks it has.
    pub fn len(&self) -> usize {
        self.shared.len() + self.mutable.len()
    }

    /// True without blocks.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of its blocks are sealed: full and immutable.
    pub fn sealed_blocks(&self) -> usize {
        self.shared.len()
    }

    /// How many tokens its sealed blocks hold.
    pub fn sealed_tokens(&self) -> usize {
        self.shared.len() * self.block_tokens
    }

    /// How many more blocks it needs to hold `tokens`.
    pub fn missing_blocks(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens).saturating_sub(self.len())
    }

    /// The blocks that hold the first `tokens`, first to last.
    pub fn blocks(&self, tokens: usize) -> Vec<BlockId> {
        let blocks = tokens.div_ceil(self.block_tokens);
        self.shared_blocks().chain(self.mutable_blocks()).take(blocks).collect()
    }

    /// Where the K and V of the token at `position` are written: `block * block_tokens + offset`.
    ///
    /// # Panics
    /// Where the position lies in a sealed block or past the last one: nobody may write there.
    pub fn write_slot(&self, position: usize) -> u32 {
        let (block, offset) = (position / self.block_tokens, position % self.block_tokens);
        let mutable = block.checked_sub(self.shared.len()).and_then(|index| self.mutable.get(index));
        let Some(block) = mutable else {
            panic!("position {position} lies outside the table's mutable blocks: {self:?}")
        };
        block.id().0 * self.block_tokens as u32 + offset as u32
    }

    /// Adds blocks at the end.
    pub fn grow(&mut self, blocks: Vec<MutableBlock>) {
        self.mutable.extend(blocks);
    }

    /// Seals the first mutable block, which is full of computed, verified tokens, under its prefix hash.
    pub fn seal_next(&mut self, pool: &mut BlockPool, hash: PrefixHash) {
        if let Some(block) = self.mutable.pop_front() {
            self.shared.push(pool.seal(block, hash));
        }
    }

    /// Gives all blocks back and leaves the table empty.
    pub fn release(&mut self, pool: &mut BlockPool) {
        self.mutable.drain(..).for_each(|block| pool.free(block));
        pool.release(mem::take(&mut self.shared));
    }

    /// Its sealed blocks, first to last.
    pub fn shared_blocks(&self) -> impl Iterator<Item = BlockId> {
        self.shared.iter().map(SharedBlock::id)
    }

    /// Its blocks that may still be written, first to last.
    pub fn mutable_blocks(&self) -> impl Iterator<Item = BlockId> {
        self.mutable.iter().map(MutableBlock::id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pool: &mut BlockPool, blocks: usize) -> BlockTable {
        let mut table = BlockTable::new(pool.block_tokens());
        table.grow(pool.allocate(blocks).expect("room"));
        table
    }

    #[test]
    fn slots_follow_the_table_and_not_the_position() {
        let mut pool = BlockPool::new(4, 4);
        let other = table(&mut pool, 1);
        let mut table = table(&mut pool, 1);
        table.grow(pool.allocate(1).expect("room"));
        assert_eq!(other.blocks(4), [BlockId(0)]);
        assert_eq!(table.blocks(5), [BlockId(1), BlockId(2)]);
        assert_eq!(table.blocks(4), [BlockId(1)]);
        assert_eq!([0, 3, 4, 7].map(|position| table.write_slot(position)), [4, 7, 8, 11]);
        assert_eq!([0, 8, 9, 16].map(|tokens| table.missing_blocks(tokens)), [0, 0, 1, 2]);
    }

    #[test]
    #[should_panic(expected = "position 3 lies outside")]
    fn a_sealed_block_cannot_be_written() {
        let mut pool = BlockPool::new(4, 4);
        let mut table = table(&mut pool, 2);
        table.seal_next(&mut pool, PrefixHash([1; 32]));
        assert_eq!(table.write_slot(4), 4);
        table.write_slot(3);
    }

    #[test]
    fn a_found_prefix_comes_first_and_is_released_with_the_rest() {
        let mut pool = BlockPool::new(8, 4);
        let hashes = [PrefixHash([1; 32]), PrefixHash([2; 32])];
        let mut first = table(&mut pool, 2);
        hashes.iter().for_each(|hash| first.seal_next(&mut pool, *hash));
        let mut second = BlockTable::with_prefix(4, pool.match_prefix(&hashes));
        second.grow(pool.allocate(1).expect("room"));
        assert_eq!(second.blocks(8), first.blocks(8));
        assert_eq!((second.len(), second.sealed_tokens()), (3, 8));
        pool.check_integrity([&first, &second]).expect("sound");
        first.release(&mut pool);
        second.release(&mut pool);
        assert!(second.is_empty());
        assert_eq!(pool.counts().cached, 2);
        pool.check_integrity([]).expect("sound");
    }
}
