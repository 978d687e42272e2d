//! Continuous batching over the block pool, meant to be read in one sitting.
//!
//! A step computes one token for every decoding sequence, then prompt chunks of running sequences, then
//! admits waiting ones while the token budget lasts. Nobody bypasses the budget. The rules:
//!
//! * **Order.** Running sequences are kept by seniority: interactive before batch, then by age.
//! * **Admission** happens between any two steps, in the order of [`super::waiting`]. A sequence first takes
//!   what the pool knows of its prefix, then all blocks that its known tokens lack, and must leave one block
//!   for every running sequence to grow by; so a prompt, once admitted, is never short of blocks, and nobody
//!   is preempted at once. A sequence whose next block this very step computes waits for the next step, and
//!   finds it.
//! * **Preemption.** A decoding sequence that needs a block takes it from the least senior one, which may be
//!   itself. So the most senior always makes progress, and since no sequence can outgrow the pool, everyone
//!   ends.
//! * **Restores.** A sequence whose blocks come back from elsewhere is admitted like any other, with room for all its
//!   tokens, and is not planned until they have come. It counts as running, and is preempted like any running one.
//! * **Proposals.** A decoding sequence may get further rows for tokens it may go on with; see [`super::speculate`].
//! * **Alone.** While a sequence that runs alone is there, every other step is that of the most senior such
//!   sequence, and the steps between are for all others.
//!
//! Invariants: a row's context lies in the sequence's own table, whose shared blocks hold exactly its prefix;
//! no sealed block is written; `check_integrity` after any call is sound.

use super::draft::Draft;
use super::sequence::{Left, NewSequence, Sampled, Sequence};
use super::speculate::Judge;
use super::waiting::Waiting;
use super::{Limits, Refused, SequenceId, Speculation, StepPlan};
use crate::kv::{BlockId, BlockPool, PrefixHash};

/// How many sequences are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sequences that hold blocks.
    pub running: usize,
    /// Sequences that wait for admission.
    pub waiting: usize,
    /// Preemptions since the start.
    pub preempted_total: u64,
}

/// Decides what each step computes. One thread owns it.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pub(super) speculation: Option<Speculation>,
    pub(super) pool: BlockPool,
    /// Most senior first.
    pub(super) running: Vec<Sequence>,
    pub(super) waiting: Waiting,
    /// Whether somebody keeps the blocks that preempted sequences lose.
    keeps_preempted: bool,
    preempted_total: u64,
    last_step_alone: bool,
}

