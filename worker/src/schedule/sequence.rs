//! One sequence as the scheduler sees it: its tokens, and how many of them are in the pool.
//!
//! Invariants: `computed < chain.len()`, so there is always something to plan; all full computed blocks are
//! sealed; the block of the last token is never sealed, so it is computed in a block of the sequence's own. A proposed
//! token becomes one of its tokens, and its row computed, only by being sampled: nothing else seals or hashes a block.

use std::mem;

use turnmill_schema::Priority;

use super::SequenceId;
use super::lookup::Lookup;
use super::trust::Trust;
use crate::kv::{BlockPool, BlockTable, PrefixHash, TokenChain};

/// A turn to be scheduled.
#[derive(Debug)]
pub struct NewSequence {
    /// Its id, unique among the scheduler's.
    pub id: SequenceId,
    /// The prompt and the tokens that earlier attempts published, hashed in blocks of the pool's size. Its namespace says
    /// whose blocks the sequence may find and leave behind.
    pub chain: TokenChain,
    /// How long it may get, prompt included. It ends at this length, whether or not its caller says so.
    pub max_total_tokens: u32,
    /// Who is admitted first.
    pub priority: Priority,
    /// Give it steps of its own, so that whatever it does to a step hurts no other turn.
    pub alone: bool,
    /// How many of its first blocks may come from elsewhere: if fewer are in the pool when it is admitted, it waits for
    /// the rest until [`super::Scheduler::end_restore`]. 0: none.
    pub restorable_blocks: usize,
}

/// A token that a step sampled for a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Whose token it is.
    pub id: SequenceId,
    /// The token.
    pub token: u32,
    /// Whether the sequence ends with it.
    pub finished: bool,
}

/// A sequence that left: what it knew, of which the pool may still hold the full blocks.
#[derive(Debug)]
pub struct Left {
    /// Which.
    pub id: SequenceId,
    /// Its tokens, the last one sampled included, with the hashes of all its full blocks, computed or not.
    pub chain: TokenChain,
}

/// A running or waiting sequence. A waiting one holds no block and has nothing computed.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: SequenceId,
    pub priority: Priority,
    pub alone: bool,
    /// When it came, counted in sequences; set by [`super::waiting::Waiting`].
    pub arrival: u64,
    /// Tokens found in the pool at the first admission.
    pub cached_tokens: u32,
    pub chain: TokenChain,
    pub table: BlockTable,
    /// How many tokens' K and V are in the table's blocks.
    pub computed: usize,
    /// Its rows in the plan that is running, without those of proposed tokens.
    pub planned: usize,
    /// Tokens that it may go on with, which have rows in the plan that is running.
    pub proposed: Vec<u32>,
    /// It holds its blocks and is not planned, because what lies in them comes from elsewhere.
    pub restoring: bool,
    restorable_blocks: usize,
    max_total_tokens: usize,
    preempted: bool,
    lookup: Lookup,
    trust: Trust,
}

impl Sequence {
    pub fn new(new: NewSequence, block_tokens: u32) -> Self {
        Self {
            id: new.id,
            priority: new.priority,
            alone: new.alone,
            arrival: 0,
            cached_tokens: 0,
            chain: new.chain,
            table: BlockTable::new(block_tokens),
            computed: 0,
            planned: 0,
            proposed: Vec::new(),
            restoring: false,
            restorable_blocks: new.restorable_blocks,
            max_total_tokens: new.max_total_tokens as usize,
            preempted: false,
            lookup: Lookup::default(),
            trust: Trust::default(),
        }
    }

    /// Orders sequences by who is preempted last: interactive before batch, then the older one.
    pub fn seniority(&self) -> (bool, u64) {
        (self.priority == Priority::Batch, self.arrival)
    }

    /// How many tokens are known and not computed; at least 1. Exactly 1 is a decoding sequence, or a prompt
    /// found but for its last token, which costs the same.
    pub fn pending(&self) -> usize {
        self.chain.len() - self.computed
    }

    /// Whether the plan computes its last token and nothing else of it. Not true of one that runs alone.
    pub fn decodes(&self) -> bool {
        !self.alone && self.planned == 1 && self.pending() == 1
    }

    /// How many tokens may be proposed to it at most.
    pub fn room_for_guesses(&self) -> usize {
        // The row of the last proposed token makes one more, and none may follow the last that it may have.
        self.max_total_tokens.saturating_sub(self.chain.len() + 1)
    }

    /// At most `most` tokens that it may go on with.
    pub fn guess(&mut self, most: usize) -> Vec<u32> {
        if most == 0 || !self.trust.allows(self.chain.len()) {
            return Vec::new();
        }
        self.lookup.propose(self.chain.tokens(), most)
    }

    /// How many blocks its known tokens lack.
    pub fn missing_blocks(&self) -> usize {
        self.table.missing_blocks(self.chain.len())
    }

    /// Hashes of the blocks that another sequence may compute or have computed for this one: all full blocks
    /// from the first unsealed one on, but never the block of the last token.
    pub fn wanted(&self) -> &[PrefixHash] {
        let full_before_last = (self.chain.len() - 1) / self.block_tokens();
        &self.hashes()[self.table.sealed_blocks()..full_before_last]
    }

