//! The [`Engine`] port over candle: a decoder and the block pool's tensors.

use candle_core::Device;

use super::decoder::Decoder;
use super::error::first_line;
use super::paged::{KvShape, KvTensors};
use super::{Engine, EngineError, Logits, ModelError};
use crate::config::KvDtype;
use crate::kv::BlockId;
use crate::schedule::{PlannedSequence, SequenceId, StepPlan};

/// Runs steps with candle.
pub struct CandleEngine {
    decoder: Decoder,
    kv: KvTensors,
}

impl CandleEngine {
    /// Allocates a pool of `blocks` blocks of `block_tokens` tokens beside `decoder`.
    pub fn new(
        decoder: Decoder,
        blocks: usize,
        block_tokens: usize,
        dtype: KvDtype,
    ) -> Result<Self, ModelError> {
        let config = decoder.config();
        let shape = KvShape { blocks, block_tokens, kv_heads: config.kv_heads, head_dim: config.head_dim };
        let kv = KvTensors::new(config.layers, shape, dtype, &Device::Cpu)?;
        Ok(Self { decoder, kv })
    }

    /// Has the system hand out the pool's memory, and runs one prefill and one decode step into block 0, because candle
    /// repacks weights in the first step that uses them. To be called before any block is in use.
    pub fn warm_up(&mut self) -> Result<(), EngineError> {
        self.kv.touch().map_err(transfer)?;
        for rows in [2, 1] {
            self.forward(&StepPlan {
                tokens: vec![0; rows],
                positions: (0..rows as u32).collect(),
                slots: (0..rows as u32).collect(),
                sequences: vec![PlannedSequence {
                    id: SequenceId(0),
                    query_tokens: rows as u32,
                    context_tokens: rows as u32,
                    blocks: vec![BlockId(0)],
                    samples: 1,
                }],
            })?;
        }
        Ok(())
    }
}

impl Engine for CandleEngine {
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError> {
        let step = |error: candle_core::Error| EngineError::Step(first_line(&error));
        let vocabulary = self.decoder.config().vocabulary;
        let values = match self.decoder.forward(plan, &self.kv).map_err(step)? {
            Some(logits) => logits.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).map_err(step)?,
            None => Vec::new(),
        };
        Ok(Logits::new(values, vocabulary))
    }

    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>, EngineError> {
        self.kv.read_blocks(blocks).map_err(transfer)
    }

    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<(), EngineError> {
        self.kv.write_blocks(skip, blocks, data).map_err(transfer)
    }
}

fn transfer(error: candle_core::Error) -> EngineError {
    EngineError::Transfer(first_line(&error))
}
