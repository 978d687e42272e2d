//! The [`Engine`] port: a decoder and its backend.

use super::Decoder;
use crate::kv::BlockId;
use crate::model::backend::Backend;
use crate::model::error::first_line;
use crate::model::{Engine, EngineError, Logits, Spare};
use crate::schedule::{PlannedSequence, SequenceId, StepPlan};

/// Runs steps.
pub struct DecoderEngine<B: Backend> {
    decoder: Decoder<B>,
    backend: B,
    spare: Spare,
}

impl<B: Backend> DecoderEngine<B> {
    /// Runs `decoder`, whose weights `backend` has.
    pub fn new(decoder: Decoder<B>, backend: B) -> Self {
        Self { decoder, backend, spare: Spare::default() }
    }
}

impl<B: Backend> Engine for DecoderEngine<B> {
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits, EngineError> {
        let vocabulary = self.decoder.config().vocabulary;
        // On a thread of the pool: what it shares out is then taken up without waking anybody, and none is idle.
        let memory = self.spare.lock().map(|mut spare| std::mem::take(&mut *spare)).unwrap_or_default();
        let logits = rayon::scope(|_| self.decoder.forward(&mut self.backend, plan, memory));
        let values = logits.map_err(|error| EngineError::Step(first_line(&error)))?;
        Ok(Logits { values, vocabulary, spare: self.spare.clone() })
    }

    /// Has the system hand out the pool's memory, and runs a prefill and a decode step into block 0.
    fn warm_up(&mut self) -> Result<(), EngineError> {
        self.backend.touch().map_err(transfer)?;
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

    fn read_blocks(&self, blocks: &[BlockId]) -> Result<Vec<u8>, EngineError> {
        self.backend.read_blocks(blocks).map_err(transfer)
    }

    fn write_blocks(&mut self, skip: usize, blocks: &[BlockId], data: &[u8]) -> Result<(), EngineError> {
        self.backend.write_blocks(skip, blocks, data).map_err(transfer)
    }
}

fn transfer(error: candle_core::Error) -> EngineError {
    EngineError::Transfer(first_line(&error))
}
