//! A model whose K and V are digests of everything up to their token, and a world that runs turns on it.
//!
//! A row's digest is made from the digest *read* at the slot before it, and samples are made from digests
//! read. So a wrong block, a stale slot or a write into somebody else's block changes tokens, and the checks
//! name where.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use turnmill_schema::Priority;

use super::super::Scheduler;
use crate::kv::{BlockId, BlockPool, Identity, Namespace, PrefixHash, TokenChain};
use crate::schedule::{
    Limits, NewSequence, PlannedSequence, Refused, Sampled, SequenceId, Speculation, StepPlan,
};

/// Few token ids, so that different turns often share prefixes by chance too.
const VOCABULARY: u64 = 3;

fn digest(before: u64, token: u32) -> u64 {
    let mut hasher = DefaultHasher::new();
    (before, token).hash(&mut hasher);
    hasher.finish()
}

/// The token sampled from a context.
fn sample(context: u64) -> u32 {
    (context % VOCABULARY) as u32
}

/// A turn with what it must come to.
#[derive(Clone, Debug)]
pub struct Turn {
    pub prompt: Vec<u32>,
    pub make: u32,
    pub priority: Priority,
    pub alone: bool,
    pub tenant: u8,
    /// Some contexts end it before it made all its tokens.
    pub may_stop: bool,
    /// Blocks of it come back from elsewhere before it is planned.
    pub restoring: bool,
}

impl Turn {
    pub fn new(prompt: impl Into<Vec<u32>>, make: u32) -> Self {
        let (priority, prompt) = (Priority::Interactive, prompt.into());
        Self { prompt, make, priority, alone: false, tenant: 0, may_stop: false, restoring: false }
    }

    pub fn batch(self) -> Self {
        Self { priority: Priority::Batch, ..self }
    }

    pub fn alone(self) -> Self {
        Self { alone: true, ..self }
    }

    fn seed(&self) -> u64 {
        u64::from(self.tenant)
    }

    /// The digest of each token's context, itself included.
    fn digests(&self, tokens: &[u32]) -> Vec<u64> {
        let step = |before: &mut u64, token: &u32| {
            *before = digest(*before, *token);
            Some(*before)
        };
        tokens.iter().scan(self.seed(), step).collect()
    }

    /// Whether the token sampled from `context` as number `length` of the sequence is its last.
    fn ends(&self, context: u64, length: usize) -> bool {
        let stops = self.may_stop && (context / VOCABULARY).is_multiple_of(17);
        stops || length == self.prompt.len() + self.make as usize
    }

    /// All tokens of the turn when nobody else is there.
    pub fn solo(&self) -> Vec<u32> {
        let mut tokens = self.prompt.clone();
        let mut context = self.digests(&tokens).last().copied().expect("a prompt");
        loop {
            let token = sample(context);
            tokens.push(token);
            if self.ends(context, tokens.len()) {
                return tokens;
            }
            context = digest(context, token);
        }
    }
}

/// One live turn: what it is and its tokens so far.
#[derive(Debug)]
pub struct Live {
    pub turn: Turn,
    pub tokens: Vec<u32>,
}

impl Live {
    /// Tokens it may have.
    fn longest(&self) -> usize {
        self.turn.prompt.len() + self.turn.make as usize
    }
}

/// A scheduler, the memory its plans write, and the turns in it.
pub struct World {
    pub scheduler: Scheduler,
    pub live: BTreeMap<SequenceId, Live>,
    pub finished: Vec<SequenceId>,
    limits: Limits,
    block_tokens: u32,
    kv: Vec<Option<u64>>,
    next_id: u64,
    /// Evicted blocks of preempted sequences.
    kept: HashMap<PrefixHash, Vec<u64>>,
    /// How many of them came back.
    pub came_back: usize,
    /// Proposed tokens that were accepted.
    pub accepted: usize,
}

impl World {
    pub fn new(limits: Limits, blocks: u32, block_tokens: u32) -> Self {
        Self {
            scheduler: Scheduler::new(limits, BlockPool::new(blocks, block_tokens)),
            live: BTreeMap::new(),
            finished: Vec::new(),
            limits,
            block_tokens,
            kv: vec![None; (blocks * block_tokens) as usize],
            next_id: 0,
            kept: HashMap::new(),
            came_back: 0,
            accepted: 0,
        }
    }

