//! The block pool: which blocks are free, written, shared or cached. One thread owns it; no lock.
//!
//! Invariants, checked by [`BlockPool::check_integrity`]:
//! * free + cached + held = total, and every reference is counted;
//! * a mutable block has one holder; a shared one is full and nobody writes it;
//! * a cached block's ancestors are cached or held, so everything findable is reachable from the first block.
//!
//! A block's state is the type of its handle. Handles cannot be copied and every call consumes them, so
//! writing a shared block or releasing twice does not compile. A dropped handle leaks its block until the
//! process ends.

use std::collections::{BTreeMap, HashMap};
use std::mem;

use super::{BlockId, BlockTable, PrefixHash};

/// A block that its holder alone writes and reads.
#[derive(Debug)]
#[must_use = "a dropped handle leaks its block; free or seal it"]
pub struct MutableBlock(BlockId);

/// One reference to a full, immutable block.
#[derive(Debug)]
#[must_use = "a dropped handle leaks its reference; release it"]
pub struct SharedBlock(BlockId);

impl MutableBlock {
    /// Which block it is.
    pub fn id(&self) -> BlockId {
        self.0
    }
}

impl SharedBlock {
    /// Which block it is.
    pub fn id(&self) -> BlockId {
        self.0
    }
}

/// How many blocks are in which state; `free + cached + held = total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// All of them.
    pub total: usize,
    /// Holding nothing.
    pub free: usize,
    /// Without holder, findable until their room is needed.
    pub cached: usize,
    /// In at least one sequence's table.
    pub held: usize,
    /// Cached blocks whose content was ever given up for room.
    pub evicted_total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Mutable,
    Shared { hash: PrefixHash, holders: usize },
    Cached { hash: PrefixHash, released: u64 },
}

impl State {
    /// How many references and how many writers tables must hold.
    fn expected_holders(&self) -> (usize, usize) {
        match self {
            Self::Free | Self::Cached { .. } => (0, 0),
            Self::Mutable => (0, 1),
            Self::Shared { holders, .. } => (*holders, 0),
        }
    }
}

/// All blocks of a worker.
#[derive(Debug)]
pub struct BlockPool {
    block_tokens: u32,
    states: Vec<State>,
    free: Vec<BlockId>,
    /// Shared and cached blocks.
    known: HashMap<PrefixHash, BlockId>,
    /// Cached blocks by the moment of their release: the first is evicted next.
    cached: BTreeMap<u64, BlockId>,
    /// Releases so far: the pool's only notion of time.
    releases: u64,
    /// What was evicted since somebody last asked, oldest first; at most as many as there are blocks.
    evicted: Vec<(PrefixHash, BlockId)>,
    evicted_total: u64,
}

impl BlockPool {
    /// A pool of `blocks` free blocks of `block_tokens` tokens each.
    ///
    /// # Panics
    /// Where either is 0, or a slot number would not fit 32 bits; configuration refuses both.
    pub fn new(blocks: u32, block_tokens: u32) -> Self {
        assert!(blocks > 0 && block_tokens > 0, "a pool has at least one block of one token");
        assert!(blocks.checked_mul(block_tokens).is_some(), "slot numbers fit 32 bits");
        Self {
            block_tokens,
            states: vec![State::Free; blocks as usize],
            free: (0..blocks).rev().map(BlockId).collect(),
            known: HashMap::new(),
            cached: BTreeMap::new(),
            releases: 0,
            evicted: Vec::new(),
            evicted_total: 0,
        }
    }

    /// Tokens a block.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    /// Blocks that [`Self::allocate`] could hand out: free and cached ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// How many blocks are in which state.
    pub fn counts(&self) -> PoolCounts {
        let (total, free, cached) = (self.states.len(), self.free.len(), self.cached.len());
        PoolCounts { total, free, cached, held: total - free - cached, evicted_total: self.evicted_total }
    }

    /// The share of blocks that could be handed out, 0 to 1.
    pub fn headroom(&self) -> f64 {
        self.available() as f64 / self.states.len() as f64
    }

    /// How many blocks at the start of `hashes` are known.
    pub fn known_prefix(&self, hashes: &[PrefixHash]) -> usize {
        hashes.iter().take_while(|hash| self.known.contains_key(hash)).count()
    }

