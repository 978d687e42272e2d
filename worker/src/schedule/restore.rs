//! Blocks that come back from outside the pool, into a sequence that was admitted and is not planned until they have.
//!
//! Invariants: a restored block is one of the sequence's own and is sealed in order, so that what comes back is a prefix
//! without gaps; the block of the last token never comes back, since a step has to compute that token.

use std::ops::Range;

use super::sequence::Sequence;
use super::{Scheduler, SequenceId};
use crate::kv::{BlockId, PrefixHash};

impl Scheduler {
    /// The sequences that hold their blocks and wait for what lies in them, with the number of blocks each has already.
    pub fn restoring(&self) -> impl Iterator<Item = (SequenceId, usize)> {
        let restoring = self.running.iter().filter(|sequence| sequence.restoring);
        restoring.map(|sequence| (sequence.id, sequence.table.sealed_blocks()))
    }

    /// Where those of the sequence's `blocks` go that it lacks and may get; to be followed by [`Self::seal_restored`].
    /// None: it does not wait for them (any more), or blocks before them are missing.
    pub fn restore(&mut self, id: SequenceId, blocks: &Range<usize>) -> Option<Vec<BlockId>> {
        let sequence = self.find_restoring(id)?;
        let sealed = sequence.table.sealed_blocks();
        if blocks.start > sealed {
            return None;
        }
        let missing = blocks.end.saturating_sub(sealed).min(sequence.wanted().len());
        Some(sequence.table.mutable_blocks().take(missing).collect())
    }

    /// The first `count` blocks that the sequence lacked hold what they should.
    pub fn seal_restored(&mut self, id: SequenceId, count: usize) {
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        self.running[index].seal_restored(count, &mut self.pool);
    }

    /// All that comes has come: the sequence is planned once it is admitted, which it may be. One that still wants blocks is
    /// admitted again: where another computes them just now, it waits for them, as it would have without a restore. Else agents
    /// that share a prompt nobody stored yet would all compute it.
    pub fn end_restore(&mut self, id: SequenceId) {
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else {
            if let Some(sequence) = self.waiting.find(id) {
                sequence.end_restore();
            }
            return;
        };
        let sequence = &mut self.running[index];
        let restoring = sequence.restoring;
        sequence.end_restore();
        if restoring && !sequence.is_preempted() && !sequence.wanted().is_empty() {
            let mut sequence = self.running.remove(index);
            sequence.release(&mut self.pool);
            self.waiting.put_first(sequence);
        }
    }

    /// The hashes of all full blocks of a sequence that is here.
    pub fn hashes(&self, id: SequenceId) -> Option<&[PrefixHash]> {
        self.sequences().find(|sequence| sequence.id == id).map(Sequence::hashes)
    }

    /// Hashes of the blocks that preempted sequences had and want again, once they are admitted or now.
    pub fn wanted_back(&self) -> impl Iterator<Item = &PrefixHash> {
        let admitted = self.running.iter().filter(|sequence| sequence.restoring);
        let preempted = self.waiting.iter().chain(admitted).filter(|sequence| sequence.is_preempted());
        preempted.flat_map(Sequence::wanted)
    }

    fn find_restoring(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|sequence| sequence.id == id && sequence.restoring)
    }
}
