//! Blocks of preempted sequences, in memory until they are admitted again.
//!
//! Invariants: a block is copied after the scheduler evicted it and before a step writes it; never more bytes than the
//! budget; what nobody wants back is given up. What is not here is computed again. Copies back keep to the step's
//! [`Budget`]; copies out cannot wait, and are as many as blocks were evicted.

use std::collections::{HashMap, HashSet, VecDeque};

use super::export::Budget;
use crate::kv::{BlockId, PrefixHash};
use crate::model::Engine;
use crate::observe::metrics;
use crate::schedule::{Scheduler, SequenceId};

/// Evicted blocks that are wanted back.
pub(super) struct Offload {
    blocks: HashMap<PrefixHash, Vec<u8>>,
    /// The same, kept longest first; may name some that are gone.
    order: VecDeque<PrefixHash>,
    bytes: usize,
    budget: usize,
}

impl Offload {
    /// At most `budget` bytes; 0: none are kept.
    pub fn new(budget: usize) -> Self {
        Self { blocks: HashMap::new(), order: VecDeque::new(), bytes: 0, budget }
    }

    /// Copies those of the `evicted` blocks that a preempted sequence wants back.
    pub fn keep(&mut self, evicted: Vec<(PrefixHash, BlockId)>, scheduler: &Scheduler, model: &impl Engine) {
        if evicted.is_empty() || self.budget == 0 {
            return;
        }
        let wanted = self.forget_unwanted(scheduler);
        for (hash, block) in evicted.into_iter().filter(|(hash, _)| wanted.contains(hash)) {
            match model.read_blocks(&[block]) {
                Ok(data) => self.insert(hash, data),
                Err(error) => tracing::warn!(%error, "a preempted turn's block is not kept"),
            }
        }
    }

    /// Gives an admitted sequence what is here of its blocks, in order, and ends its restore unless the budget ends first.
    pub fn restore(
        &mut self,
        id: SequenceId,
        scheduler: &mut Scheduler,
        model: &mut impl Engine,
        budget: &mut Budget,
    ) {
        while let Some(bytes) = self.bring_next(id, scheduler, model) {
            metrics::block_brought_back();
            budget.spend(bytes);
            if !budget.is_left() {
                return;
            }
        }
        scheduler.end_restore(id);
        self.forget_unwanted(scheduler);
    }

    fn bring_next(
        &mut self,
        id: SequenceId,
        scheduler: &mut Scheduler,
        model: &mut impl Engine,
    ) -> Option<usize> {
        let sealed = scheduler.restoring().find(|(other, _)| *other == id)?.1;
        let hash = *scheduler.hashes(id)?.get(sealed)?;
        let data = self.blocks.get(&hash)?;
        let blocks = scheduler.restore(id, &(sealed..sealed + 1)).filter(|blocks| !blocks.is_empty())?;
        if let Err(error) = model.write_blocks(0, &blocks, data) {
            tracing::warn!(%error, "a preempted turn's block does not come back");
            return None;
        }
        scheduler.seal_restored(id, 1);
        Some(data.len())
    }

    /// Keeps a block. Deep blocks are evicted first and are of no use without those before them, so where there is no room
    /// it is those kept longest that go.
    fn insert(&mut self, hash: PrefixHash, data: Vec<u8>) {
        if data.len() > self.budget {
            return;
        }
        while self.bytes + data.len() > self.budget {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.blocks.remove(&oldest).map_or(0, |data| data.len());
        }
        self.bytes += data.len();
        metrics::block_offloaded();
        self.order.push_back(hash);
        self.blocks.insert(hash, data);
    }

    /// Returns what is wanted.
    fn forget_unwanted<'a>(&mut self, scheduler: &'a Scheduler) -> HashSet<&'a PrefixHash> {
        let wanted: HashSet<&PrefixHash> = scheduler.wanted_back().collect();
        self.blocks.retain(|hash, _| wanted.contains(hash));
        self.order.retain(|hash| wanted.contains(hash));
        self.bytes = self.blocks.values().map(Vec::len).sum();
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_blocks_give_way_to_those_before_them() {
        let hash = |number: u8| PrefixHash([number; 32]);
        let mut offload = Offload::new(100);
        // Evicted deepest first.
        (1..=5).rev().for_each(|number| offload.insert(hash(number), vec![0; 30]));
        let kept: Vec<u8> = (1..=5).filter(|number| offload.blocks.contains_key(&hash(*number))).collect();
        assert_eq!((kept, offload.bytes), (vec![1, 2, 3], 90));
        offload.insert(hash(9), vec![0; 101]);
        assert_eq!((offload.blocks.len(), offload.bytes), (3, 90), "one over the whole budget is not kept");
    }
}