impl Scheduler {
    /// A scheduler without sequences over a pool whose blocks are all its own.
    ///
    /// # Panics
    /// Where a limit is 0; configuration refuses that.
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        assert!(limits.max_sequences > 0 && limits.batch_tokens > 0, "a step has room for a row");
        Self {
            limits,
            speculation: None,
            pool,
            running: Vec::new(),
            waiting: Waiting::default(),
            keeps_preempted: false,
            preempted_total: 0,
            last_step_alone: false,
        }
    }

    /// From now on preempted sequences wait, once admitted again, for those of their blocks that were evicted: the caller
    /// copies what [`Self::take_evicted`] names and [`Self::wanted_back`] asks for.
    pub fn keep_preempted(&mut self) {
        self.keeps_preempted = true;
    }

    /// Queues a sequence, unless it could never run. The caller bounds how many wait.
    pub fn add(&mut self, new: NewSequence) -> Result<(), Refused> {
        self.limits.check(&new, &self.pool)?;
        if self.sequences().any(|sequence| sequence.id == new.id) {
            return Err(Refused::Duplicate(new.id));
        }
        self.waiting.push(Sequence::new(new, self.pool.block_tokens()));
        Ok(())
    }

    /// The next step, or none if there is no work. A plan that is not applied counts as not run.
    pub fn schedule(&mut self) -> Option<StepPlan> {
        self.schedule_judged(&mut |_, _, _| ())
    }

    /// The same, with proposals that were judged by somebody who knows more of the sequences.
    pub fn schedule_judged(&mut self, judge: Judge<'_>) -> Option<StepPlan> {
        for sequence in &mut self.running {
            sequence.planned = 0;
            sequence.proposed.clear();
        }
        let prefer_alone = !self.last_step_alone;
        for alone in [prefer_alone, !prefer_alone] {
            let mut draft = Draft::new(self.limits.batch_tokens);
            if alone {
                self.plan_alone(&mut draft);
            } else {
                self.plan_shared(&mut draft);
                self.propose(&mut draft, judge);
            }
            if let Some(plan) = draft.finish(&self.running) {
                self.last_step_alone = alone;
                return Some(plan);
            }
        }
        None
    }

    /// Takes in what the plan last scheduled computed: for each sequence that samples in it, in any order of sequences, the
    /// token of its first sampled row, and as long as that is the token of the next row, the next row's. Full blocks are
    /// sealed; ended sequences leave. Other entries are ignored, and a row that lacks its entry is computed again. Returns
    /// the ended ones.
    pub fn apply(&mut self, sampled: &[Sampled]) -> Vec<Left> {
        let pool = &mut self.pool;
        let ended = self.running.extract_if(.., |sequence| {
            let id = sequence.id;
            sequence.advance(sampled.iter().filter(|sample| sample.id == id), pool)
        });
        let ended: Vec<Sequence> = ended.collect();
        ended.into_iter().map(|sequence| sequence.leave(&mut self.pool)).collect()
    }

    /// The plan last scheduled failed: its sequences leave, since what they wrote cannot be trusted. Returns
    /// them.
    pub fn fail_step(&mut self) -> Vec<SequenceId> {
        let mut failed = Vec::new();
        let pool = &mut self.pool;
        self.running.retain_mut(|sequence| {
            let in_plan = sequence.planned > 0;
            if in_plan {
                sequence.release(pool);
                failed.push(sequence.id);
            }
            !in_plan
        });
        failed
    }

    /// Drops a sequence that was cancelled or lost, also while a plan with it runs. None: it was not here.
    pub fn remove(&mut self, id: SequenceId) -> Option<Left> {
        let sequence = match self.running.iter().position(|sequence| sequence.id == id) {
            Some(index) => self.running.remove(index),
            None => self.waiting.remove(id)?,
        };
        Some(sequence.leave(&mut self.pool))
    }

    /// Drops a sequence whose results are not to be trusted, and with it every block of its own that could be found again.
    pub fn discard(&mut self, id: SequenceId) {
        if let Some(left) = self.remove(id) {
            self.pool.forget(left.chain.hashes());
        }
    }

    /// The tokens of a running sequence, and the hashes of its full blocks that are computed.
    pub fn computed(&self, id: SequenceId) -> Option<(&[u32], &[PrefixHash])> {
        let sequence = self.running.iter().find(|sequence| sequence.id == id)?;
        Some((sequence.chain.tokens(), sequence.sealed()))
    }

    /// How many tokens of the sequence were found in the pool instead of computed when it was first admitted.
    /// None: it is not here (any more).
    pub fn cached_tokens(&self, id: SequenceId) -> Option<u32> {
        self.sequences().find(|sequence| sequence.id == id).map(|sequence| sequence.cached_tokens)
    }

    /// How many sequences are where.
    pub fn counts(&self) -> Counts {
        let (running, waiting) = (self.running.len(), self.waiting.len());
        Counts { running, waiting, preempted_total: self.preempted_total }
    }

    /// Whether any sequence is here. Where none is restoring, [`Self::schedule`] returns a plan then.
    pub fn has_work(&self) -> bool {
        self.sequences().next().is_some()
    }

    /// The pool, to be looked at.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Which cached blocks were evicted since this was last called; to be looked at before the next plan is computed, which
    /// writes them.
    pub fn take_evicted(&mut self) -> Vec<(PrefixHash, BlockId)> {
        self.pool.take_evicted()
    }

    /// Forgets every cached block: what follows is computed as on a fresh worker.
    pub fn evict_cached(&mut self) {
        self.pool.evict_cached();
    }

    /// Whether pool, tables and queues agree.
    pub fn check_integrity(&self) -> Result<(), String> {
        let tables = self.running.iter().map(|sequence| &sequence.table);
        self.pool.check_integrity(tables)?;
        self.sequences().try_for_each(Sequence::check_integrity)?;
        if self.waiting.iter().any(|sequence| !sequence.table.is_empty()) {
            return Err("a waiting sequence holds blocks".into());
        }
        if !self.running.is_sorted_by_key(Sequence::seniority)
            || self.running.len() > self.limits.max_sequences
        {
            return Err("running sequences are too many or out of order".into());
        }
        Ok(())
    }

    fn plan_shared(&mut self, draft: &mut Draft) {
        let mut index = 0;
        while index < self.running.len() && draft.has_room() {
            let sequence = &self.running[index];
            let decodes = sequence.pending() == 1 && !sequence.restoring;
            if !sequence.alone && decodes && self.make_room(index) {
                draft.push(&mut self.running[index]);
            }
            index += 1;
        }
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.alone && sequence.planned == 0) {
            draft.push(sequence);
        }
        while draft.has_room() && self.waiting.head().is_some_and(|head| !head.alone) {
            let Some(index) = self.admit_head(draft) else { return };
            draft.push(&mut self.running[index]);
        }
    }

    fn plan_alone(&mut self, draft: &mut Draft) {
        if self.waiting.head().is_some_and(|head| head.alone) {
            self.admit_head(draft);
        }
        let ready = |sequence: &Sequence| sequence.alone && !sequence.restoring;
        let Some(index) = self.running.iter().position(ready) else { return };
        if self.make_room(index) {
            draft.push(&mut self.running[index]);
        }
    }

    /// Moves the head of the queue to the running sequences, where it fits; returns its index there.
    fn admit_head(&mut self, draft: &Draft) -> Option<usize> {
        if self.running.len() >= self.limits.max_sequences {
            return None;
        }
        let head = self.waiting.head()?;
        head.find_prefix(&mut self.pool);
        // Every running sequence and the new one can grow by a block; the only one may have the whole pool.
        let reserve = if self.running.is_empty() { 0 } else { self.running.len() + 1 };
        let missing = head.missing_blocks();
        let fits = self.pool.available() >= missing + reserve;
        let soon_known = head.wanted().first().is_some_and(|hash| draft.completes(hash));
        let blocks = if fits && !soon_known { self.pool.allocate(missing) } else { None };
        let Some(blocks) = blocks else {
            head.release(&mut self.pool);
            return None;
        };
        head.table.grow(blocks);
        let admitted = self.waiting.take_head()?;
        let index = self.running.partition_point(|other| other.seniority() < admitted.seniority());
        self.running.insert(index, admitted);
        Some(index)
    }

    /// Sees that a running sequence's blocks hold its known tokens, preempting the least senior ones as
    /// needed. False: that was itself, and it is gone from the running ones.
    fn make_room(&mut self, index: usize) -> bool {
        while index < self.running.len() {
            if let Some(blocks) = self.pool.allocate(self.running[index].missing_blocks()) {
                self.running[index].table.grow(blocks);
                return true;
            }
            if let Some(mut victim) = self.running.pop() {
                victim.preempt(self.keeps_preempted, &mut self.pool);
                self.waiting.put_back(victim);
                self.preempted_total += 1;
            }
        }
        false
    }

    pub(super) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.iter().chain(self.waiting.iter())
    }
}

#[cfg(test)]
mod tests;