    /// The same, where preempted sequences keep their blocks.
    pub fn keeping(limits: Limits, blocks: u32, block_tokens: u32) -> Self {
        let mut world = Self::new(limits, blocks, block_tokens);
        world.scheduler.keep_preempted();
        world
    }

    /// The same, where tokens are proposed.
    pub fn speculating(mut self, speculation: Option<Speculation>) -> Self {
        self.scheduler.speculate(speculation);
        self
    }

    /// Brings back up to `blocks` blocks of a sequence that waits for them, one by one, as a restorer would.
    pub fn restore(&mut self, id: SequenceId, blocks: usize) {
        for _ in 0..blocks {
            let Some(sealed) = self.restoring_at(id) else { return };
            let Live { turn, tokens } = &self.live[&id];
            let digests = turn.digests(tokens);
            let own = digests.chunks(self.block_tokens as usize).nth(sealed).unwrap_or_default().to_vec();
            let Some(&[block]) = self.scheduler.restore(id, &(sealed..sealed + 1)).as_deref() else { return };
            self.write(block, &own);
            self.scheduler.seal_restored(id, 1);
            self.check();
        }
    }

    /// Gives preempted sequences back what was kept of them.
    fn restore_some(&mut self) {
        let preempted = |id: &SequenceId| !self.live[id].turn.restoring;
        let ids: Vec<SequenceId> = self.scheduler.restoring().map(|(id, _)| id).filter(preempted).collect();
        for id in ids {
            while let Some(sealed) = self.restoring_at(id) {
                let hash = self.scheduler.hashes(id).and_then(|hashes| hashes.get(sealed).copied());
                let Some(kept) = hash.and_then(|hash| self.kept.get(&hash).cloned()) else { break };
                let Some(&[block]) = self.scheduler.restore(id, &(sealed..sealed + 1)).as_deref() else {
                    break;
                };
                self.write(block, &kept);
                self.scheduler.seal_restored(id, 1);
                self.came_back += 1;
            }
            self.scheduler.end_restore(id);
            self.check();
        }
    }

    /// Copies what preempted sequences lost, before anybody writes there.
    fn keep_evicted(&mut self) {
        let wanted: HashSet<PrefixHash> = self.scheduler.wanted_back().copied().collect();
        for (hash, block) in self.scheduler.take_evicted() {
            if wanted.contains(&hash) {
                let first = (block.0 * self.block_tokens) as usize;
                let slots = &self.kv[first..first + self.block_tokens as usize];
                let held = slots.iter().map(|slot| slot.expect("a sealed block is written")).collect();
                self.kept.insert(hash, held);
            }
        }
    }

    fn restoring_at(&self, id: SequenceId) -> Option<usize> {
        self.scheduler.restoring().find(|(other, _)| *other == id).map(|(_, sealed)| sealed)
    }

    fn write(&mut self, block: BlockId, digests: &[u64]) {
        let first = (block.0 * self.block_tokens) as usize;
        for (slot, digest) in self.kv[first..].iter_mut().zip(digests) {
            *slot = Some(*digest);
        }
    }

    /// All that was to come back has come, also for those that are not admitted yet.
    pub fn end_restores(&mut self) {
        for (id, live) in &mut self.live {
            if std::mem::take(&mut live.turn.restoring) {
                self.scheduler.end_restore(*id);
            }
        }
        self.check();
    }

    pub fn add(&mut self, turn: Turn) -> Result<SequenceId, Refused> {
        let id = SequenceId(self.next_id);
        self.scheduler.add(NewSequence {
            id,
            chain: chain(&turn, self.block_tokens as usize),
            max_total_tokens: turn.prompt.len() as u32 + turn.make,
            priority: turn.priority,
            alone: turn.alone,
            restorable_blocks: if turn.restoring { usize::MAX } else { 0 },
        })?;
        self.next_id += 1;
        self.live.insert(id, Live { tokens: turn.prompt.clone(), turn });
        Ok(id)
    }

    pub fn must_add(&mut self, turn: Turn) -> SequenceId {
        self.add(turn).expect("the turn fits")
    }

    /// One whole step; returns its plan.
    pub fn step(&mut self) -> Option<StepPlan> {
        let plan = self.schedule()?;
        let sampled = self.run(&plan);
        self.apply(&sampled);
        Some(plan)
    }