    /// The blocks that hold `hashes`; none unless all are known. What they hold stays as it is until the next step
    /// is scheduled, whichever sequence has them.
    pub fn find(&self, hashes: &[PrefixHash]) -> Option<Vec<BlockId>> {
        hashes.iter().map(|hash| self.known.get(hash).copied()).collect()
    }

    /// Takes a reference to each block of the longest known prefix of `hashes`.
    pub fn match_prefix(&mut self, hashes: &[PrefixHash]) -> Vec<SharedBlock> {
        hashes.iter().map_while(|hash| self.known.get(hash).copied().map(|id| self.hold(id))).collect()
    }

    /// `count` blocks to write, or none where fewer are available. Free ones go first, then the cached one
    /// released longest ago.
    pub fn allocate(&mut self, count: usize) -> Option<Vec<MutableBlock>> {
        if self.available() < count {
            return None;
        }
        Some((0..count).map_while(|_| self.take()).collect())
    }

    /// Makes a full block immutable and findable. Where its content is already known, the known block is
    /// returned and `block` becomes free.
    pub fn seal(&mut self, block: MutableBlock, hash: PrefixHash) -> SharedBlock {
        if let Some(known) = self.known.get(&hash).copied() {
            self.free(block);
            return self.hold(known);
        }
        self.known.insert(hash, block.0);
        *self.state(block.0) = State::Shared { hash, holders: 1 };
        SharedBlock(block.0)
    }

    /// Gives back a block whose content nobody needs.
    pub fn free(&mut self, block: MutableBlock) {
        *self.state(block.0) = State::Free;
        self.free.push(block.0);
    }

    /// Gives back the references of one table, first block first. Blocks without holder stay cached.
    ///
    /// The last block counts as released first: what lies deeper is cheaper to rebuild, and nothing is
    /// findable behind an evicted ancestor. A sequence that holds a block holds its ancestors, so the order is right
    /// across tables too.
    pub fn release(&mut self, blocks: Vec<SharedBlock>) {
        for SharedBlock(id) in blocks.into_iter().rev() {
            let released = self.releases;
            let state = self.state(id);
            match state {
                State::Shared { holders, .. } if *holders > 1 => *holders -= 1,
                State::Shared { hash, .. } => {
                    *state = State::Cached { hash: *hash, released };
                    self.cached.insert(released, id);
                    self.releases += 1;
                }
                other => unreachable!("somebody holds block {}, which is {other:?}", id.0),
            }
        }
    }

    /// Frees those cached blocks that have one of `hashes`: what they hold is not to be trusted.
    pub fn forget(&mut self, hashes: &[PrefixHash]) {
        for hash in hashes {
            let Some(&id) = self.known.get(hash) else { continue };
            let State::Cached { released, .. } = *self.state(id) else { continue };
            self.known.remove(hash);
            self.cached.remove(&released);
            *self.state(id) = State::Free;
            self.free.push(id);
        }
    }

    /// Frees every cached block, so that nothing is found any more that no sequence holds.
    pub fn evict_cached(&mut self) {
        while self.evict() {}
    }

    /// Which blocks were evicted since this was last called. They hold what they held until somebody writes them.
    pub fn take_evicted(&mut self) -> Vec<(PrefixHash, BlockId)> {
        mem::take(&mut self.evicted)
    }

