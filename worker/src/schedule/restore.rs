//! Prefixes that come back from outside the pool, block by block.
//!
//! Invariant: a restore's table holds a prefix without gaps, so that what is cached when it ends is reachable.

use super::{Scheduler, SequenceId};
use crate::kv::{BlockId, BlockTable, PrefixHash};

/// A prefix on its way back.
#[derive(Debug)]
pub(super) struct Restore {
    pub id: SequenceId,
    pub table: BlockTable,
}

impl Scheduler {
    /// Blocks to be written with the last `count` of `prefix`, for a sequence that is added later; to be followed by
    /// [`Self::seal_restored`]. None: there is no room, or the blocks before them are not there. Either way what it holds is
    /// held until [`Self::end_restore`].
    pub fn restore(&mut self, id: SequenceId, prefix: &[PrefixHash], count: usize) -> Option<Vec<BlockId>> {
        let before = prefix.len().checked_sub(count)?;
        let index = self.restore_index(id, &prefix[..before])?;
        let reserve = self.running.len() + 1;
        let fits = self.restores[index].table.len() == before && self.pool.available() >= count + reserve;
        let blocks = if fits { self.pool.allocate(count)? } else { return None };
        let ids = blocks.iter().map(|block| block.id()).collect();
        self.restores[index].table.grow(blocks);
        Some(ids)
    }

    /// The blocks that [`Self::restore`] gave hold `hashes` now.
    pub fn seal_restored(&mut self, id: SequenceId, hashes: &[PrefixHash]) {
        if let Some(restore) = self.restores.iter_mut().find(|restore| restore.id == id) {
            hashes.iter().for_each(|hash| restore.table.seal_next(&mut self.pool, *hash));
        }
    }

    /// All that comes has come: it is cached from here on, until somebody wants it or its room.
    pub fn end_restore(&mut self, id: SequenceId) {
        if let Some(index) = self.restores.iter().position(|restore| restore.id == id) {
            self.restores.remove(index).table.release(&mut self.pool);
        }
    }

    /// Finds the sequence's restore, or begins one with what the pool has, which must be all of `before`.
    fn restore_index(&mut self, id: SequenceId, before: &[PrefixHash]) -> Option<usize> {
        if let Some(index) = self.restores.iter().position(|restore| restore.id == id) {
            return Some(index);
        }
        let mut table = BlockTable::with_prefix(self.pool.block_tokens(), self.pool.match_prefix(before));
        if table.len() < before.len() {
            table.release(&mut self.pool);
            return None;
        }
        self.restores.push(Restore { id, table });
        Some(self.restores.len() - 1)
    }
}