    /// Steps until nothing is left to do.
    pub fn finish(&mut self) {
        self.end_restores();
        let mut steps = 0;
        while self.step().is_some() || self.scheduler.has_work() {
            steps += 1;
            assert!(steps < 20_000, "no end in sight: {:?}", self.scheduler.counts());
        }
        assert!(self.live.is_empty(), "never finished: {:?}", self.live);
        assert_eq!(self.scheduler.pool().counts().held, 0);
    }

    /// Plans a step and checks what can be told before it runs.
    pub fn schedule(&mut self) -> Option<StepPlan> {
        assert_eq!(self.scheduler.has_work(), !self.live.is_empty());
        self.restore_some();
        let plan = self.scheduler.schedule();
        self.keep_evicted();
        self.check();
        let Some(plan) = plan else {
            let restoring = self.scheduler.restoring().next().is_some();
            assert!(self.live.is_empty() || restoring, "there is work and no plan");
            return None;
        };
        self.check_plan(&plan);
        Some(plan)
    }

    fn check_plan(&self, plan: &StepPlan) {
        let rows = plan.rows();
        assert!(rows > 0 && rows <= self.limits.batch_tokens, "{rows} rows");
        assert_eq!((plan.positions.len(), plan.slots.len()), (rows, rows));
        assert_eq!(plan.slots.iter().collect::<HashSet<_>>().len(), rows, "a slot is written twice");
        let ids: HashSet<_> = plan.sequences.iter().map(|planned| planned.id).collect();
        assert_eq!(ids.len(), plan.sequences.len(), "a sequence is planned twice");
        let alone = ids.iter().any(|id| self.live[id].turn.alone);
        assert!(!alone || ids.len() == 1, "a turn that runs alone has company");
        for (planned, range) in shares(plan) {
            let tokens = &self.live[&planned.id].tokens;
            let context = planned.context_tokens as usize;
            let first = context - planned.query_tokens as usize;
            assert!(planned.query_tokens > 0);
            let known = context.min(tokens.len());
            assert_eq!(plan.tokens[range.clone()][..known - first], tokens[first..known]);
            let proposed = context - known;
            assert!(tokens.len() + proposed < self.live[&planned.id].longest(), "a proposal too long");
            self.check_proposals(plan, proposed);
            assert_eq!(self.restoring_at(planned.id), None, "it is planned before its blocks have come");
            let samples = if known == tokens.len() { 1 + proposed } else { 0 };
            assert_eq!(planned.samples, samples as u32);
            assert_eq!(planned.blocks.len(), context.div_ceil(self.block_tokens as usize));
            for (row, position) in range.zip(first..) {
                assert_eq!(plan.positions[row], position as u32);
                assert_eq!(plan.slots[row], self.slot(planned, position));
                self.check_own_block(planned, position);
            }
        }
    }

    /// Steps with proposals are small, and leave nobody without rows who could have some.
    fn check_proposals(&self, plan: &StepPlan, proposed: usize) {
        let Some(speculation) = self.scheduler.speculation.filter(|_| proposed > 0) else {
            assert_eq!(proposed, 0);
            return;
        };
        assert!(proposed <= speculation.tokens && plan.rows() <= speculation.rows);
        for sequence in &self.scheduler.running {
            let lone = sequence.alone || sequence.restoring;
            assert!(lone || sequence.planned == sequence.pending(), "its rows went to proposals");
        }
    }

    /// A written block is mutable in its writer's table and in no other table.
    fn check_own_block(&self, planned: &PlannedSequence, position: usize) {
        let block = planned.blocks[position / self.block_tokens as usize];
        for sequence in &self.scheduler.running {
            let own = sequence.id == planned.id;
            assert_eq!(sequence.table.mutable_blocks().any(|id| id == block), own, "{block:?}");
            assert!(!sequence.table.shared_blocks().any(|id| id == block), "{block:?} is written and shared");
        }
    }

    fn slot(&self, planned: &PlannedSequence, position: usize) -> u32 {
        let (block, offset) = (position as u32 / self.block_tokens, position as u32 % self.block_tokens);
        planned.blocks[block as usize].0 * self.block_tokens + offset
    }

