//! The model that workers of a simulation have: its K and V are hashes of the tokens before them, read from the pool as a real one
//! reads them. So a block that is not what its hash says makes other words.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use turnmill_worker::config::KvDtype;
use turnmill_worker::kv::{BlockId, BlockShape};
use turnmill_worker::model::{Engine, EngineError, Logits};
use turnmill_worker::schedule::{PlannedSequence, StepPlan};

use super::ledger::Stage;
use super::words::{self, POISON, VOCABULARY};

/// Elements of a head: K of a token is a number of 64 bits.
const HEAD_DIM: usize = 4;
const HALF: usize = size_of::<u64>();

/// What a block of `block_tokens` tokens looks like.
pub(super) fn shape(block_tokens: usize) -> BlockShape {
    BlockShape { layers: 1, block_tokens, kv_heads: 1, head_dim: HEAD_DIM, dtype: KvDtype::F16 }
}

/// The model.
pub(super) struct HashModel {
    stage: Arc<Stage>,
    block_tokens: usize,
    /// K and V of each slot.
    slots: Vec<[u64; 2]>,
    /// Rows that were computed since somebody last asked.
    rows: Arc<AtomicUsize>,
}

impl HashModel {
    /// With a pool of `blocks` blocks.
    pub(super) fn new(stage: Arc<Stage>, blocks: usize, rows: Arc<AtomicUsize>) -> Self {
        let block_tokens = stage.world.block_tokens;
        // No token has these K and V: a slot that was never written is noticed.
        Self { stage, block_tokens, slots: vec![[0; 2]; blocks * block_tokens], rows }
    }

    /// K of an earlier position.
    fn read(&self, sequence: &PlannedSequence, position: usize) -> u64 {
        let block = sequence.blocks[position / self.block_tokens].0 as usize;
        let [key, value] = self.slots[block * self.block_tokens + position % self.block_tokens];
        if value != words::value(key, position) {
            self.stage.violation(format!("{:?} reads a block that is not whole", sequence.id));
        }
        key
    }

    fn range(&self, block: BlockId) -> std::ops::Range<usize> {
        let first = block.0 as usize * self.block_tokens;
        first..first + self.block_tokens
    }

    fn fails_to_copy(&self) -> Result<(), EngineError> {
        if self.stage.fails(self.stage.world.faults.copy) {
            return Err(EngineError::Transfer("a flaw of the simulation".to_owned()));
        }
        Ok(())
    }
}

impl Engine for HashModel {
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError> {
        self.rows.fetch_add(plan.rows(), Ordering::Relaxed);
        if plan.tokens.contains(&words::token(POISON)) || self.stage.fails(self.stage.world.faults.step) {
            return Err(EngineError::Step("a flaw of the simulation".to_owned()));
        }
        let (mut row, mut values) = (0, Vec::new());
        for sequence in &plan.sequences {
            let first_sampled = sequence.query_tokens - sequence.samples;
            for index in 0..sequence.query_tokens {
                let position = plan.positions[row] as usize;
                let read = |at| self.read(sequence, at);
                let key = words::key(plan.tokens[row], position, self.block_tokens, read);
                self.slots[plan.slots[row] as usize] = [key, words::value(key, position)];
                if index >= first_sampled {
                    values.extend(words::logits(key));
                }
                row += 1;
            }
        }
        if !values.is_empty() && self.stage.fails(self.stage.world.faults.step) {
            values[0] = f32::NAN;
        }
        Ok(Logits::new(values, VOCABULARY))
    }

    fn warm_up(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>, EngineError> {
        self.fails_to_copy()?;
        let half = |which: usize| {
            let slots = blocks.iter().flat_map(|block| &self.slots[self.range(*block)]);
            slots.flat_map(move |slot| slot[which].to_le_bytes())
        };
        Ok(half(0).chain(half(1)).collect())
    }

    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<(), EngineError> {
        self.fails_to_copy()?;
        let (halves, _) = data.as_chunks::<HALF>();
        let (keys, values) = halves.split_at(halves.len() / 2);
        let number = |bytes: &[u8; HALF]| u64::from_le_bytes(*bytes);
        for (index, block) in blocks.iter().enumerate() {
            let from = (skip + index) * self.block_tokens;
            for (offset, slot) in self.range(*block).enumerate() {
                self.slots[slot] = [number(&keys[from + offset]), number(&values[from + offset])];
            }
        }
        Ok(())
    }
}