    /// Hashes of the blocks that are full once `rows` more tokens are computed.
    pub fn completed_by(&self, rows: usize) -> &[PrefixHash] {
        let full = (self.computed + rows) / self.block_tokens();
        &self.hashes()[self.table.sealed_blocks()..full]
    }

    /// Hashes of all its full blocks.
    pub fn hashes(&self) -> &[PrefixHash] {
        self.chain.hashes()
    }

    /// Hashes of its full blocks that are computed.
    pub fn sealed(&self) -> &[PrefixHash] {
        &self.hashes()[..self.table.sealed_blocks()]
    }

    /// Whether it had blocks and lost them.
    pub fn is_preempted(&self) -> bool {
        self.preempted
    }

    /// Starts a waiting sequence's table with what the pool knows of its tokens.
    pub fn find_prefix(&mut self, pool: &mut BlockPool) {
        let found = pool.match_prefix(self.wanted());
        self.table = BlockTable::with_prefix(pool.block_tokens(), found);
        self.computed = self.table.sealed_tokens();
        self.restoring = self.restorable_blocks > self.table.sealed_blocks() && !self.wanted().is_empty();
        if !self.preempted {
            self.cached_tokens = self.computed as u32;
        }
    }

    /// Takes in what its rows of the plan computed and `sampled`, row by row; true when the sequence has ended.
    ///
    /// A row whose sample is missing counts as not computed: it will be planned again.
    pub fn advance<'a>(
        &mut self,
        mut sampled: impl Iterator<Item = &'a Sampled>,
        pool: &mut BlockPool,
    ) -> bool {
        let (rows, proposed) = (mem::take(&mut self.planned), mem::take(&mut self.proposed));
        let reached_last = rows == self.pending();
        let mut next = if reached_last { sampled.next() } else { None };
        if rows == 0 || (reached_last && next.is_none()) {
            return false;
        }
        let (mut accepted, mut ended) = (0, false);
        while let Some(sample) = next.take() {
            self.chain.push(sample.token);
            ended = sample.finished || self.chain.len() >= self.max_total_tokens;
            if !ended && proposed.get(accepted) == Some(&sample.token) {
                next = sampled.next();
                accepted += usize::from(next.is_some());
            }
        }
        for hash in self.completed_by(rows + accepted).to_vec() {
            self.table.seal_next(pool, hash);
        }
        self.computed += rows + accepted;
        if !proposed.is_empty() {
            self.trust.verified(proposed.len(), accepted, self.chain.len());
        }
        ended
    }

    /// Its next `count` blocks came back from elsewhere.
    pub fn seal_restored(&mut self, count: usize, pool: &mut BlockPool) {
        let sealed = self.table.sealed_blocks();
        for index in sealed..sealed + count {
            self.table.seal_next(pool, self.chain.hashes()[index]);
        }
        self.computed = self.table.sealed_tokens();
    }

    /// Nothing more comes back.
    pub fn end_restore(&mut self) {
        self.restoring = false;
        self.restorable_blocks = 0;
        if !self.preempted {
            self.cached_tokens = self.computed as u32;
        }
    }

    /// Gives its blocks back for good.
    pub fn leave(mut self, pool: &mut BlockPool) -> Left {
        self.release(pool);
        Left { id: self.id, chain: self.chain }
    }

    /// Gives its blocks back; what was sealed stays findable.
    pub fn release(&mut self, pool: &mut BlockPool) {
        self.table.release(pool);
        self.computed = 0;
        self.planned = 0;
        self.proposed.clear();
        self.restoring = false;
    }

    /// Gives its blocks back to a sequence that goes first. When it is admitted again it waits for those of them that
    /// were evicted, where somebody `keeps` such blocks; what nobody has is computed again.
    pub fn preempt(&mut self, keeps: bool, pool: &mut BlockPool) {
        self.release(pool);
        self.preempted = true;
        if keeps {
            self.restorable_blocks = usize::MAX;
        }
    }

    /// Whether its own books agree.
    pub fn check_integrity(&self) -> Result<(), String> {
        let block_tokens = self.block_tokens();
        let known = self.computed + self.planned;
        let sound = known <= self.chain.len()
            && (self.proposed.is_empty() || (self.planned > 0 && known == self.chain.len()))
            && known + self.proposed.len() <= self.chain.len().max(self.table.len() * block_tokens)
            && !(self.restoring && self.planned > 0)
            && self.computed < self.chain.len()
            && self.computed / block_tokens == self.table.sealed_blocks()
            && self.computed <= self.table.len() * block_tokens
            && self.chain.len() / block_tokens == self.hashes().len();
        if sound {
            return Ok(());
        }
        // Numbers only: token ids are as private as the text.
        let (id, computed, planned, tokens) = (self.id.0, self.computed, self.planned, self.chain.len());
        Err(format!("sequence {id}: {computed} of {tokens} computed, {planned} planned, {:?}", self.table))
    }

    fn block_tokens(&self) -> usize {
        self.table.block_tokens()
    }
}