    /// Computes a plan: writes digests, checks every context it attends to, samples.
    pub fn run(&mut self, plan: &StepPlan) -> Vec<Sampled> {
        self.forget_unwritten();
        let mut sampled = Vec::new();
        for (planned, range) in shares(plan) {
            let Live { turn, tokens } = &self.live[&planned.id];
            let context = planned.context_tokens as usize;
            for row in range {
                let position = plan.positions[row] as usize;
                let before = match position.checked_sub(1) {
                    Some(previous) => self.kv[self.slot(planned, previous) as usize].expect("written before"),
                    None => turn.seed(),
                };
                self.kv[plan.slots[row] as usize] = Some(digest(before, plan.tokens[row]));
            }
            let all = [tokens, self.proposals(planned)].concat();
            let expected = turn.digests(&all[..context]);
            for (position, expected) in expected.iter().enumerate() {
                let found = self.kv[self.slot(planned, position) as usize];
                assert_eq!(found, Some(*expected), "{:?} reads a wrong slot at {position}", planned.id);
            }
            for length in context + 1 - planned.samples as usize..=context {
                let read = self.kv[self.slot(planned, length - 1) as usize].expect("just written");
                let (token, finished) = (sample(read), turn.ends(read, length + 1));
                sampled.push(Sampled { id: planned.id, token, finished });
                if finished || all.get(length) != Some(&token) {
                    break;
                }
                self.accepted += 1;
            }
        }
        sampled
    }

    fn proposals(&self, planned: &PlannedSequence) -> &[u32] {
        let sequence = self.scheduler.running.iter().find(|sequence| sequence.id == planned.id);
        &sequence.expect("it was planned").proposed
    }

    /// Slots that are in a table and not computed hold nothing anybody may read, whatever was there before.
    fn forget_unwritten(&mut self) {
        for sequence in &self.scheduler.running {
            let capacity = sequence.table.len() * self.block_tokens as usize;
            for position in sequence.computed..capacity {
                self.kv[sequence.table.write_slot(position) as usize] = None;
            }
        }
    }

    pub fn apply(&mut self, sampled: &[Sampled]) {
        self.scheduler.apply(sampled);
        for Sampled { id, token, finished } in sampled {
            let Some(live) = self.live.get_mut(id) else { continue };
            live.tokens.push(*token);
            if *finished {
                assert_eq!(live.tokens, live.turn.solo(), "other tokens than alone");
                self.live.remove(id);
                self.finished.push(*id);
            }
        }
        self.check();
    }

    /// A step fails half way, having written anything at all.
    pub fn fail(&mut self) {
        let Some(plan) = self.schedule() else { return };
        for slot in &plan.slots {
            self.kv[*slot as usize] = Some(u64::MAX);
        }
        let mut planned: Vec<_> = plan.sequences.iter().map(|planned| planned.id).collect();
        let mut failed = self.scheduler.fail_step();
        planned.sort_unstable();
        failed.sort_unstable();
        assert_eq!(failed, planned);
        self.live.retain(|id, _| !failed.contains(id));
        self.check();
    }

    pub fn remove(&mut self, id: SequenceId) {
        assert_eq!(self.scheduler.remove(id).is_some(), self.live.remove(&id).is_some());
        self.check();
    }

    pub fn check(&self) {
        self.scheduler.check_integrity().expect("sound");
        self.check_sealed();
        let counts = self.scheduler.counts();
        assert_eq!(counts.running + counts.waiting, self.live.len());
    }

    /// What sealed blocks hold is what their sequence's tokens, and nothing that was only proposed, make of them.
    fn check_sealed(&self) {
        for sequence in &self.scheduler.running {
            let Some(Live { turn, tokens }) = self.live.get(&sequence.id) else { continue };
            let sealed = sequence.table.sealed_tokens();
            let blocks = sequence.table.shared_blocks();
            let slots =
                blocks.flat_map(|block| (0..self.block_tokens).map(move |i| block.0 * self.block_tokens + i));
            let held: Vec<_> = slots.map(|slot| self.kv[slot as usize]).collect();
            let expected: Vec<_> = turn.digests(&tokens[..sealed]).into_iter().map(Some).collect();
            assert_eq!(held, expected, "{:?}: a sealed block holds something else", sequence.id);
        }
    }
}

/// The turn's prompt as the scheduler takes it.
pub fn chain(turn: &Turn, block_tokens: usize) -> TokenChain {
    let namespace = Namespace::new(&Identity::example()).for_tenant(&turn.tenant.to_string());
    TokenChain::new(namespace, block_tokens, turn.prompt.clone())
}

/// Each planned sequence with the range of its rows.
fn shares(plan: &StepPlan) -> impl Iterator<Item = (&PlannedSequence, std::ops::Range<usize>)> {
    plan.sequences.iter().scan(0, |end, planned| {
        let start = *end;
        *end += planned.query_tokens as usize;
        Some((planned, start..*end))
    })
}
