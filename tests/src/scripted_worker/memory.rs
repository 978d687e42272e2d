//! K and V of a scripted worker: a row's K is its token, its V is its position. So what a sequence is can be read from its blocks,
//! whichever worker wrote them and wherever they were kept meanwhile; and a block that is not the sequence's is seen.

use turnmill_worker::kv::BlockId;
use turnmill_worker::model::EngineError;
use turnmill_worker::schedule::StepPlan;

/// Bytes of a token's K and V.
pub const TOKEN_BYTES: usize = 8;
/// Bytes of a token's K, or V.
const HALF_BYTES: usize = TOKEN_BYTES / 2;

/// The block pool's memory.
pub struct Memory {
    block_tokens: usize,
    /// K of each slot.
    tokens: Vec<u32>,
    /// V of each slot: its position, counted from 1, so that 0 is a slot that nobody wrote.
    positions: Vec<u32>,
}

impl Memory {
    /// Memory of `blocks` blocks. The system gives it out as it is written.
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        let slots = blocks * block_tokens;
        Self { block_tokens, tokens: vec![0; slots], positions: vec![0; slots] }
    }

    /// Writes the rows of a step.
    pub fn write(&mut self, plan: &StepPlan) {
        for ((token, position), slot) in plan.tokens.iter().zip(&plan.positions).zip(&plan.slots) {
            self.tokens[*slot as usize] = *token;
            self.positions[*slot as usize] = position + 1;
        }
    }

    /// The first `count` tokens of the sequence whose blocks these are.
    pub fn sequence(&self, blocks: &[BlockId], count: usize) -> Result<Vec<u32>, EngineError> {
        let token = |position: usize| {
            let block = blocks[position / self.block_tokens];
            let slot = block.0 as usize * self.block_tokens + position % self.block_tokens;
            match self.positions[slot] as usize {
                found if found == position + 1 => Ok(self.tokens[slot]),
                found => Err(EngineError::Step(format!(
                    "block {} has number {found} of a sequence where number {} is read; please report it",
                    block.0,
                    position + 1
                ))),
            }
        };
        (0..count).map(token).collect()
    }

    /// See [`turnmill_worker::model::Engine::read_blocks`].
    pub fn read_blocks(&self, blocks: &[BlockId]) -> Vec<u8> {
        let half = |half: &'_ [u32]| -> Vec<u8> {
            blocks.iter().flat_map(|block| &half[self.slots(*block)]).flat_map(|e| e.to_le_bytes()).collect()
        };
        [half(&self.tokens), half(&self.positions)].concat()
    }

    /// See [`turnmill_worker::model::Engine::write_blocks`].
    pub fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<(), EngineError> {
        let half_bytes = (skip + blocks.len()) * self.block_tokens * HALF_BYTES;
        if data.len() != 2 * half_bytes {
            let (length, count) = (data.len(), skip + blocks.len());
            return Err(EngineError::Transfer(format!("{length} bytes are not {count} blocks")));
        }
        let (tokens, positions) = data.split_at(half_bytes);
        for (index, block) in blocks.iter().enumerate() {
            let first = (skip + index) * self.block_tokens;
            for (offset, slot) in self.slots(*block).enumerate() {
                self.tokens[slot] = element(tokens, first + offset);
                self.positions[slot] = element(positions, first + offset);
            }
        }
        Ok(())
    }

    fn slots(&self, block: BlockId) -> std::ops::Range<usize> {
        let first = block.0 as usize * self.block_tokens;
        first..first + self.block_tokens
    }
}

fn element(half: &[u8], index: usize) -> u32 {
    let (elements, _) = half.as_chunks::<HALF_BYTES>();
    u32::from_le_bytes(elements[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [BlockId; 3] = [BlockId(2), BlockId(0), BlockId(3)];

    /// A sequence of ten tokens in blocks of four.
    fn written() -> Memory {
        let mut memory = Memory::new(4, 4);
        let slots = [8, 9, 10, 11, 0, 1, 2, 3, 12, 13];
        let tokens = (100..110).collect();
        memory.write(&StepPlan {
            tokens,
            positions: (0..10).collect(),
            slots: slots.to_vec(),
            ..StepPlan::default()
        });
        memory
    }

    #[test]
    fn a_sequence_is_read_back_and_a_block_in_a_wrong_place_is_seen() {
        let memory = written();
        assert_eq!(memory.sequence(&IDS, 10).expect("whole"), (100..110).collect::<Vec<u32>>());
        assert!(memory.sequence(&IDS, 11).is_err(), "the next slot was never written");
        let swapped = memory.sequence(&[IDS[1], IDS[0]], 8).expect_err("not its blocks").to_string();
        assert!(swapped.contains("block 0 has number 5 of a sequence where number 1 is read"), "{swapped}");
    }

    #[test]
    fn blocks_that_were_copied_out_and_in_are_the_same() {
        let from = written();
        let data = from.read_blocks(&IDS);
        assert_eq!(data.len(), 3 * 4 * TOKEN_BYTES);
        for skip in 0..3 {
            let mut to = written();
            to.write_blocks(skip, &[BlockId(1)], &from.read_blocks(&IDS[..=skip])).expect("whole blocks");
            assert_eq!(to.read_blocks(&[BlockId(1)]), from.read_blocks(&IDS[skip..=skip]));
            assert!(to.write_blocks(skip, &[BlockId(1)], &data[1..]).is_err());
        }
    }
}
