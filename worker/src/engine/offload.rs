//! Blocks of preempted sequences, in memory until they are admitted again.
//!
//! Invariants: a block is copied after the scheduler evicted it and before a step writes it; never more bytes than the
//! budget; what nobody wants back is given up. What is not here is computed again.

use std::collections::{HashMap, HashSet};

use crate::kv::{BlockId, PrefixHash};
use crate::model::Engine;
use crate::observe::metrics;
use crate::schedule::{Scheduler, SequenceId};

/// Evicted blocks that are wanted back.
pub(super) struct Offload {
    blocks: HashMap<PrefixHash, Vec<u8>>,
    bytes: usize,
    budget: usize,
}

impl Offload {
    /// At most `budget` bytes; 0: none are kept.
    pub fn new(budget: usize) -> Self {
        Self { blocks: HashMap::new(), bytes: 0, budget }
    }

    /// Copies those of the `evicted` blocks that a preempted sequence wants back.
    pub fn keep(&mut self, evicted: Vec<(PrefixHash, BlockId)>, scheduler: &Scheduler, model: &impl Engine) {
        if evicted.is_empty() || self.budget == 0 {
            return;
        }
        let wanted = self.forget_unwanted(scheduler);
        for (hash, block) in evicted.into_iter().filter(|(hash, _)| wanted.contains(hash)) {
            match model.read_blocks(&[block]) {
                Ok(data) if self.bytes + data.len() > self.budget => return,
                Ok(data) => {
                    self.bytes += data.len();
                    metrics::block_offloaded();
                    self.blocks.insert(hash, data);
                }
                Err(error) => tracing::warn!(%error, "a preempted turn's block is not kept"),
            }
        }
    }

    /// Gives an admitted sequence what is here of its blocks, in order, and ends its restore.
    pub fn bring_back(&mut self, id: SequenceId, scheduler: &mut Scheduler, model: &mut impl Engine) {
        while self.bring_next(id, scheduler, model).is_some() {
            metrics::block_brought_back();
        }
        scheduler.end_restore(id);
        self.forget_unwanted(scheduler);
    }

    fn bring_next(
        &mut self,
        id: SequenceId,
        scheduler: &mut Scheduler,
        model: &mut impl Engine,
    ) -> Option<()> {
        let sealed = scheduler.restoring().find(|(other, _)| *other == id)?.1;
        let hash = *scheduler.hashes(id)?.get(sealed)?;
        let data = self.blocks.get(&hash)?;
        let blocks = scheduler.restore(id, &(sealed..sealed + 1)).filter(|blocks| !blocks.is_empty())?;
        if let Err(error) = model.write_blocks(0, &blocks, data) {
            tracing::warn!(%error, "a preempted turn's block does not come back");
            return None;
        }
        scheduler.seal_restored(id, 1);
        Some(())
    }

    /// Returns what is wanted.
    fn forget_unwanted<'a>(&mut self, scheduler: &'a Scheduler) -> HashSet<&'a PrefixHash> {
        let wanted: HashSet<&PrefixHash> = scheduler.wanted_back().collect();
        self.blocks.retain(|hash, _| wanted.contains(hash));
        self.bytes = self.blocks.values().map(Vec::len).sum();
        wanted
    }
}