    /// Compares the pool's books with each other and with the tables of all live sequences.
    pub fn check_integrity<'a>(
        &self,
        tables: impl IntoIterator<Item = &'a BlockTable>,
    ) -> Result<(), String> {
        let mut references = vec![0; self.states.len()];
        let mut writers = vec![0; self.states.len()];
        for table in tables {
            table.shared_blocks().for_each(|id| references[id.0 as usize] += 1);
            table.mutable_blocks().for_each(|id| writers[id.0 as usize] += 1);
        }
        for (index, state) in self.states.iter().enumerate() {
            let (references, writers) = (references[index], writers[index]);
            if (references, writers) != state.expected_holders() {
                return Err(format!(
                    "block {index} is {state:?}: {references} references, {writers} writers"
                ));
            }
            if !self.is_listed(BlockId(index as u32), state) {
                return Err(format!("block {index} is {state:?} and is not listed as that"));
            }
        }
        // Every block is on the list of its state, so equal lengths mean that no list holds anything else.
        let count = |is: fn(&State) -> bool| self.states.iter().filter(|state| is(state)).count();
        let free = count(|state| matches!(state, State::Free));
        let cached = count(|state| matches!(state, State::Cached { .. }));
        let shared = count(|state| matches!(state, State::Shared { .. }));
        if (free, cached, cached + shared) != (self.free.len(), self.cached.len(), self.known.len()) {
            return Err(format!(
                "{free} free, {cached} cached, {shared} shared blocks; the lists hold others"
            ));
        }
        Ok(())
    }

    fn is_listed(&self, id: BlockId, state: &State) -> bool {
        match state {
            State::Free => self.free.contains(&id),
            State::Mutable => true,
            State::Shared { hash, .. } => self.known.get(hash) == Some(&id),
            State::Cached { hash, released } => {
                self.known.get(hash) == Some(&id) && self.cached.get(released) == Some(&id)
            }
        }
    }

    fn take(&mut self) -> Option<MutableBlock> {
        if self.free.is_empty() {
            self.evict();
        }
        let id = self.free.pop()?;
        *self.state(id) = State::Mutable;
        Some(MutableBlock(id))
    }

    fn evict(&mut self) -> bool {
        let Some((_, id)) = self.cached.pop_first() else { return false };
        if let State::Cached { hash, .. } = mem::replace(self.state(id), State::Free) {
            self.known.remove(&hash);
            if self.evicted.len() == self.states.len() {
                // Nobody asks.
                self.evicted.clear();
            }
            self.evicted.push((hash, id));
            self.evicted_total += 1;
        }
        self.free.push(id);
        true
    }

    fn hold(&mut self, id: BlockId) -> SharedBlock {
        let state = self.state(id);
        match *state {
            State::Shared { ref mut holders, .. } => *holders += 1,
            State::Cached { hash, released } => {
                *state = State::Shared { hash, holders: 1 };
                self.cached.remove(&released);
            }
            other => unreachable!("block {} is known by its hash and {other:?}", id.0),
        }
        SharedBlock(id)
    }

    fn state(&mut self, id: BlockId) -> &mut State {
        &mut self.states[id.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kv::{Identity, Namespace, TokenChain};

    /// Hashes of blocks of one token.
    fn hashes(tokens: &[u32]) -> Vec<PrefixHash> {
        let chain = TokenChain::new(Namespace::new(&Identity::example()), 1, tokens.to_vec());
        chain.hashes().to_vec()
    }

    /// What a sequence over `tokens` does: finds what is known, computes the rest, seals it. None: no room.
    fn fill(pool: &mut BlockPool, tokens: &[u32]) -> Option<BlockTable> {
        let hashes = hashes(tokens);
        let mut table = BlockTable::with_prefix(1, pool.match_prefix(&hashes));
        match pool.allocate(tokens.len() - table.sealed_blocks()) {
            Some(blocks) => table.grow(blocks),
            None => {
                table.release(pool);
                return None;
            }
        }
        for hash in &hashes[table.sealed_blocks()..] {
            table.seal_next(pool, *hash);
        }
        Some(table)
    }

    fn known(pool: &BlockPool, tokens: &[u32]) -> usize {
        hashes(tokens).iter().take_while(|hash| pool.known.contains_key(hash)).count()
    }

    fn counts(pool: &BlockPool) -> (usize, usize, usize) {
        let PoolCounts { free, cached, held, .. } = pool.counts();
        (free, cached, held)
    }

    #[test]
    fn two_tables_share_a_prefix_and_the_last_one_out_leaves_it_cached() {
        let mut pool = BlockPool::new(8, 1);
        let mut first = fill(&mut pool, &[1, 2, 3]).expect("room");
        let mut second = fill(&mut pool, &[1, 2, 4]).expect("room");
        assert_eq!(counts(&pool), (4, 0, 4));
        pool.check_integrity([&first, &second]).expect("sound");
        first.release(&mut pool);
        assert_eq!(counts(&pool), (4, 1, 3));
        second.release(&mut pool);
        assert_eq!(counts(&pool), (4, 4, 0));
        assert_eq!(pool.headroom(), 1.0);
        pool.check_integrity([]).expect("sound");
        pool.evict_cached();
        assert_eq!(counts(&pool), (8, 0, 0));
        assert_eq!(known(&pool, &[1, 2, 3]), 0);
    }

    #[test]
    fn a_block_computed_twice_is_kept_once() {
        let mut pool = BlockPool::new(4, 1);
        let hash = hashes(&[7])[0];
        let mut tables = [BlockTable::new(1), BlockTable::new(1)];
        for table in &mut tables {
            table.grow(pool.allocate(1).expect("room"));
        }
        for table in &mut tables {
            table.seal_next(&mut pool, hash);
        }
        assert_eq!(tables[0].blocks(1), tables[1].blocks(1));
        assert_eq!(counts(&pool), (3, 0, 1));
        pool.check_integrity(&tables).expect("sound");
    }

    #[test]
    fn the_oldest_and_deepest_cached_block_goes_first() {
        let mut pool = BlockPool::new(4, 1);
        fill(&mut pool, &[1, 2]).expect("room").release(&mut pool);
        fill(&mut pool, &[5, 6]).expect("room").release(&mut pool);
        fill(&mut pool, &[1]).expect("room").release(&mut pool);
        let remaining = |pool: &BlockPool| (known(pool, &[1, 2]), known(pool, &[5, 6]));
        let mut held = BlockTable::new(1);
        for expected in [(1, 2), (1, 1), (1, 0), (0, 0)] {
            held.grow(pool.allocate(1).expect("a cached block is available"));
            assert_eq!(remaining(&pool), expected);
        }
        assert!(pool.allocate(1).is_none());
        assert_eq!(pool.headroom(), 0.0);
        pool.check_integrity([&held]).expect("sound");
    }

    #[test]
    fn integrity_names_a_leaked_and_a_doubled_reference() {
        let mut pool = BlockPool::new(4, 1);
        let table = fill(&mut pool, &[1]).expect("room");
        pool.check_integrity([&table]).expect("sound");
        let leaked = pool.check_integrity([]).expect_err("one reference is missing");
        assert!(leaked.contains("block 0") && leaked.contains("0 references"), "{leaked}");
        assert!(pool.check_integrity([&table, &table]).is_err());
        let mut writer = BlockTable::new(1);
        writer.grow(pool.allocate(1).expect("room"));
        assert!(pool.check_integrity([&table, &writer, &writer]).is_err());
        pool.free.clear();
        assert!(pool.check_integrity([&table, &writer]).is_err());
    }

    proptest! {
        /// Whatever tables come and go: the books balance, and what is cached is reachable: the known part of
        /// any sequence is a prefix of it, and a fill that fits succeeds.
        #[test]
        fn books_balance_and_everything_cached_is_reachable(
            operations in prop::collection::vec((prop::collection::vec(0u32..2, 1..6), 0usize..4), 1..60),
        ) {
            let mut pool = BlockPool::new(8, 1);
            let mut tables: Vec<BlockTable> = Vec::new();
            let mut seen: Vec<Vec<u32>> = Vec::new();
            for (tokens, slot) in operations {
                while tables.len() > slot {
                    tables.remove(slot / 2).release(&mut pool);
                }
                let (found, available) = (known(&pool, &tokens), pool.available());
                match fill(&mut pool, &tokens) {
                    Some(table) => tables.push(table),
                    None => prop_assert!(available < tokens.len()),
                }
                if found == tokens.len() {
                    prop_assert_eq!(tables.last().map(BlockTable::sealed_blocks), Some(found));
                }
                pool.check_integrity(&tables).map_err(TestCaseError::fail)?;
                seen.push(tokens);
                for tokens in &seen {
                    let known_anywhere =
                        hashes(tokens).iter().filter(|hash| pool.known.contains_key(hash)).count();
                    prop_assert_eq!(known(&pool, tokens), known_anywhere, "unreachable: {:?}", tokens);
                }
            }
        }
    }
}
